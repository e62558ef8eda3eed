"""The report of `trimtab drift --html`: one HTML file without anything from elsewhere – no scripts, fonts, images or
network.

What was compared comes first, in words; then what could not be compared; then every column, by effect, with both
distributions and, where there are windows, how it moved over time. Pure: a comparison in, text out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from trimtab.cli.drift_files import Comparison, FileDrift
from trimtab.cli.drift_values import tell_joint, tell_new
from trimtab.cli.output import number, p_value, when
from trimtab.cli.svg import heat_chart, line_chart, pair_chart, sparkline

__all__ = ["drift_report"]

DRAWN = 200
"""Columns with charts; the rest have only their line."""
_HEAT_BINS, _HEAT_TIMES = 16, 60
_STYLES = ("profile_report.css", "drift_report.css")


def drift_report(comparison: Comparison, title: str, statement: Sequence[str]) -> str:
    """The whole page. `statement`: what was compared and how, a paragraph each."""
    folder = Path(__file__).parent
    style = "".join((folder / name).read_text(encoding="utf-8") for name in _STYLES)
    said = "".join(f"<p>{escape(line)}</p>" for line in statement)
    sections = [
        f'<h1>{escape(title)}</h1><p class="soft">Made by <code>trimtab drift</code></p>{_facts(comparison)}',
        f'<h2>What was compared</h2><div class="card">{said}</div>',
        _left(comparison),
        _together(comparison),
        _features(comparison),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _facts(comparison: Comparison) -> str:
    facts = [
        (f"{comparison.reference_rows:,}", "reference rows"),
        (f"{comparison.rows:,}", "current rows"),
        (f"{len(comparison.features):,}", "columns compared"),
        (f"{sum(feature.drifted for feature in comparison.features):,}", "have drifted"),
    ]
    if comparison.windows:
        facts.append((f"{len(comparison.windows):,}", "windows"))
    boxes = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in facts)
    return f'<div class="facts">{boxes}</div>\n'


def _left(comparison: Comparison) -> str:
    if not comparison.left:
        return ""
    rows = "".join(
        f'<tr><td class="name"><code>{escape(one.column)}</code></td><td>{escape(one.why)}</td>'
        f"<td>{escape(one.detail)}</td></tr>"
        for one in comparison.left
    )
    return f'<h2>Not compared</h2><div class="card note"><table>{rows}</table></div>\n'


def _together(comparison: Comparison) -> str:
    joint = comparison.joint
    if joint is None:
        return ""
    said = tell_joint(joint)
    times = [when(window.start_us)[:16] for window in comparison.windows]
    effects = [one.effect if one is not None else math.nan for one in comparison.joint_over_time]
    chart = ""
    if any(one is not None for one in comparison.joint_over_time):
        chart = f"<h3>Effect over time</h3>{line_chart(effects, times, zero=True)}"
    return f'<h2>Columns together</h2><div class="card"><p>{escape(said)}</p>{chart}</div>\n'


def _features(comparison: Comparison) -> str:
    head = "".join(
        f'<span class="{kind}">{name}</span>'
        for name, kind in (
            ("column", ""),
            ("type", ""),
            ("PSI", "n"),
            ("adjusted p", "n"),
            ("missing", "n"),
            ("was", "n"),
            ("unseen", "n"),
            ("PSI over time", ""),
            ("", ""),
        )
    )
    body = "".join(_feature(comparison, feature, i < DRAWN) for i, feature in enumerate(comparison.features))
    return (
        '<h2>Columns, largest effect first</h2><p class="soft">Click a column for its distributions. '
        '<span class="key before"></span>reference<span class="key"></span>current</p>'
        f'<div class="card"><div class="columns features"><div class="head">{head}</div>{body}</div></div>\n'
    )


def _feature(comparison: Comparison, feature: FileDrift, drawn: bool) -> str:
    warn = " warn" if feature.drifted else ""
    cells = "".join(
        (
            f"<span><code>{escape(feature.column.field.name)}</code></span>",
            f'<span class="tag">{escape(feature.column.current_type)[:24]}</span>',
            f'<span class="n{warn}">{feature.effect:.3f}</span>',
            f'<span class="n">{p_value(feature.adjusted_p_value)}</span>',
            f'<span class="n">{feature.missing_rate:.1%}</span>',
            f'<span class="n">{feature.reference_missing_rate:.1%}</span>',
            f'<span class="n">{feature.unseen_rate:.1%}</span>',
            f"<span>{sparkline([moment.effect for moment in feature.over_time], most=0.2)}</span>",
            f'<span class="{warn.strip()}">{"drifted" if feature.drifted else ""}</span>',
        )
    )
    if not drawn:
        return f'<div class="plain">{cells}</div>'
    return f'<details><summary>{cells}</summary><div class="inside">{_details(comparison, feature)}</div></details>'


def _details(comparison: Comparison, feature: FileDrift) -> str:
    times = [when(window.start_us)[:16] for window in comparison.windows]
    moments = feature.over_time
    charts = [("Distribution", _distributions(feature))]
    if moments:
        charts.append(("Distribution over time, darker where there is more", _heat(feature, times)))
        charts.append(("PSI over time", line_chart([one.effect for one in moments], times, zero=True)))
        charts.append(("Mean over time", line_chart([one.mean for one in moments], times)))
        if any(one.missing_rate for one in moments):
            rates = [one.missing_rate for one in moments]
            charts.append(("Missing over time", line_chart(rates, times, percent=True, zero=True)))
        if any(one.unseen_rate for one in moments):
            rates = [one.unseen_rate for one in moments]
            charts.append(("Unseen over time", line_chart(rates, times, percent=True, zero=True)))
    drawn = "".join(f"<div><h3>{escape(title)}</h3>{chart}</div>" for title, chart in charts if chart)
    return f'{_said(comparison, feature)}<div class="two">{drawn}</div>'


def _said(comparison: Comparison, feature: FileDrift) -> str:
    parts = [
        f"{one.name.replace('_', ' ')} {number(one.value)} (effect {number(one.effect, 3)}, p {p_value(one.p_value)})"
        for one in feature.statistics
    ]
    if math.isfinite(feature.mean) and math.isfinite(feature.reference_mean):
        parts.append(f"mean {number(feature.reference_mean)} → {number(feature.mean)}")
    if feature.quantiles:
        sides = (", ".join(map(number, side)) for side in (feature.reference_quantiles, feature.quantiles))
        parts.append(f"1 %, median, 99 %: {' → '.join(sides)}")
    if feature.new_values:
        parts.append(f"new values: {tell_new(feature.new_values, comparison.rows)}")
    if feature.evidently is not None:
        verdict = feature.evidently
        parts.append(f"Evidently's {verdict.test}: {number(verdict.score)}, threshold {verdict.threshold}")
    if feature.column.reference_type != feature.column.current_type:
        parts.append(f"{feature.column.reference_type} in the reference, {feature.column.current_type} now")
    return f'<p class="soft">{escape(" · ".join(parts))}</p>'


def _distributions(feature: FileDrift) -> str:
    """Both sides' shares of all rows: the buckets, then what is in none."""
    ordered = any(one.name == "ks" for one in feature.statistics)
    names = [*feature.bucket_names, "unseen values", "missing"]
    sides = []
    for buckets, missing, unseen in (
        (feature.reference_buckets, feature.reference_missing_rate, feature.reference_unseen_rate),
        (feature.buckets, feature.missing_rate, feature.unseen_rate),
    ):
        absent = 0.0 if ordered else unseen  # a number beyond the range is in an outer bucket
        sides.append([*(share * (1 - missing - absent) for share in _shares(buckets)), absent, missing])
    last = len(feature.bucket_names) - (0 if ordered else 1)
    kept = [i for i in range(len(names)) if i < last or sides[0][i] or sides[1][i]]
    before, now = ([side[i] for i in kept] for side in sides)
    return pair_chart([names[i] for i in kept], before, now, said=("the reference", "the current rows"))


def _heat(feature: FileDrift, times: Sequence[str]) -> str:
    """The buckets over time, neighbours of both joined until a page can bear it."""
    each = -(-len(times) // _HEAT_TIMES)
    wide = -(-len(feature.bucket_names) // _HEAT_BINS)
    joined = []
    for start in range(0, len(times), each):
        merged = feature.over_time[start : start + each]
        sums = [sum(counts) for counts in zip(*(one.buckets for one in merged), strict=True)]
        joined.append(_shares([sum(sums[i : i + wide]) for i in range(0, len(sums), wide)]))
    names = list(feature.bucket_names)
    labels = [
        names[i] if wide == 1 else f"{names[i]} … {names[min(i + wide, len(names)) - 1]}"
        for i in range(0, len(names), wide)
    ]
    return heat_chart(joined, labels, times[::each])


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]
