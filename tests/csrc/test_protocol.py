"""The protocol against tritonclient's copy of it: every name, number and type; and messages in both directions."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trimtab._native import Schema, Slab, decode_infer, encode_infer_response

HERE = Path(__file__).parent


def run_script(name: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """The output of a script beside this file, in a process where tritonclient may register its own descriptors."""
    command = [sys.executable, "-W", "ignore", str(HERE / name), *arguments]
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    described: dict[str, Any] = json.loads(run_script("describe_protocol.py", "trimtab.protos.v1.inference_pb2"))
    return described


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    modules = ["tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2"]
    described: dict[str, Any] = json.loads(run_script("describe_protocol.py", *modules))
    return described


def test_every_method_of_triton_is_there(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["methods"] == theirs["methods"]
    assert len(ours["methods"]) == 20


def test_every_message_has_tritons_fields_or_reserves_their_numbers(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    for name, message in ours["messages"].items():
        expected = theirs["messages"][name]["fields"]
        left_out = {field: spec for field, spec in expected.items() if field not in message["fields"]}
        kept = {field: spec for field, spec in expected.items() if field in message["fields"]}
        assert message["fields"] == kept, name
        assert {spec["number"] for spec in left_out.values()} <= set(message["reserved"]), name


def test_only_the_model_configuration_leaves_fields_out(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    shorter = {
        name
        for name, message in ours["messages"].items()
        if message["fields"].keys() != theirs["messages"][name]["fields"].keys()
    }
    assert shorter == {"inference.ModelConfig", "inference.ModelInstanceGroup"}


def test_enumerations_are_tritons(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, values in ours["enums"].items():
        assert values == theirs["enums"][name], name


SCORES = np.array([[0.25], [np.nan], [1.0]], np.float32)
COUNTS = np.array([3, -1, 2**62], np.int64)


@pytest.fixture(scope="module")
def exchange() -> dict[str, Any]:
    """A call of tritonclient: the bytes that it sent, and what it made of our answer."""
    outputs = [("probability", "FP32", SCORES), ("count", "INT64", COUNTS)]
    body = encode_infer_response("flights", "7", "id", "a" * 64, "request", outputs)
    exchanged: dict[str, Any] = json.loads(run_script("triton_exchange.py", stdin=body))
    return exchanged


def test_a_request_of_tritonclient_is_decoded(exchange: dict[str, Any]) -> None:
    schema = Schema(["age", "member", "visits", "town"], ["real", "boolean", "integer", "string"])
    request = decode_infer(bytes.fromhex(exchange["request"]))
    assert (request.model_name, request.model_version, request.id) == ("flights", "3", "é-1")
    assert request.requested_outputs == ["probability"]
    assert request.parameters == {"trimtab_time_us": 1_700_000_000_000_000, "note": "ü"}
    assert request.check(schema) == 3
    assert request.time_us == 1_700_000_000_000_000
    slab = Slab(schema)
    request.append_to(slab)
    np.testing.assert_array_equal(slab.reals(0), np.array([1.5, np.nan, -0.0], np.float32))
    np.testing.assert_array_equal(slab.reals(1), [1, 0, 1])
    np.testing.assert_array_equal(slab.integers(2), [2**53 + 1, -1, 0])
    offsets, text = slab.strings(3)
    assert (offsets.tolist(), text.tobytes()) == ([0, 7, 7, 11], "ZürichÎle".encode())


def test_tritonclient_reads_an_answer(exchange: dict[str, Any]) -> None:
    answer = exchange["answer"]
    assert answer["model_version"] == "7"
    assert answer["parameters"] == {"trimtab_weights": "a" * 64, "trimtab_request_id": "request"}
    assert answer["outputs"]["probability"] == ["float32", [3, 1], SCORES.tobytes().hex()]
    assert answer["outputs"]["count"] == ["int64", [3], COUNTS.tobytes().hex()]
