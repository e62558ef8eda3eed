"""examples/own, with every command of docs/serving.md's "Models of your own" as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.store.project import Project

from ..server.own import outputs, request
from ..server.world import serving

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").partition("## Models of your own")[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT.partition("\n## Many")[0], re.S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(
        ROOT / "examples" / "own", tmp_path / "examples" / "own", ignore=shutil.ignore_patterns("state", "__*")
    )
    return tmp_path


def run(folder: Path, line: str) -> None:
    program, *arguments = shlex.split(line)
    command = [sys.executable, *(["-m", "trimtab.cli"] if program == "trimtab" else []), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, f"{line}: {done.stderr}"


def ask(stub: Any, version: str = "") -> tuple[list[bytes], str]:
    """The verdicts on a good and a bad text, and the version that gave them."""
    answer = stub.ModelInfer(request("sentiment", version, text=[b"A great film", b"so dull and awful"]))
    found = outputs(answer)
    assert found["probability"].shape == (2,)
    return found["verdict"], answer.model_version


def test_the_commands_of_the_docs(folder: Path) -> None:
    before, beside = [block.strip().splitlines() for block in BLOCKS]
    assert before[-1].startswith("trimtab serve")
    for line in before[:-1]:
        run(folder, line)
    with (
        serving(Project.load(folder / "examples" / "own"), grpc_port=0, http_port=0) as running,
        running.inference() as stub,
    ):
        assert ask(stub, "2") == ([b"good", b"bad"], "2")
        for line in beside:
            run(folder, line)
            if line.startswith("trimtab load"):
                found = outputs(stub.ModelInfer(request("tokens", ids=np.array([[5, 0, 0], [6, 7, 8]]))))
                assert found["logit"].shape == (2,)
        assert ask(stub) == ([b"good", b"bad"], "2")
        assert ask(stub, "careful")[1] == "1"
        index = {model.name: model.state for model in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models}
        assert index == {"sentiment": "READY", "tokens": "UNAVAILABLE"}
