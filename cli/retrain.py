"""`trimtab retrain`: a challenger now, instead of at the next trigger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from trimtab.cli.options import Directory, Json, Model

__all__ = ["retrain"]


def retrain(
    recipe: Annotated[
        str,
        typer.Option(metavar="R", help="refresh (fine-tune the live weights) or search (a new recipe from scratch)."),
    ] = "refresh",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the verdict.")] = True,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; recorded with the version.")] = "",
    model: Model = "",
    directory: Directory = Path("."),
    as_json: Json = False,
) -> None:
    """Train a challenger now, from what was captured and labelled, and put it before the gate.

    Prints the verdict – promoted, refused or undecided – and its reason; all three are a success of the command.

    \b
    Examples:
      trimtab retrain -C flights
      trimtab retrain --recipe search --reason "new feature values since June"
    """
    from trimtab.cli.errors import UsageError, UserError
    from trimtab.cli.output import Output
    from trimtab.cli.running import admin_of
    from trimtab.store.project import Project

    if recipe not in ("refresh", "search"):
        raise UsageError(f"--recipe: expected refresh or search, got {recipe!r}")
    output = Output(as_json)
    project = Project.load(directory)
    name = project.model(model or None).name
    with admin_of(project) as admin, output.progress(f"retraining {name} ({recipe})"):
        done = admin.retrain(name, recipe=recipe, reason=reason or "asked for by hand", wait=wait)
    if wait and not done.verdict:
        raise UserError(f"no verdict: {done.reason or 'the trainer gave none'}")
    said = f"version {done.version}: {done.verdict}, {done.reason}" if done.verdict else done.reason or "asked for"
    output.say(f"{name}: {said}")
    output.result(
        {
            "model": name,
            "recipe": recipe,
            "workflow": done.workflow_id or None,
            "version": done.version or None,
            "verdict": done.verdict or None,
            "reason": done.reason or None,
        }
    )
