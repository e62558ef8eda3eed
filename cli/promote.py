"""`trimtab promote` and `trimtab rollback`: which version is live, by a person's decision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from trimtab.cli.options import Directory, Json, Model

if TYPE_CHECKING:
    from trimtab.cli.output import Output
    from trimtab.protos.v1.trimtab_pb2 import PromoteResponse

__all__ = ["promote", "rollback"]

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; recorded with the change.")]


def promote(
    version: Annotated[int, typer.Argument(metavar="V", help="The version's number.", show_default=False)],
    reason: Reason = "",
    epoch: Annotated[
        int, typer.Option(metavar="N", help="Only if live.json is still at this epoch.", show_default="whatever it is")
    ] = -1,
    model: Model = "",
    directory: Directory = Path("."),
    as_json: Json = False,
) -> None:
    """Make version V live, between two batches: no request fails. The version before it stays warm for `trimtab
    rollback`.

    The version is loaded, verified and warmed first; one that is damaged or predicts nonsense is refused.

    \b
    Examples:
      trimtab promote 7 -C flights
      trimtab promote 7 --reason "checked the refused slice by hand"
    """
    from trimtab.cli.output import Output
    from trimtab.cli.running import admin_of
    from trimtab.store.project import Project

    output = Output(as_json)
    project = Project.load(directory)
    name = project.model(model or None).name
    with admin_of(project) as admin:
        done = admin.promote(name, version, expected_epoch=epoch, reason=reason or "promoted by hand")
    _say(output, name, done)


def rollback(reason: Reason = "", model: Model = "", directory: Directory = Path("."), as_json: Json = False) -> None:
    """Make the previous version live again, at once: it is still warm.

    \b
    Examples:
      trimtab rollback -C flights
      trimtab rollback --reason "support reports odd answers"
    """
    from trimtab.cli.output import Output
    from trimtab.cli.running import admin_of
    from trimtab.store.project import Project

    output = Output(as_json)
    project = Project.load(directory)
    name = project.model(model or None).name
    with admin_of(project) as admin:
        done = admin.rollback(name, reason=reason or "rolled back by hand")
    _say(output, name, done)


def _say(output: Output, name: str, done: PromoteResponse) -> None:
    before = f", after {done.previous}" if done.previous else ""
    output.say(f"{name}: version {done.live} is live{before} (epoch {done.epoch}, weights {done.weights[:12]})")
    output.result(
        {
            "model": name,
            "live": done.live,
            "previous": done.previous or None,
            "epoch": done.epoch,
            "weights": done.weights,
        }
    )
