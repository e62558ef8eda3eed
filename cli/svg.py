"""Small charts as inline SVG, coloured by the page's CSS classes, so that they follow its light and dark theme.

Marks carry a <title>, which browsers show on hover. Pure: numbers in, text out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from trimtab.cli.output import number

__all__ = ["columns_chart", "heat_chart", "line_chart", "pair_chart", "share_bars", "sparkline"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 20


def sparkline(
    values: Sequence[float], *, filled: bool = False, width: int = 110, height: int = 26, most: float = 0.0
) -> str:
    """A line (or bars) without axes. `most`: the least upper end, so that small values look small."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    high = max(max(known), most)
    low = 0.0 if filled or min(known) >= 0 else min(known)
    span = (high - low) or 1.0
    step = width / len(values)
    if filled:
        bars = "".join(
            f'<rect x="{i * step:.1f}" y="{height - height * (v - low) / span:.1f}" width="{max(step - 1, 0.6):.1f}" '
            f'height="{height * (v - low) / span:.1f}"/>'
            for i, v in enumerate(values)
            if math.isfinite(v)
        )
        body = f'<g class="bar">{bars}</g>'
    else:
        body = f'<polyline class="line" points="{_points(values, step, height - 2, low, span, 0, 1)}"/>'
    return (
        f'<svg class="spark" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">{body}</svg>'
    )


def columns_chart(bars: Sequence[tuple[str, int]], *, width: int = 520, height: int = 150) -> str:
    """Counts as upright bars; each says its name and count on hover, the first and last below the axis."""
    if not bars:
        return ""
    most = max(count for _, count in bars) or 1
    inner, tall = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    step = inner / len(bars)
    gap = 2 if step > 5 else 0.5
    marks = "".join(
        f'<rect class="bar" x="{_LEFT + i * step + gap / 2:.1f}" y="{_TOP + tall * (1 - count / most):.1f}" '
        f'width="{step - gap:.1f}" height="{tall * count / most:.1f}"><title>{escape(name)}: {count:,}</title></rect>'
        for i, (name, count) in enumerate(bars)
    )
    ends = [(0, bars[0][0], "start"), (len(bars), bars[-1][0], "end")] if len(bars) > 1 else [(0, bars[0][0], "start")]
    names = "".join(
        f'<text x="{_LEFT + place * step:.1f}" y="{height - 5}" text-anchor="{anchor}">'
        f"{escape(_short(name, 28))}</text>"
        for place, name, anchor in ends
    )
    return _frame(width, height, _y_axis(0, most, tall, width) + marks + names)


def pair_chart(
    names: Sequence[str],
    first: Sequence[float],
    second: Sequence[float],
    *,
    said: tuple[str, str],
    width: int = 520,
    height: int = 170,
) -> str:
    """Two rows of shares as pairs of upright bars, the first in grey; `said`: what each is, for hovering."""
    most = max([*first, *second], default=0.0)
    if not names or not most > 0:
        return ""
    inner, tall = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    step = inner / len(names)
    wide = step * 0.42
    marks = "".join(
        f'<rect class="{kind}" x="{_LEFT + i * step + place * wide + step * 0.08:.1f}" '
        f'y="{_TOP + tall * (1 - share / most):.1f}" width="{wide:.1f}" height="{tall * share / most:.1f}">'
        f"<title>{escape(name)}: {share:.2%} of {escape(what)}</title></rect>"
        for i, name in enumerate(names)
        for place, kind, share, what in ((0, "was", first[i], said[0]), (1, "bar", second[i], said[1]))
    )
    ends = [(_LEFT, names[0], "start"), (width - _RIGHT, names[-1], "end")][: len(names)]
    texts = "".join(
        f'<text x="{x}" y="{height - 5}" text-anchor="{anchor}">{escape(_short(name, 28))}</text>'
        for x, name, anchor in ends
    )
    return _frame(width, height, _y_axis(0, most, tall, width, percent=True) + marks + texts)


def heat_chart(
    columns: Sequence[Sequence[float]],
    names: Sequence[str],
    times: Sequence[str],
    *,
    width: int = 520,
    height: int = 170,
) -> str:
    """A distribution over time: shares [times][bins] as shades, the first bin at the bottom, time to the right."""
    most = max((share for column in columns for share in column), default=0.0)
    if not columns or not most > 0:
        return ""
    inner, tall = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    step, high = inner / len(columns), tall / len(names)
    cells = "".join(
        f'<rect class="heat" x="{_LEFT + i * step:.1f}" y="{_TOP + tall - (j + 1) * high:.1f}" '
        f'width="{step + 0.2:.1f}" height="{high + 0.2:.1f}" fill-opacity="{share / most:.2f}">'
        f"<title>{escape(times[i])}: {share:.1%} {escape(_short(names[j], 40))}</title></rect>"
        for i, column in enumerate(columns)
        for j, share in enumerate(column)
        if share > 0
    )
    ends = (
        f'<text x="{_LEFT}" y="{height - 5}">{escape(times[0])}</text>'
        f'<text x="{width - _RIGHT}" y="{height - 5}" text-anchor="end">{escape(times[-1])}</text>'
    )
    return _frame(width, height, cells + (ends if len(times) > 1 else ends.partition("</text>")[0] + "</text>"))


