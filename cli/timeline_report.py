"""`trimtab timeline --html`: a page of its own, that opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.cli.output import when
from trimtab.cli.svg import line_chart

if TYPE_CHECKING:
    from trimtab.store.timeline import Evidence

__all__ = ["timeline_report"]

_DRAWN = {
    "input": ("largest_effect", "Inputs: the largest effect (PSI) of a window"),
    "estimated": ("loss", "Estimated loss, before labels"),
    "realised": ("loss", "Realised loss"),
}
_MOST_POINTS, _MOST_ROWS = 300, 2000


def timeline_report(found: Sequence[Evidence], model: str, explained: Sequence[str]) -> str:
    """The whole page: a curve for each kind of number, then every entry, the newest first."""
    style = (Path(__file__).parent / "profile_report.css").read_text(encoding="utf-8")
    title = f"Evidence: {model}"
    counts = "".join(
        f"<div><b>{sum(item.kind == kind for item in found):,}</b><span>{kind}</span></div>"
        for kind in ("input", "estimated", "realised", "change", "decided")
    )
    said = "".join(f"<p>{escape(line)}</p>" for line in explained)
    body = (
        f'<h1>{escape(title)}</h1><p class="soft">Made by <code>trimtab timeline</code></p>'
        f'<div class="facts">{counts}</div><div class="card">{said}</div>{_charts(found)}{_entries(found)}'
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>{body}</main></body></html>\n"
    )


def _charts(found: Sequence[Evidence]) -> str:
    parts = []
    for kind, (number, title) in _DRAWN.items():
        mine = [item for item in found if item.kind == kind and number in item.numbers][-_MOST_POINTS:]
        if mine:
            chart = line_chart(
                [item.numbers[number] for item in mine], [when(item.time_us) for item in mine], width=900
            )
            parts.append(f'<h2>{escape(title)}</h2><div class="card">{chart}</div>')
    return "".join(parts)


def _entries(found: Sequence[Evidence]) -> str:
    rows = "".join(
        f"<tr><td>{escape(when(item.time_us))}</td><td>{item.kind}</td><td>{item.version or ''}</td>"
        f"<td>{escape(item.message)}</td></tr>"
        for item in reversed(found[-_MOST_ROWS:])
    )
    head = "<tr><th>time</th><th>what</th><th>version</th><th></th></tr>"
    return f'<h2>Everything, the newest first</h2><div class="card"><table>{head}{rows}</table></div>'
