"""`trimtab versions`: every version with what became of it, from the running server, or from state/ where none runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.cli.options import Directory, Json, Model

if TYPE_CHECKING:
    from trimtab.protos.v1.trimtab_pb2 import ListVersionsResponse
    from trimtab.store.project import Project

__all__ = ["versions"]


def versions(model: Model = "", directory: Directory = Path("."), as_json: Json = False) -> None:
    """List the model's versions, oldest first: state, verdict, reason, rows trained on and offline quality.

    Works without a server too, from what lies in state/.

    \b
    Examples:
      trimtab versions -C flights
      trimtab versions --json | jq '.versions[] | select(.verdict == "refused") | .reason'
    """
    from trimtab.cli.output import Output, number, when
    from trimtab.store.project import Project

    output = Output(as_json)
    project = Project.load(directory)
    settings = project.model(model or None)
    listed, running = _listed(project, settings.name)
    main = "rmse" if settings.task == "regression" else "log_loss"
    if not listed.versions:
        output.say(
            f"model {settings.name!r} has no version yet; `trimtab train -C {project.directory}` makes the first"
        )
    else:
        output.table(
            ("version", "state", "verdict", "parent", "rows", main.replace("_", " "), "made", "reason"),
            [
                (
                    item.version,
                    f"{item.state}, asleep" if item.asleep else item.state,
                    item.verdict or "–",
                    item.parent or "–",
                    number(item.rows_trained),
                    number(item.metrics.get(main)),
                    when(item.created_us),
                    item.reason,
                )
                for item in listed.versions
            ],
            right=("version", "parent", "rows", main.replace("_", " ")),
        )
        if listed.aliases:
            output.say(", ".join(f"{name} is version {at}" for name, at in sorted(listed.aliases.items())))
    output.result(
        {
            "model": settings.name,
            "server": running,
            "live": listed.live or None,
            "previous": listed.previous or None,
            "epoch": listed.epoch,
            "aliases": dict(listed.aliases),
            "loaded": list(listed.loaded),
            "versions": [
                {
                    "version": item.version,
                    "state": item.state,
                    "asleep": item.asleep,
                    "verdict": item.verdict or None,
                    "reason": item.reason,
                    "parent": item.parent or None,
                    "weights": item.weights or None,
                    "rows_trained": item.rows_trained,
                    "created_us": item.created_us,
                    "metrics": dict(item.metrics),
                }
                for item in listed.versions
            ],
        }
    )


def _listed(project: Project, model: str) -> tuple[ListVersionsResponse, bool]:
    """The list, and whether a server gave it."""
    from trimtab.cli.errors import NoServer
    from trimtab.cli.running import admin_of

    try:
        with admin_of(project) as admin:
            return admin.versions(model), True
    except NoServer:
        return _from_disk(project, model), False


def _from_disk(project: Project, model: str) -> ListVersionsResponse:
    from trimtab.protos.v1.trimtab_pb2 import ListVersionsResponse
    from trimtab.server.versions import list_versions
    from trimtab.store.live import Live, LiveStore
    from trimtab.store.versions import VersionStore

    paths = project.model_state(model)
    if not paths.versions.is_dir():
        return ListVersionsResponse()
    live = LiveStore(paths.live).read() or Live(live=0)
    return ListVersionsResponse(
        versions=list_versions(VersionStore(paths.versions), live, ()),
        live=live.live,
        previous=live.previous or 0,
        epoch=live.epoch,
        aliases=live.aliases,
    )