def line_chart(
    values: Sequence[float],
    names: Sequence[str],
    *,
    training_share: float = 0.0,
    percent: bool = False,
    zero: bool = False,
    width: int = 520,
    height: int = 150,
    label: str = "",
) -> str:
    """Values over time; the training rows' part of the axis is shaded. Gaps stay gaps."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    low, high = (0.0 if zero else min(known)), max(known)
    if high == low:
        pad = abs(high) * 0.1 or 0.5
        low, high = (low if zero else low - pad), high + pad
    elif not zero:
        pad = (high - low) * 0.1
        low, high = (max(0.0, low - pad) if min(known) >= 0 else low - pad), high + pad
    inner, tall = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    step = inner / len(values)
    shade = (
        f'<rect class="training" x="{_LEFT}" y="{_TOP}" width="{inner * training_share:.1f}" height="{tall}">'
        "<title>training rows</title></rect>"
    )
    span = high - low
    lines = "".join(
        f'<polyline class="line" points="{_points(part, step, tall, low, span, _LEFT + step * (start + 0.5), _TOP)}"/>'
        for start, part in _runs(values)
    )
    dots = "".join(
        f'<circle class="dot" r="3" cx="{_LEFT + step * (i + 0.5):.1f}" '
        f'cy="{_TOP + tall * (1 - (v - low) / span):.1f}">'
        f"<title>{escape(names[i])}: {_value(v, percent)}</title></circle>"
        for i, v in enumerate(values)
        if math.isfinite(v)
    )
    ends = (
        f'<text x="{_LEFT}" y="{height - 5}">{escape(names[0])}</text>'
        f'<text x="{width - _RIGHT}" y="{height - 5}" text-anchor="end">{escape(names[-1])}</text>'
    )
    return _frame(width, height, shade + _y_axis(low, high, tall, width, percent) + lines + dots + ends, label)


def share_bars(parts: Sequence[tuple[str, int]], *, most: int = 12) -> str:
    """Counts as horizontal bars with names, counts and shares: HTML, not SVG, so that long names wrap."""
    total = sum(count for _, count in parts) or 1
    largest = max((count for _, count in parts), default=1) or 1
    rows = "".join(
        f'<tr><th scope="row">{escape(_short(name, 60))}</th><td class="track"><span class="fill" '
        f'style="width:{100 * count / largest:.1f}%"></span></td><td class="n">{count:,}</td>'
        f'<td class="n">{count / total:.1%}</td></tr>'
        for name, count in parts[:most]
    )
    if len(parts) > most:
        rest = sum(count for _, count in parts[most:])
        rows += (
            f'<tr><th scope="row">{len(parts) - most} more</th><td></td><td class="n">{rest:,}</td>'
            f'<td class="n">{rest / total:.1%}</td></tr>'
        )
    return f'<table class="shares">{rows}</table>'


def _points(values: Sequence[float], step: float, tall: float, low: float, span: float, left: float, top: float) -> str:
    return " ".join(
        f"{left + i * step:.1f},{top + tall * (1 - (v - low) / span):.1f}"
        for i, v in enumerate(values)
        if math.isfinite(v)
    )


def _runs(values: Sequence[float]) -> list[tuple[int, list[float]]]:
    """The stretches without a gap, each with its place."""
    runs: list[tuple[int, list[float]]] = []
    for place, value in enumerate(values):
        if not math.isfinite(value):
            continue
        if runs and runs[-1][0] + len(runs[-1][1]) == place:
            runs[-1][1].append(value)
        else:
            runs.append((place, [value]))
    return runs


def _y_axis(low: float, high: float, tall: float, width: int, percent: bool = False) -> str:
    lines = ""
    for share in (0.0, 0.5, 1.0):
        y = _TOP + tall * (1 - share)
        lines += (
            f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">'
            f"{_value(low + share * (high - low), percent)}</text>"
        )
    return lines


def _value(value: float, percent: bool) -> str:
    if percent:
        return f"{value:.1%}"
    if abs(value) >= 10_000:
        for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.3g}{sign}"
    return number(float(value), 3).rstrip("0").rstrip(".") if value else "0"


def _frame(width: int, height: int, body: str, label: str = "") -> str:
    said = f' aria-label="{escape(label, quote=True)}"' if label else ""
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img"{said}>{body}</svg>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
