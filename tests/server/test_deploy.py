"""The files of deploy/ name metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIXES = ("_total", "_bucket", "_sum", "_count")


@pytest.mark.parametrize("name", ["grafana/trimtab.json", "prometheus/alerts.yml"])
def test_metrics_named_are_those_of_the_server(name: str) -> None:
    source = "".join((ROOT / path).read_text() for path in ("server/metrics.py", "csrc/metrics_text.cpp"))
    known = {metric.removesuffix("_total") for metric in re.findall(r'"(trimtab_[a-z_]+)"', source)}
    text = (ROOT / "deploy" / name).read_text()
    used = set(re.findall(r"\b(trimtab_[a-z_]+)\b", text))
    assert used
    for metric in used:
        bare = next((metric.removesuffix(s) for s in SUFFIXES if metric.endswith(s)), metric)
        assert bare in known or metric in known, metric  # gauges may end in a suffix


def test_dashboard_panels_do_not_overlap() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "trimtab.json").read_text())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)
