"""Tensors in shared memory of either kind and outputs as classes, through the hub: values against NumPy, hostile places
refused."""

from __future__ import annotations

import itertools
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab._native import BatchPolicy, Hub, LocalOrigin, Schema, Slab, TensorSchema, TensorSlab
from trimtab.protos.v1 import inference_pb2 as pb

from ..shared_memory.places import KINDS, Places, SystemPlace, places_of

OUTPUTS = [("y", "FP32", [3]), ("n", "INT64", []), ("s", "BYTES", [])]
LABELS = {"y": ["red", "", "blü"]}
INVALID = 3


class Bench:
    """A hub with a model of columns, "m" (a, city), and one of tensors, "t" (IN), and 8192 bytes that a client shares,
    of which the region "r" is the first half."""

    def __init__(self, places: Places, *, shared: bool = True) -> None:
        self.memory = places.memory(4096)
        self.hub = Hub(self.memory) if shared else Hub()
        self.hub.add_model("m", Schema(["a", "city"], ["real", "string"], 0), OUTPUTS, BatchPolicy(), labels=LABELS)
        self.hub.add_model("t", TensorSchema([("IN", "FP32", [2])]), [("OUT", "FP32", [2])], BatchPolicy())
        for name in ("m", "t"):
            self.hub.install(name, 1, [1], {})
        self.origin = LocalOrigin(self.hub)
        self.place = places.make(8192)
        self.place.write(0, bytes(8192))
        assert self.place.register(self.memory, "r", 4096)
        self.token = 0

    def put(self, at: int, data: bytes) -> None:
        self.place.write(at, data)

    def submit(self, request: Any, **options: Any) -> None:
        self.token += 1
        self.origin.submit(self.token, request.SerializeToString(), None, **options)

    def answers(self, count: int = 1) -> list[tuple[int, bytes, str]]:
        found: list[tuple[int, bytes, str]] = []
        while len(found) < count:
            assert select.select([self.origin], [], [], 30)[0]
            found += [rest for _, *rest in sorted(self.origin.drain())]  # type: ignore[misc]
        return found

    def step(self) -> None:
        """y = (a, 2a, -a), n = the length of the city, s = the city; OUT = 2 IN."""
        batch = self.hub.take(10.0)
        assert batch is not None
        if isinstance(batch.slab, TensorSlab):
            batch.answer("w", [batch.slab.array(0) * 2])
            return
        assert isinstance(batch.slab, Slab)
        a = batch.slab.reals(0)
        offsets, text = batch.slab.strings(1)
        cities = [text[i:j].tobytes() for i, j in itertools.pairwise(offsets)]
        lengths = np.diff(offsets).astype(np.int64)
        batch.answer("w", [np.stack([a, 2 * a, -a], 1), lengths, cities])

    def ask(self, request: Any, **options: Any) -> Any:
        self.submit(request, **options)
        self.step()
        ((status, answer, message),) = self.answers()
        assert status == 0, message
        return pb.ModelInferResponse.FromString(answer)

    def refused(self, request: Any) -> str:
        self.submit(request)
        ((status, _, message),) = self.answers()
        assert status == INVALID
        return message


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with places_of(request.param, tmp_path) as places:
        yield Bench(places)


@pytest.fixture
def of_system(tmp_path: Path) -> Iterator[Bench]:
    with places_of("system", tmp_path) as places:
        yield Bench(places)


def place(tensor: Any, size: Any, offset: Any = None, region: Any = "r") -> None:
    for key, value in (("region", region), ("byte_size", size), ("offset", offset)):
        if value is None:
            continue
        parameter = tensor.parameters[f"shared_memory_{key}"]
        if isinstance(value, str):
            parameter.string_param = value
        else:
            parameter.int64_param = value


