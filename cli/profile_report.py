"""The data report of `trimtab init`: one HTML file without anything from elsewhere – no scripts, fonts, images or
network.

Light and dark follow the reader's system. What matters comes first: what was left out and why, what to look at, the
label, then every column with its distribution and how it moved over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.cli.output import number, when
from trimtab.cli.svg import columns_chart, line_chart, share_bars, sparkline

if TYPE_CHECKING:
    from trimtab.cli.init import Made
    from trimtab.cli.profile import ColumnProfile
    from trimtab.cli.roles import Role

__all__ = ["render_report"]

_MISSING_MUCH = 0.3
_PSI_MUCH = 0.25

_STYLE = Path(__file__).with_suffix(".css")


def render_report(made: Made, data: Path) -> str:
    """The whole page."""
    model = made.project.model()
    style = _STYLE.read_text(encoding="utf-8")
    sections = [
        _header(made, data),
        _look_here(made),
        _label(made),
        _section("What was assumed", _assumptions(made)),
        _section("Features", _columns(made, "feature"), "Click a column for its distribution and how it moved."),
        _section("Left out", _columns(made, "excluded")),
        _explained(made),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(model.name)} – data report</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, body: str, remark: str = "") -> str:
    if not body:
        return ""
    said = f'<p class="soft">{escape(remark)}</p>' if remark else ""
    return f'<h2>{escape(title)}</h2>{said}<div class="card">{body}</div>\n'


def _header(made: Made, data: Path) -> str:
    bins, target = made.profile.bins, made.target
    timed = bool(made.project.data.time)
    facts = [
        (f"{made.rows:,}", "rows"),
        (f"{made.cut:,}", f"training rows ({made.cut / made.rows:.0%})"),
        (str(len(made.project.model().features)), "features"),
        (str(sum(role.use == "excluded" for role in made.roles)), "columns left out"),
        (target.task, f"task, label {target.column}"),
    ]
    if timed:
        facts.append((when(bins.start_us[0])[:10], f"first row, by {made.project.data.time}"))
    boxes = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)
    return (
        f'<h1>{escape(made.project.model().name)}</h1><p class="soft">Data report of {_code(str(data))}, made by '
        f'<code>trimtab init</code></p><div class="facts">{boxes}</div>\n'
    )


def _look_here(made: Made) -> str:
    """Leakage hints and what else a person should look at."""
    lines: list[tuple[str, str]] = []
    for role in made.roles:
        if role.kind in ("leak", "after"):
            lines.append((role.column, f"left out: {role.reason}"))
        elif role.hint:
            lines.append((role.column, f"kept, but {role.hint}: could it be known only after the event?"))
    for name, column in made.profile.columns.items():
        if not any(role.column == name and role.use == "feature" for role in made.roles):
            continue
        if column.missing_share > _MISSING_MUCH:
            lines.append((name, f"missing in {column.missing_share:.0%} of the training rows"))
        later = _later(made, column.psi)
        if later and max(later) > _PSI_MUCH:
            lines.append((name, f"moves: PSI up to {max(later):.2f} against the training rows"))
    if made.target.missing:
        lines.append((made.target.column, f"no label in {made.target.missing:,} rows"))
    if not lines:
        return ""
    rows = "".join(f'<tr><td class="name">{_code(name)}</td><td>{escape(text)}</td></tr>' for name, text in lines)
    return f'<h2>Look at these</h2><div class="card note"><table>{rows}</table></div>\n'


def _label(made: Made) -> str:
    target, bins = made.target, made.profile.bins
    names = _bin_names(made)
    share = made.cut / made.rows
    if target.task == "regression":
        values = made.profile.label_sample
        values = values[~(values != values)]
        left = columns_chart(_histogram(values.tolist()))
        title, right = "Mean", line_chart(bins.label, names, training_share=share, label="mean label over time")
        first = "Distribution, training rows"
    else:
        left = share_bars(sorted(target.counts.items(), key=lambda item: -item[1]))
        which = target.positive if target.task == "binary" else max(target.counts, key=lambda name: target.counts[name])
        title = f"Share of {which}"
        right = line_chart(bins.label, names, training_share=share, percent=True, label="label share over time")
        first = "Balance, all rows"
    return (
        f'<h2>Label {_code(target.column)}</h2><div class="two">'
        f'<div class="card"><p class="soft">{first}</p>{left}</div>'
        f'<div class="card"><p class="soft">{escape(title)} over time; training rows shaded</p>{right}</div></div>\n'
    )


def _assumptions(made: Made) -> str:
    rows = "".join(
        f"<tr><td>{escape(what)}</td><td>{escape(assumed)}</td><td>{_code(change)}</td></tr>"
        for what, assumed, change in made.assumptions
    )
    return f"<table><thead><tr><th></th><th>assumed</th><th>to change</th></tr></thead>{rows}</table>"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>" if text else ""


def _columns(made: Made, use: str) -> str:
    roles = [role for role in made.roles if role.use == use]
    if not roles:
        return ""
    measure = "R²" if made.target.task == "regression" else "AUC"
    head = "".join(
        f'<span class="{kind}">{name}</span>'
        for name, kind in (
            ("column", ""),
            ("type", ""),
            ("missing", "n"),
            ("distinct", "n"),
            (f"alone {measure}", "n"),
            ("max PSI", "n"),
            ("distribution", ""),
            ("PSI over time", ""),
        )
    )
    body = "".join(_column(made, role, made.profile.columns[role.column]) for role in roles)
    return f'<div class="columns"><div class="head">{head}</div>{body}</div>'


def _column(made: Made, role: Role, column: ColumnProfile) -> str:
    later = _later(made, column.psi)
    worst = max(later, default=0.0)
    cells = (
        f"<span><code>{escape(column.name)}</code></span>",
        f'<span class="tag">{escape(role.type or column.arrow)[:24]}</span>',
        f'<span class="n{" warn" if column.missing_share > _MISSING_MUCH else ""}">{column.missing_share:.1%}</span>',
        f'<span class="n">{column.distinct:,}</span>',
        f'<span class="n{" warn" if role.hint else ""}">{number(column.strength, 3)}</span>',
        f'<span class="n{" warn" if worst > _PSI_MUCH else ""}">{worst:.2f}</span>',
        f"<span>{sparkline([count for _, count in column.bars], filled=True)}</span>",
        f"<span>{sparkline(column.psi, most=0.5)}</span>",
    )
    why = f'<p class="warn">{escape(role.reason or role.hint)}</p>' if role.reason or role.hint else ""
    return (
        f'<details><summary>{"".join(cells)}</summary><div class="inside">{why}{_details(made, column)}</div></details>'
    )


def _details(made: Made, column: ColumnProfile) -> str:
    names, share = _bin_names(made), made.cut / made.rows
    charts: list[tuple[str, str]] = []
    if column.kind == "string":
        charts.append(("Most frequent values, training rows", share_bars(column.bars)))
    else:
        charts.append(("Distribution, training rows", columns_chart(column.bars)))
    if column.mean_by_time:
        charts.append(("Mean over time", line_chart(column.mean_by_time, names, training_share=share)))
    charts.append(("PSI against the training rows", line_chart(column.psi, names, training_share=share, zero=True)))
    if any(column.missing_by_time):
        charts.append(
            (
                "Missing over time",
                line_chart(column.missing_by_time, names, training_share=share, percent=True, zero=True),
            )
        )
    text = ""
    if column.quantiles:
        low, high = number(column.low), number(column.high)
        parts = zip(("5 %", "25 %", "median", "75 %", "95 %"), column.quantiles, strict=True)
        text = f"min {low} · " + " · ".join(f"{name} {number(value)}" for name, value in parts) + f" · max {high}"
    drawn = "".join(f"<div><h3>{escape(title)}</h3>{chart}</div>" for title, chart in charts if chart)
    return f'<p class="soft">{escape(text)}</p><div class="two">{drawn}</div>'


def _explained(made: Made) -> str:
    sampled = made.profile.sample_rows
    of = f"an even sample of {sampled:,} of" if sampled < made.cut else "all"
    measure = "R²" if made.target.task == "regression" else "area under the ROC curve"
    return (
        f'<p class="soft">Types, distributions and strengths are of {of} the {made.cut:,} training rows; curves '
        "over time are of all rows, in bins of equally many. Alone: the column's own "
        f"{measure}, learned on one half of the rows and judged on the other. PSI: population stability index over "
        f"tenths (numbers) or the commonest values; above {_PSI_MUCH} a column has moved much.</p>\n"
    )


def _later(made: Made, values: Sequence[float]) -> list[float]:
    """The bins that lie wholly after the training rows."""
    done, later = 0, []
    for rows, value in zip(made.profile.bins.rows, values, strict=False):
        if done >= made.cut and math.isfinite(value):
            later.append(value)
        done += rows
    return later


def _bin_names(made: Made) -> list[str]:
    bins = made.profile.bins
    if made.project.data.time:
        return [when(start)[:16] for start in bins.start_us]
    done, names = 0, []
    for rows in bins.rows:
        names.append(f"row {done:,}")
        done += rows
    return names


def _histogram(values: Iterable[float]) -> list[tuple[str, int]]:
    import numpy as np

    known = np.array(list(values))
    if len(known) == 0:
        return []
    low, high = np.quantile(known, [0.005, 0.995])
    counts, edges = np.histogram(np.clip(known, low, high), 30, (low, high if high > low else low + 1))
    return [(f"{edges[i]:.4g} – {edges[i + 1]:.4g}", int(count)) for i, count in enumerate(counts)]
