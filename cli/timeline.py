"""`trimtab timeline`: a model's evidence in the order of data time: what came in, what that let expect, what labels
said then, and what was decided. Read from state/, with a server or without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from trimtab.cli.options import Directory, Json, Model

if TYPE_CHECKING:
    from trimtab.store.project import Project
    from trimtab.store.timeline import Evidence

__all__ = ["gathered", "timeline"]

_FEATURES = 5
_EXPLAINED = (
    "input: windows of served rows against the training data",
    "estimated: what their predictions let expect, before labels; blind to concept drift",
    "realised: what rows cost whose labels came; change: a detector saw that rise",
)


def timeline(
    entries: Annotated[int, typer.Option("--entries", metavar="N", min=1, help="How many to show, the newest.")] = 40,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write all of it as a report.", show_default=False)
    ] = None,
    model: Model = "",
    directory: Directory = Path("."),
    as_json: Json = False,
) -> None:
    """Show a model's evidence, oldest first: drift of its inputs, the loss that its predictions let expect, the loss
    that labels revealed, changes that detectors saw (ADWIN, Page-Hinkley, DDM), and verdicts on candidates.

    Inputs that drift matter where the estimate moves; an estimate that stays while the realised loss rises is concept
    drift: the same inputs mean something else. The report opens without a network.

    \b
    Examples:
      trimtab timeline -C flights
      trimtab timeline --entries 200 --html timeline.html
      trimtab timeline --json | jq '.entries[] | select(.kind == "change")'
    """
    from dataclasses import asdict

    from trimtab.cli.output import Output, when
    from trimtab.store.project import Project

    output = Output(as_json)
    project = Project.load(directory)
    settings = project.model(model or None)
    found = gathered(project, settings.name)
    shown = found[-entries:]
    if not found:
        output.say("nothing yet: a drift window closes as [model.drift] says, labels mature by cohorts")
    else:
        output.table(
            ("time", "what", "version", "loss", ""),
            [(when(item.time_us), item.kind, item.version or "–", _loss(item), item.message) for item in shown],
            title=f"{settings.name}: {len(shown)} of {len(found)} entries",
            right=("version", "loss"),
        )
        output.note("; ".join(_EXPLAINED))
    if html is not None:
        from trimtab.cli.timeline_report import timeline_report

        html.write_text(timeline_report(found, settings.name, _EXPLAINED), encoding="utf-8")
        output.note(f"report: {html}")
    output.result({"model": settings.name, "entries": [asdict(item) for item in shown]})


def gathered(project: Project, model: str) -> list[Evidence]:
    """Everything that state/ knows, in the order of time. Raises StoreError."""
    from trimtab.kernels.drift import DriftWindow
    from trimtab.kernels.errors import KernelError
    from trimtab.store.files import read_lines
    from trimtab.store.settings import TRAINING
    from trimtab.store.timeline import Evidence, read_evidence

    paths = project.model_state(model)
    found = read_evidence(paths.timeline)
    for line in read_lines(paths.drift) if paths.drift.exists() else []:
        try:
            window = DriftWindow.from_json(line.decode())
        except (KernelError, ValueError):
            continue
        alarms = sorted((one for one in window.features if one.alarm), key=lambda one: -one.effect)
        names = ", ".join(one.feature for one in alarms[:_FEATURES]) + (" …" if len(alarms) > _FEATURES else "")
        said = f"{len(alarms)} features alarm: {names}" if alarms else "no alarm"
        if window.joint is not None and window.joint.alarm:
            said += f"; the columns together have drifted (effect {window.joint.effect:.2g})"
        said += f", against {window.reference}" if window.reference not in ("", TRAINING) else ""
        largest = max((one.effect for one in window.features), default=0.0)
        numbers = {"rows": float(window.rows), "alarms": float(len(alarms)), "largest_effect": largest}
        found.append(
            Evidence("input", window.end_us, 0, f"window {window.window}, {window.rows:,} rows: {said}", numbers)
        )
        if (estimate := window.estimate) is not None:
            numbers = {
                "loss": estimate.loss,
                "standard_error": estimate.standard_error,
                "evaluated_loss": estimate.evaluated_loss,
                "p_value": estimate.p_value,
            }
            said = f"± {estimate.standard_error:.2g}, {estimate.evaluated_loss:.4f} when it was evaluated"
            found.append(Evidence("estimated", window.end_us, 0, said, numbers))
    return sorted(found, key=lambda item: item.time_us)


def _loss(item: Evidence) -> str:
    return f"{item.numbers['loss']:.4f}" if "loss" in item.numbers else ""