def request(a: Any = (1.0, 5.0), city: Any = (b"Riga", b"Oslo!"), *, outputs: tuple[str, ...] = ()) -> Any:
    """Values, or a place (size, offset) of the region "r"."""
    made = pb.ModelInferRequest(model_name="m")
    for name, datatype, values in (("a", "FP32", a), ("city", "BYTES", city)):
        tensor = made.inputs.add(name=name, datatype=datatype, shape=[2])
        if isinstance(values, dict):
            place(tensor, **values)
        elif datatype == "FP32":
            made.raw_input_contents.append(np.array(values, "<f4").tobytes())
        else:
            made.raw_input_contents.append(strings(*values))
    for name in outputs:
        made.outputs.add(name=name)
    return made


def strings(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def parameters(tensor: Any) -> dict[str, Any]:
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in tensor.parameters.items()}


# --- inputs


def test_inputs_are_read_from_shared_memory(bench: Bench) -> None:
    plain = bench.ask(request())
    bench.put(100, np.array([1.0, 5.0], "<f4").tobytes())
    bench.put(200, strings(b"Riga", b"Oslo!"))
    a, city = {"size": 8, "offset": 100}, {"size": 17, "offset": 200}
    for asked in (request(a, city), request(a), request(city=city)):
        response = bench.ask(asked)
        assert list(response.raw_output_contents) == list(plain.raw_output_contents)


def test_an_input_of_a_tensor_model_is_read_from_shared_memory(bench: Bench) -> None:
    bench.put(0, np.arange(4, dtype="<f4").tobytes())
    asked = pb.ModelInferRequest(model_name="t")
    place(asked.inputs.add(name="IN", datatype="FP32", shape=[2, 2]), 16)
    assert np.frombuffer(bench.ask(asked).raw_output_contents[0], "<f4").tolist() == [0, 2, 4, 6]


def test_values_are_those_of_the_moment_when_the_request_came(bench: Bench) -> None:
    bench.put(0, np.array([1.0, 5.0], "<f4").tobytes())
    bench.submit(request({"size": 8}))
    bench.put(0, np.array([np.nan, -1.0], "<f4").tobytes())
    assert bench.place.unregister(bench.memory, "r")
    bench.place.free()
    bench.step()
    ((status, answer, _),) = bench.answers()
    assert status == 0
    assert np.frombuffer(pb.ModelInferResponse.FromString(answer).raw_output_contents[0], "<f4")[0] == 1.0


def test_what_lies_in_shared_memory_is_checked_as_any_input(bench: Bench) -> None:
    bench.put(0, strings(b"x", b"\xff") + b"\xff\xff\xff\xff")
    assert "UTF-8" in bench.refused(request(city={"size": 10}))
    assert "strings" in bench.refused(request(city={"size": 9}))
    bench.put(0, strings(b"x", b"y") + b"\xff\xff\xff\xff")
    assert "after the last" in bench.refused(request(city={"size": 14}))
    assert "8 bytes" in bench.refused(request({"size": 12}))


BIG = 2**63 - 1


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ({"size": 8, "region": "nope"}, "nope"),
        ({"size": 8, "region": None}, "shared_memory_region"),
        ({"size": 8, "region": ""}, "shared_memory_region"),
        ({"size": None}, "shared_memory_byte_size"),
        ({"size": -8}, "integer from 0"),
        ({"size": 8, "offset": -1}, "integer from 0"),
        ({"size": "8"}, "integer from 0"),
        ({"size": 8, "region": 7}, "name of a region"),
        ({"size": 8, "offset": 4089}, "within its 4096"),
        ({"size": 8, "offset": BIG}, "within its 4096"),
        ({"size": BIG, "offset": 8}, "within its 4096"),
        ({"size": BIG, "offset": BIG}, "within its 4096"),
        ({"size": 4097}, "within its 4096"),
    ],
)
def test_a_place_outside_is_refused(bench: Bench, where: dict[str, Any], named: str) -> None:
    assert named in bench.refused(request(where))
    asked = request(outputs=("y",))
    place(asked.outputs[0], **where)
    assert named in bench.refused(asked)


def test_offsets_that_wrap_around_are_refused(bench: Bench) -> None:
    for asked in (request({"size": 8}), request(outputs=("y",))):
        tensor = asked.outputs[0] if asked.outputs else asked.inputs[0]
        place(tensor, 8)
        tensor.parameters["shared_memory_offset"].uint64_param = 2**64 - 4
        assert "within its 4096" in bench.refused(asked)


