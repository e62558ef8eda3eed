"""`trimtab publish`: weights that were made elsewhere, as a version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from trimtab.cli.options import Directory, Json, Model

__all__ = ["publish"]


def publish(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights, as safetensors.", show_default=False)],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Where they are from; recorded.")] = "",
    model: Model = "",
    directory: Directory = Path("."),
    as_json: Json = False,
) -> None:
    """Publish the weights in FILE as a new version of the model. Nothing serves them until `trimtab promote`.

    They must have the names, shapes and datatypes of the model that trimtab.toml describes (for a model of columns: of
    the live version's network). Works with and without a running server.

    \b
    Examples:
      trimtab publish finetuned.safetensors -C vision
      trimtab publish finetuned.safetensors --reason "run 81, accuracy 0.91" --json
    """
    from trimtab.cli.output import Output
    from trimtab.models.publishing import publish_weights
    from trimtab.store.project import Project
    from trimtab.store.versions import VersionStore

    output = Output(as_json)
    project = Project.load(directory)
    settings = project.model(model or None)
    data = file.read_bytes()
    store = VersionStore(project.model_state(settings.name).versions)
    made = publish_weights(project, settings, store, data, reason or f"published from {file.name}")
    here = f" -C {directory}" if directory != Path(".") else ""
    next_command = f"trimtab promote {made.version}{here}"
    output.say(f"{settings.name}: published version {made.version} (weights {made.weights[:12]})")
    output.say(f"next: {next_command}")
    output.result({"model": settings.name, "version": made.version, "weights": made.weights, "next": next_command})
