"""docs/protocol.md: its curl commands against a real server in the place of 127.0.0.1:8002, and its table of paths."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from trimtab.cli.train import train_project
from trimtab.server.rest import HTTP_STATUS

from ..client.test_docs import flights
from .world import Running, serving

DOCS = Path(__file__).parents[2] / "docs" / "protocol.md"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    project = flights(tmp_path_factory.mktemp("protocol") / "flights")
    train_project(project)
    with serving(project) as started:
        yield started


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_curl_command_works(running: Running) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    outputs = []
    for block in blocks:
        script = block.replace("127.0.0.1:8002", running.http)
        done = subprocess.run(
            ["bash", "-eu", "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={"PATH": "/usr/bin"},
        )
        outputs.append(done.stdout)
    asked, answer, error = outputs
    assert '"name":"trimtab"' in asked
    assert '"carrier"' in asked
    made = json.loads(answer)
    described = json.loads(
        re.search(r"^```json\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL).group(1)  # type: ignore[union-attr]
    )
    assert made.keys() == described.keys()
    assert made["parameters"].keys() == described["parameters"].keys()
    assert made["outputs"][0].keys() == described["outputs"][0].keys()
    assert made["outputs"][0]["shape"] == described["outputs"][0]["shape"]
    assert error.endswith("404\n")


def test_the_table_of_statuses_is_the_servers() -> None:
    table = re.findall(r"^\| (\d{3}) \| ([A-Z_, ]+)", DOCS.read_text(), re.MULTILINE)
    assert len(table) == 10
    for number, names in table:
        for name in names.split(", "):
            if number != "413":
                assert HTTP_STATUS.get(name.strip(), 500) == int(number)
