"""The picture of a serving result: requests a second over concurrency, and latency over offered load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {"trimtab": "#1f77b4", "triton": "#76b900", "echo": "#888888"}


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws what of it there is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for server, colour in COLOURS.items():
        for size, style in ((1, "-"), (64, "--")):
            found = [r for r in rows if r["case"] == "closed" and r["server"] == server and r["rows"] == size]
            if found:
                levels = [row["concurrency"] for row in found]
                label = f"{server}, {size} row{'s' if size > 1 else ''}"
                left.plot(levels, [r["rate"]["p50"] for r in found], style, marker="o", color=colour, label=label)
        found = sorted((r for r in rows if r["case"] == "open" and r["server"] == server), key=lambda r: r["offered"])
        if found:
            offered = [row["offered"] for row in found]
            for q, style in (("p50", "--"), ("p99", "-")):
                times = [row["latency"][q] / 1e3 for row in found]
                right.plot(offered, times, style, marker="o", color=colour, label=f"{server}, {q}")
    left.set(xscale="log", yscale="log", xlabel="calls at once", ylabel="requests a second", title="Closed loop")
    right.set(xscale="log", yscale="log", xlabel="offered, requests a second", ylabel="latency, ms")
    right.set_title("Open loop at 30, 60, 90 % of each one's capacity")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def plot_columns(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What a value costs in every way, with the sketch of it and without, at the sizes that were measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [row for row in rows if row["case"] == "columns" and row["data"] == "uniform"]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
    for sketched, part in zip((True, False), axes, strict=True):
        for way in dict.fromkeys(row["way"] for row in found):
            mine = [row for row in found if row["way"] == way and row["sketch"] == sketched]
            style = {"color": "#888888", "linestyle": ":"} if way == "memcpy" else {}
            if mine:
                part.plot([r["rows"] for r in mine], [r["ns_per_value"] for r in mine], marker="o", label=way, **style)
        part.set(xscale="log", yscale="log", xlabel="rows of 64 columns", ylabel="ns a value, one core")
        part.set_title("impute, clip, standardise" + (" and sketch" if sketched else ""))
        part.grid(alpha=0.3, which="both")
        part.legend(fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def plot_drift(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """False alarms over the rows of a window, and power over them, of ours and of the rivals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    quiet = [row for row in rows if row["case"] == "false_alarms"]
    for column in ("normal", "rounded", "lognormal", "missing", "ten", "zipf"):
        for part, way, level in ((axes[0], "combined", 0.01), (axes[1], "evidently", None)):
            mine = [r for r in quiet if r["column"] == column and r["way"] == way and r["level"] == level]
            mine = sorted((r for r in mine if r["reference"] == 100_000), key=lambda r: r["rows"])
            if mine:
                low = [max(r["rate"] - r["low"], 0) for r in mine]
                bars = [low, [r["high"] - r["rate"] for r in mine]]
                part.errorbar(
                    [r["rows"] for r in mine], [r["rate"] for r in mine], bars, marker="o", ms=3, label=column
                )
    axes[0].axhline(0.01, color="#888888", linestyle=":")
    axes[0].set(xscale="log", xlabel="rows of a window", ylabel="share of windows", title="No drift: p ≤ 0.01")
    axes[1].set(xscale="log", xlabel="rows of a window", title="No drift: Evidently's defaults")
    for way, style in (("p", "-"), ("evidently", "--"), ("nannyml", ":")):
        for shift, colour in (("mean", "#1f77b4"), ("missing", "#d62728"), ("share", "#2ca02c")):
            mine = [r for r in rows if r["case"] == "power" and r["way"] == way and r["shift"] == shift]
            size = sorted({r["size"] for r in mine})[1:2]
            mine = [r for r in mine if r["size"] in size]
            if mine:
                label = f"{way}: {shift} {size[0]:g}"
                axes[2].plot(
                    [r["rows"] for r in mine], [r["rate"] for r in mine], style, color=colour, marker="o", label=label
                )
    axes[2].set(xscale="log", xlabel="rows of a window", title="Power (ours: p ≤ 0.01)")
    for part in axes:
        part.grid(alpha=0.3)
        if part.get_legend_handles_labels()[0]:
            part.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