def test_inputs_in_shared_memory_are_bounded_together(bench: Bench) -> None:
    assert bench.place.register(bench.memory, "all", 8192)
    asked = request({"size": 4000}, {"size": 97})
    assert "at most 4096 bytes" in bench.refused(asked)
    assert "at most 4096 bytes" in bench.refused(request({"size": 8192, "region": "all"}))


def test_contents_beside_a_place_are_refused(bench: Bench) -> None:
    asked = request({"size": 8})
    asked.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
    assert "both" in bench.refused(asked)
    asked = request({"size": 8})
    asked.raw_input_contents.append(b"x")
    assert "came 2" in bench.refused(asked)


def test_an_unknown_parameter_of_shared_memory_is_refused(bench: Bench) -> None:
    asked = request()
    asked.inputs[0].parameters["shared_memory_size"].int64_param = 8
    assert "shared_memory_size" in bench.refused(asked)


def test_without_shared_memory_a_place_is_refused(tmp_path: Path) -> None:
    with places_of("system", tmp_path) as places:
        bench = Bench(places, shared=False)
        asked = request(outputs=("y",))
        place(asked.outputs[0], 8)
        for refused in (request({"size": 8}), asked):
            assert "[security] shared_memory" in bench.refused(refused)


# --- outputs


def test_outputs_are_written_into_shared_memory(bench: Bench) -> None:
    asked = request(outputs=("s", "y", "n"))
    place(asked.outputs[0], 100, 50)
    place(asked.outputs[1], 24, 1000)
    response = bench.ask(asked)
    assert list(response.raw_output_contents) == [b"", b"", np.array([4, 5], "<i8").tobytes()]
    assert [list(output.shape) for output in response.outputs] == [[2], [2, 3], [2]]
    assert parameters(response.outputs[0]) == {
        "shared_memory_region": "r",
        "shared_memory_byte_size": 17,
        "shared_memory_offset": 50,
    }
    content = bench.place.read(0, 8192)
    assert content[50:67] == strings(b"Riga", b"Oslo!")
    assert content[67:1000] == bytes(933)
    assert np.frombuffer(content[1000:1024], "<f4").tolist() == [1, 2, -1, 5, 10, -5]


def test_an_output_that_does_not_fit_fails_its_request_alone(bench: Bench) -> None:
    small = request(outputs=("y",))
    place(small.outputs[0], 23)
    for asked in (request(), small, request()):
        bench.submit(asked)
    bench.step()
    found = bench.answers(3)
    assert [status for status, *_ in found] == [0, INVALID, 0]
    assert "at least 24 bytes" in found[1][2]
    statistics = bench.hub.statistics("m")["versions"][1]
    assert (statistics["success"][0], statistics["fail"][0]) == (2, 1)


def test_a_region_in_use_stays_until_its_request_is_answered(bench: Bench) -> None:
    asked = request(outputs=("y",))
    place(asked.outputs[0], 24)
    bench.submit(asked)
    assert bench.place.unregister(bench.memory, "r")
    bench.step()
    ((status, _, message),) = bench.answers()
    assert status == 0, message
    assert np.frombuffer(bench.place.read(0, 12), "<f4").tolist() == [1, 2, -1]
    assert "registered one" in bench.refused(asked)


def test_a_region_is_closed_once_nobody_uses_it(of_system: Bench) -> None:
    assert isinstance(of_system.place, SystemPlace)
    asked = request(outputs=("y",))
    place(asked.outputs[0], 24)
    of_system.submit(asked)
    of_system.memory.clear()
    of_system.step()
    assert of_system.answers()[0][0] == 0
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)]
    assert str(of_system.place.path) not in opened


