"""A replay's report as one HTML page: no scripts, nothing from the network, light and dark. Pure: a report in, text
out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from trimtab.cli.output import number
from trimtab.cli.replay_plot import NAMES

__all__ = ["render_html"]

_STYLE = Path(__file__).with_suffix(".css")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 1000, 300, 56, 26
_FULL_EFFECT = 0.5
"""PSI that is drawn in full colour."""
_SIDES = {**NAMES, "no_change": "no change", "majority": "majority or mean"}


def render_html(report: Mapping[str, Any]) -> str:
    """The page."""
    title = escape(f"{report['model']}: replay of {report['rows']:,} rows")
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{escape(_when(report, report["first_us"]))} to {escape(_when(report, report["last_us"]))}, '
        f"ticks of {escape(str(report['settings']['tick']))}, pace {escape(report['settings']['pace'])}</p>",
        f'<p class="lead">{escape(report["sentence"])}</p>',
        "<h2>Quality over time</h2>",
        _legend(report),
        _curves(report),
        "<h2>Quality overall</h2>",
        _metrics(report),
        "<h2>Drift of each feature</h2>",
        _heat(report),
        "<h2>Versions</h2>",
        _versions(report),
        "<h2>Cost and correctness</h2>",
        _cost(report),
    ]
    style = _STYLE.read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body><main>"
        + "\n".join(parts)
        + "</main></body></html>\n"
    )


def _legend(report: Mapping[str, Any]) -> str:
    sides = [side for side in NAMES if side in report["curve"]]
    keys = "".join(f'<span><i style="background: var(--{side})"></i>{escape(NAMES[side])}</span>' for side in sides)
    what = "squared error" if report["task"] == "regression" else "log loss"
    return f'<p class="key">{keys}<span class="soft">smoothed {what}; ▲ a promotion</span></p>'


def _curves(report: Mapping[str, Any]) -> str:
    curve = report["curve"]
    times: list[float] = curve["time_us"]
    sides = [side for side in ("frozen", "cron", "live") if side in curve]
    known: list[float] = [value for side in sides for value in curve[side] if _is_number(value)]
    if not known:
        return '<p class="soft">No row was scored.</p>'
    low, high = min(known), max(known)
    pad = 0.08 * ((high - low) or 1.0)
    low, high = low - pad, high + pad
    first, last = times[0], max(times[-1], times[0] + 1)
    inner, tall = _WIDTH - _LEFT - 10, _HEIGHT - _BOTTOM - 8

    def x(time_us: float) -> float:
        return _LEFT + inner * (time_us - first) / (last - first)

    def y(value: float) -> float:
        return 8 + tall * (high - value) / (high - low)

    marks = []
    for step in range(5):
        value = low + (high - low) * step / 4
        marks.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>'
        )
        time_us = first + (last - first) * step / 4
        anchor = "start" if step == 0 else "end" if step == 4 else "middle"
        day = escape(_day(report, time_us))
        marks.append(f'<text x="{x(time_us):.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{day}</text>')
    for side in sides:
        pairs = zip(times, curve[side], strict=True)
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in pairs if _is_number(value))
        marks.append(f'<polyline class="{side}" points="{points}"/>')
    for line in report["versions"]:
        if line["verdict"] == "promoted" and line["data_time_us"]:
            at, base = min(max(x(line["data_time_us"]), _LEFT), _WIDTH - 10), 8 + tall
            marks.append(
                f'<path class="mark" d="M{at - 4:.1f},{base} h8 l-4,-8 z"><title>version {line["version"]}: '
                f"{escape(line['reason'])}</title></path>"
            )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(marks)}</svg>'


def _metrics(report: Mapping[str, Any]) -> str:
    names = list(report["metrics"]["live"])
    main = report["main_metric"]
    others = list(report["differences"].get("frozen", {}))
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    head += "".join(f"<th>live − it: {escape(name.replace('_', ' '))}</th>" for name in others)
    rows = []
    for side, metrics in report["metrics"].items():
        cells = "".join(f"<td>{number(metrics[name])}</td>" for name in names)
        found = report["differences"].get(side, {})
        cells += "".join(f"<td>{_interval(found.get(name))}</td>" for name in others)
        rows.append(f"<tr><td>{escape(_SIDES[side])}</td>{cells}</tr>")
    note = f"Intervals: 95 %, block bootstrap over time. {escape(main.replace('_', ' '))} decides."
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div><p class="soft">{note}</p>'


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    text = f"{found['difference']:+.4f}"
    return text if found["low"] is None else f"{text} [{found['low']:+.4f}, {found['high']:+.4f}]"


def _heat(report: Mapping[str, Any]) -> str:
    windows: Sequence[Mapping[str, Any]] = report["drift"]
    if not windows:
        return '<p class="soft">No drift window was closed.</p>'
    names = list(windows[0]["effects"])
    names.sort(key=lambda name: -sum(window["effects"].get(name, 0.0) for window in windows))
    left, tall, inner = 150, 16, _WIDTH - 160
    step = inner / len(windows)
    marks = []
    for row, name in enumerate(names):
        marks.append(f'<text x="{left - 8}" y="{row * tall + 12}" text-anchor="end">{escape(name)}</text>')
        for column, window in enumerate(windows):
            effect = window["effects"].get(name, 0.0)
            alarm = ' class="alarm"' if name in window["alarms"] else ""
            shade = min(effect / _FULL_EFFECT, 1.0) if _is_number(effect) else 0.0
            marks.append(
                f'<rect{alarm} x="{left + column * step:.1f}" y="{row * tall + 1}" width="{max(step - 0.6, 0.4):.1f}" '
                f'height="{tall - 2}" fill-opacity="{0.04 + 0.96 * shade:.2f}"><title>{escape(name)}, '
                f"{escape(_day(report, window['start_us']))}: PSI {effect:.3f}</title></rect>"
            )
    height = len(names) * tall + 20
    ends = (
        f'<text x="{left}" y="{height - 5}">{escape(_day(report, windows[0]["start_us"]))}</text>'
        f'<text x="{left + inner:.0f}" y="{height - 5}" text-anchor="end">'
        f"{escape(_day(report, windows[-1]['end_us']))}</text>"
    )
    note = "Population stability index against the training data; framed: an alarm."
    return (
        f'<svg class="heat" viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(marks)}{ends}</svg>'
        f'<p class="soft">{note} {len(report["drift_events"])} of {len(windows)} windows have alarms.</p>'
    )


def _versions(report: Mapping[str, Any]) -> str:
    lines = report["versions"]
    if not lines:
        return '<p class="soft">This replay only shadowed; there is nothing to tell.</p>'
    verdicts = [line["verdict"] for line in lines]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    rows = "".join(
        f'<tr><td>{line["version"]}</td><td class="text {escape(line["verdict"])}">{escape(line["verdict"])}</td>'
        f'<td class="text">{escape(_day(report, line["data_time_us"])) if line["data_time_us"] else ""}</td>'
        f"<td>{line['rows_trained']:,}</td><td>{line['rows_served']:,}</td>"
        f'<td class="text">{escape(line["reason"])}</td></tr>'
        for line in lines
    )
    head = (
        '<tr><th>version</th><th class="text">verdict</th><th class="text">when</th><th>rows trained</th>'
        '<th>rows served</th><th class="text">reason</th></tr>'
    )
    return (
        f"<p>{escape(counts)}.</p><details open><summary>Every version, with its reason</summary>"
        f'<div class="wide"><table>{head}{rows}</table></div></details>'
    )


def _cost(report: Mapping[str, Any]) -> str:
    mixed = report["mixed_version_answers"]
    facts = [
        ("rows replayed", number(report["rows"])),
        ("rows skipped (trained on)", number(report["rows_skipped"])),
        ("requests", number(report["requests"])),
        ("failed requests", number(report["failed_requests"])),
        ("answers that mixed versions", "not measured" if mixed is None else number(mixed)),
        ("labels sent", number(report["labels_sent"])),
        ("labels joined to their rows", number(report["labels_joined"])),
        ("retrainings", number(report["retrains"])),
        ("promotions", number(report["promotions"])),
        ("wall time", f"{report['wall_seconds']:.0f} s"),
        ("rows a second", number(report["rows_per_second"], 0)),
        ("trainer CPU", _seconds(report["trainer_cpu_seconds"])),
        ("scheduled retraining CPU", _seconds(report["cron_cpu_seconds"])),
    ]
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    return f"<table>{rows}</table>"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} s"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _when(report: Mapping[str, Any], time_us: float) -> str:
    if not report["timed"]:
        return f"row {time_us / 1e6:,.0f}"
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _day(report: Mapping[str, Any], time_us: float) -> str:
    if not report["timed"]:
        return f"row {time_us / 1e6:,.0f}"
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d")
