"""A model that stalls: its own requests are refused, the others are served on, and it comes back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from trimtab.protos.v1 import inference_pb2 as pb

from . import own
from .world import Running, serving


@contextlib.contextmanager
def stalled(folder: Path) -> Iterator[tuple[Running, Any]]:
    """A server in which `gated` has just been given up, and a stub."""
    project = own.write(folder, own.model("gated", "Gated"), own.TEXTS, server="stall_seconds = 0.5")
    with serving(project) as running, running.inference() as stub:
        (folder / "armed").touch()
        code, text = refusal(lambda: stub.ModelInfer(own.request("gated", x=own.numbers(-1)), timeout=60))
        assert code == "UNAVAILABLE"
        assert "a batch has taken more than 0.5 s" in text
        yield running, stub


def answered(stub: Any, request: Any) -> Any:
    """The answer, once the model takes requests again."""
    for _ in range(3000):
        try:
            return stub.ModelInfer(request, timeout=60)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(0.01)
    raise AssertionError("the model does not come back")


def refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details() or ""


def test_the_others_are_served_and_it_comes_back(tmp_path: Path) -> None:
    with stalled(tmp_path / "project") as (running, stub):
        for _ in range(3):
            assert own.outputs(stub.ModelInfer(own.request("texts", text=[b"ab"])))["back"] == [b"ba"]
            assert refusal(lambda: stub.ModelInfer(own.request("gated", x=own.numbers(1))))[0] == "UNAVAILABLE"
        assert not stub.ModelReady(pb.ModelReadyRequest(name="gated")).ready
        assert stub.ModelReady(pb.ModelReadyRequest(name="texts")).ready
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        index = {model.name: model for model in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models}
        assert (index["gated"].state, index["gated"].reason) == ("UNAVAILABLE", "it stalls")
        (tmp_path / "project" / "open").touch()
        assert own.outputs(answered(stub, own.request("gated", x=own.numbers(-1))))["y"].tolist() == [0.0]
        assert running.stop() == 0


def test_a_server_with_a_model_that_stalls_for_ever_stops(tmp_path: Path) -> None:
    with stalled(tmp_path / "project") as (running, stub):
        assert own.outputs(stub.ModelInfer(own.request("texts", text=[b"ab"])))["back"] == [b"ba"]
        assert running.stop() == 0
