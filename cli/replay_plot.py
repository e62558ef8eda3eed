"""A replay as one picture: mean loss over time of live, frozen and scheduled retraining, promotions marked."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

__all__ = ["COLOURS", "NAMES", "draw"]

COLOURS = {"live": "#0a7d5a", "frozen": "#c2410c", "cron": "#3b6fb6"}
NAMES = {"live": "live (Trimtab)", "frozen": "frozen version 1", "cron": "scheduled retraining from scratch"}


def draw(report: Mapping[str, Any]) -> bytes:
    """The PNG."""
    # The figure's own class, without pyplot: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curve, timed = report["curve"], report["timed"]
    times = [_place(time, timed) for time in curve["time_us"]]
    metric = "squared error" if report["task"] == "regression" else "log loss"
    for side in ("frozen", "cron", "live"):
        if side in curve:
            mean = report["metrics"][side][report["main_metric"]]
            width = 2.4 if side == "live" else 1.6
            label = f"{NAMES[side]}: {mean:.4f}"
            axes.plot(times, curve[side], color=COLOURS[side], linewidth=width, label=label)
    known = [value for side in NAMES for value in curve.get(side, []) if value is not None and math.isfinite(value)]
    promoted = [line for line in report["versions"] if line["verdict"] == "promoted" and line["data_time_us"]]
    if promoted and known:
        low, high = min(known), max(known)
        places: Any = [_place(line["data_time_us"], timed) for line in promoted]
        level = low - 0.06 * ((high - low) or 1.0)
        axes.plot(
            places, [level] * len(places), "^", color=COLOURS["live"], markersize=5, label=f"{len(promoted)} promotions"
        )
    axes.set_ylabel(f"{metric}, smoothed (lower is better)")
    axes.set_title(f"{report['model']}: {report['rows']:,} rows through a real server", loc="left", fontsize=11)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    if not timed:
        axes.set_xlabel("row")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _place(time_us: int, timed: bool) -> Any:
    return datetime.fromtimestamp(time_us / 1e6, UTC) if timed else time_us / 1e6
