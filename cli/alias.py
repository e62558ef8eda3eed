"""`trimtab alias`: names that stand for versions in requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from trimtab.cli.options import Directory, Json, Model

__all__ = ["alias"]


def alias(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name.", show_default=False)],
    version: Annotated[int, typer.Argument(metavar="V", help="The version's number.", show_default="none")] = 0,
    remove: Annotated[bool, typer.Option("--remove", help="Take the name away.")] = False,
    epoch: Annotated[
        int, typer.Option(metavar="N", help="Only if live.json is still at this epoch.", show_default="whatever it is")
    ] = -1,
    model: Model = "",
    directory: Directory = Path("."),
    as_json: Json = False,
) -> None:
    """Make NAME stand for version V: requests may then ask for it in `model_version`, until the name is moved or taken
    away, also after a restart. The version is loaded and stays so.

    `champion` (the live version) and `challenger` (the candidate staged last) are there by themselves.

    \b
    Examples:
      trimtab alias stable 3 -C flights
      trimtab alias stable --remove
    """
    from trimtab.cli.errors import UsageError
    from trimtab.cli.output import Output
    from trimtab.cli.running import admin_of
    from trimtab.store.project import Project

    if remove == bool(version):
        raise UsageError("give a version, or --remove")
    output = Output(as_json)
    project = Project.load(directory)
    chosen = project.model(model or None).name
    with admin_of(project) as admin:
        done = admin.alias(chosen, name, version, expected_epoch=epoch)
    what = f"{name} is version {version}" if version else f"{name} stands for nothing any more"
    output.say(f"{chosen}: {what} (epoch {done.epoch})")
    output.result({"model": chosen, "aliases": dict(done.aliases), "epoch": done.epoch})
