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
    source = (ROOT / "server" / "metrics.py").read_text()
    known = set(re.findall(r'"(trimtab_[a-z_]+)"', source))
    text = (ROOT / "deploy" / name).read_text()
    used = set(re.findall(r"\b(trimtab_[a-z_]+)\b", text))
    assert used
    for metric in used:
        bare = next((metric.removesuffix(s) for s in SUFFIXES if metric.endswith(s)), metric)
        assert bare in known or metric in known, metric


def test_dashboard_panels_do_not_overlap() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "trimtab.json").read_text())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)