def _is_link(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_an_object_cut_off_before_the_answer_fails_its_request(of_system: Bench) -> None:
    assert isinstance(of_system.place, SystemPlace)
    asked = request(outputs=("y",))
    place(asked.outputs[0], 24)
    of_system.submit(asked, in_stream=True)
    os.truncate(of_system.place.path, 10)
    of_system.step()
    ((status, answer, _),) = of_system.answers()
    assert status == 0
    assert "shorter" in pb.ModelStreamInferResponse.FromString(answer).error_message
    assert of_system.place.path.stat().st_size == 10


# --- classes


def classes(response: Any, output: int = 0) -> list[list[str]]:
    raw, found = response.raw_output_contents[output], []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    assert response.outputs[output].datatype == "BYTES"
    return np.array(found, object).reshape(list(response.outputs[output].shape)).tolist()  # type: ignore[no-any-return]


def classified(k: int, *, output: str = "y", a: Any = (1.0, -5.0)) -> Any:
    asked = request(a, outputs=(output,))
    asked.outputs[0].parameters["classification"].int64_param = k
    return asked


def test_classes_are_the_largest_of_each_row(of_system: Bench) -> None:
    response = of_system.ask(classified(2))
    assert classes(response) == [
        ["2.000000:1", "1.000000:0:red"],
        ["5.000000:2:blü", "-5.000000:0:red"],
    ]


def test_more_classes_than_there_are_is_all(of_system: Bench) -> None:
    response = of_system.ask(classified(1000))
    assert list(response.outputs[0].shape) == [2, 3]


def test_no_classes_are_the_values(of_system: Bench) -> None:
    assert of_system.ask(classified(0)).outputs[0].datatype == "FP32"


def test_an_output_of_one_value_has_one_class(of_system: Bench) -> None:
    assert classes(of_system.ask(classified(3, output="n"))) == [["4:0"], ["5:0"]]


def test_equal_values_keep_their_order_and_nan_goes_last(of_system: Bench) -> None:
    response = of_system.ask(classified(3, a=(0.0, np.nan)))
    assert [[text.split(":")[1] for text in row] for row in classes(response)] == [["0", "1", "2"], ["0", "1", "2"]]


@pytest.mark.parametrize("value", [-1, "2", 0.5, True])
def test_a_number_of_classes_that_is_none_is_refused(of_system: Bench, value: Any) -> None:
    asked = request(outputs=("y",))
    parameter = asked.outputs[0].parameters["classification"]
    kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
    setattr(parameter, kind, value)
    assert "classification" in of_system.refused(asked)


def test_classes_of_strings_or_in_shared_memory_or_of_inputs_are_refused(of_system: Bench) -> None:
    assert "BYTES" in of_system.refused(classified(1, output="s"))
    both = classified(1)
    place(both.outputs[0], 100)
    assert "classification" in of_system.refused(both)
    asked = request()
    asked.inputs[0].parameters["classification"].int64_param = 1
    assert "outputs" in of_system.refused(asked)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=5), st.integers(1, 6))
def test_classes_against_a_sort(rows: list[list[int]], k: int) -> None:
    hub = Hub()
    hub.add_model("t", TensorSchema([("IN", "INT32", [4])]), [("OUT", "INT32", [2, 2])], BatchPolicy())
    hub.install("t", 1, [1], {})
    origin = LocalOrigin(hub)
    asked = pb.ModelInferRequest(model_name="t", raw_input_contents=[np.array(rows, "<i4").tobytes()])
    asked.inputs.add(name="IN", datatype="INT32", shape=[len(rows), 4])
    asked.outputs.add(name="OUT").parameters["classification"].int64_param = k
    origin.submit(0, asked.SerializeToString(), None)
    batch = hub.take(10.0)
    assert batch is not None
    assert isinstance(batch.slab, TensorSlab)
    batch.answer("w", [batch.slab.array(0).reshape(-1, 2, 2)])
    assert select.select([origin], [], [], 30)[0]
    ((_, status, answer, message),) = origin.drain()
    assert status == 0, message
    expected = [[f"{row[i]}:{i}" for i in sorted(range(4), key=lambda i, row=row: (-row[i], i))][:k] for row in rows]  # type: ignore[misc]
    assert classes(pb.ModelInferResponse.FromString(answer)) == expected
