"""NVIDIA's client, unmodified, over both transports: everything that it can ask of gRPC and HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trimtab._native import HAS_FRONT

from .world import Running, publish, serving, write_project

TRANSPORTS = ["grpcio", pytest.param("native", marks=pytest.mark.skipif(not HAS_FRONT, reason="no native front"))]


@pytest.fixture(scope="module", params=TRANSPORTS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    project = write_project(
        tmp_path_factory.mktemp("triton") / "project", sections={}, tail="[security]\nshared_memory = true\n"
    )
    publish(project, 1, verdict="initial")
    with serving(project, transport=request.param) as started:
        yield started


@pytest.fixture(scope="module")
def seen(running: Running) -> dict[str, Any]:
    script = Path(__file__).with_name("triton_extensions_session.py")
    done = subprocess.run(
        [sys.executable, str(script), running.grpc, running.http],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_callbacks_compression_and_asyncio_give_the_plain_answer(seen: dict[str, Any]) -> None:
    plain = seen["plain"]
    assert np.array(plain).shape == (2, 1)
    assert seen["compressed"] == plain
    assert seen["callbacks"] == [plain] * 8
    assert seen["aio"]["answers"] == [plain] * 8


def test_a_stream_goes_on_after_an_error(seen: dict[str, Any]) -> None:
    stream = seen["stream"]
    assert stream["good"] == {str(number): seen["plain"] for number in range(20) if number != 7}
    assert len(stream["errors"]) == 1
    assert "code" in stream["errors"][0]
    assert seen["aio"]["streamed"] == [seen["plain"]] * 4
    assert len(seen["aio"]["errors"]) == 1


@pytest.mark.parametrize("kind", ["shared", "http_shared"])
def test_shared_memory_both_ways(seen: dict[str, Any], kind: str) -> None:
    shared = seen[kind]
    assert shared["answer"] == seen["plain"]
    assert "data" in shared["status"]
    assert "data" not in shared["after"]
    taken, beyond, elsewhere, cuda, gone = shared["errors"]
    assert "already" in taken
    assert "256 bytes" in beyond
    assert "key" in elsewhere
    assert "CUDA" in cuda
    assert '"data"' in gone


@pytest.mark.parametrize("kind", ["classes", "http_classes"])
def test_classes_have_value_index_and_label(seen: dict[str, Any], kind: str) -> None:
    assert seen[kind] == [f"{row[0]:.6f}:0:yes" for row in np.array(seen["plain"], np.float32).tolist()]


def test_settings_say_what_is_true(seen: dict[str, Any]) -> None:
    assert seen["http_log"] == {
        "log_error": True,
        "log_file": "",
        "log_format": "default",
        "log_info": True,
        "log_verbose_level": 0,
        "log_warning": True,
    }
    assert seen["log"]["settings"]["log_info"] == {"bool_param": True}
    assert seen["http_trace"] == {"trace_level": ["OFF"]}
    assert seen["trace"]["settings"]["trace_level"] == {"value": ["OFF"]}


def test_extensions_are_what_works(seen: dict[str, Any]) -> None:
    assert "system_shared_memory" in seen["http_extensions"]
    assert "classification" in seen["http_extensions"]
    assert "cuda_shared_memory" not in seen["http_extensions"]
    assert "logging" not in seen["http_extensions"], "changing them is for the admin socket"
    assert "trace" not in seen["http_extensions"]
