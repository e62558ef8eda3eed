"""What a replay says in the end: a table and a sentence on the terminal, the report's files beside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.cli.output import Output, number
from trimtab.store.files import write_atomic

__all__ = ["say", "write_files"]

_TITLES = {
    "live": "live (Trimtab)",
    "frozen": "frozen version 1",
    "cron": "cron, from scratch",
    "no_change": "no change",
    "majority": "majority",
}


def write_files(report: Mapping[str, Any], path: Path) -> list[Path]:
    """Writes the report as JSON, and as HTML and PNG beside it; their paths. Raises StoreError."""
    from trimtab.cli.replay_html import render_html
    from trimtab.cli.replay_plot import draw

    picture = draw(report)
    files = {
        path: json.dumps(_finite(report), indent=1, ensure_ascii=False).encode() + b"\n",
        path.with_suffix(".html"): render_html(report).encode(),
        path.with_suffix(".png"): picture,
    }
    for target, data in files.items():
        write_atomic(target, data)
    return list(files)


def say(output: Output, report: Mapping[str, Any], written: list[Path]) -> None:
    """Prints the result."""
    names = list(report["metrics"]["live"])
    titles = {**_TITLES, "majority": "mean"} if report["task"] == "regression" else _TITLES
    main = str(report["main_metric"])
    rows = []
    for side, metrics in report["metrics"].items():
        cells = [titles[side], *(number(metrics[name]) for name in names)]
        found = report["differences"].get(side, {}).get(main)
        cells.append("" if found is None else _interval(found))
        rows.append(cells)
    columns = ["", *(name.replace("_", " ") for name in names), f"live's {main.replace('_', ' ')} − its"]
    title = f"{report['model']}: {report['rows']:,} rows replayed in {report['wall_seconds']:.0f} s"
    output.table(columns, rows, title=title, right=columns[1:])
    mixed = report["mixed_version_answers"]
    output.say(
        f"requests {report['requests']:,}, failed {report['failed_requests']}; answers that mixed versions "
        f"{'not measured' if mixed is None else mixed}; labels sent {report['labels_sent']:,}, "
        f"joined {number(report['labels_joined'])}"
    )
    if report["first_failure"]:
        output.note(f"first failed request: {report['first_failure']}")
    verdicts = [line["verdict"] for line in report["versions"]]
    counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    if counted:
        output.say(f"versions: {counted}; drift windows with alarms: {len(report['drift_events'])}")
    output.say()
    output.say(report["sentence"])
    if written:
        output.say(f"wrote {', '.join(map(str, written))}")
    output.result(report)


def _interval(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['difference']:+.4f}"
    return f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def _finite(value: Any) -> Any:
    """What JSON has: NaN as null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value
