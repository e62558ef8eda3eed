"""`trimtab serve`: the serving process, in the foreground."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from trimtab.cli.options import Directory, Json

__all__ = ["serve"]


def serve(
    grpc_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Port of gRPC; 0: a free one.", show_default="server.grpc_port, 8001"),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Port of /metrics, /livez, /readyz.", show_default="server.http_port, 8002"),
    ] = None,
    no_trainer: Annotated[bool, typer.Option("--no-trainer", help="Serve only; nothing is retrained.")] = False,
    transport: Annotated[
        str | None, typer.Option(metavar="T", help="auto, native or grpcio.", show_default="server.transport, auto")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="auto, cpu or cuda.", show_default="server.device, auto")
    ] = None,
    directory: Directory = Path("."),
    as_json: Json = False,
) -> None:
    """Serve the project's models over gRPC until SIGINT or SIGTERM, with the trainer beside them.

    Prints one line on stdout when it is ready: where it listens. On SIGTERM or SIGINT what was accepted is answered,
    for at most server.drain_seconds; a second signal ends it at once. Logs go to stderr. Flags win over [server] in
    trimtab.toml.

    \b
    Examples:
      trimtab serve -C flights
      trimtab serve -C flights --grpc-port 0 --http-port 0 --json
      trimtab serve --no-trainer --device cpu
    """
    from trimtab.cli.errors import UsageError

    for flag, port in (("--grpc-port", grpc_port), ("--http-port", http_port)):
        if port is not None and not 0 <= port <= 65535:
            raise UsageError(f"{flag}: expected a port, 0 to 65535, got {port}")
    for flag, value, choices in (
        ("--transport", transport, ("auto", "native", "grpcio")),
        ("--device", device, ("auto", "cpu", "cuda")),
    ):
        if value is not None and value not in choices:
            raise UsageError(f"{flag}: expected one of {', '.join(choices)}, got {value!r}")
    with _importing():
        from trimtab.store.project import Project

        project = Project.load(directory)
        _check_versions(project)
        from trimtab.server.app import serve as run

    code = run(
        project,
        grpc_port=grpc_port,
        http_port=http_port,
        transport=transport,
        device=device,
        trainer=False if no_trainer else None,
        as_json=as_json,
    )
    if code:
        raise typer.Exit(code)


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Imports for a server that is to be ready soon, and that shares its cores with threads of its own.

    The collector would go through the many objects that imports make again and again, which takes as long as the
    imports themselves. Numeric libraries start no threads that would only be in the way of those that serve, and
    torch's ([server] threads) sleep between two batches instead of spinning; the trainer, a process of its own, does
    not inherit that.
    """
    wanted = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        for name in ours:
            del os.environ[name]


def _check_versions(project: object) -> None:
    """Says that there is nothing to serve before torch is imported, which takes seconds."""
    from trimtab.cli.errors import UserError
    from trimtab.store.project import Project

    assert isinstance(project, Project)
    for model in project.models:
        folder = project.model_state(model.name).versions
        if not folder.is_dir() or not any(entry.name.isdecimal() for entry in folder.iterdir()):
            raise UserError(
                f"model {model.name!r} has no version yet; `trimtab train -C {project.directory}` makes the first"
            )
