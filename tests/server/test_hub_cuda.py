"""CUDA shared memory through the hub: which requests fail with a device, what waits for its copies, and for how many.

That its regions do what those of system shared memory do is in test_hub_forms.py. The driver pretends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trimtab._native import CudaDriver
from trimtab.protos.v1 import inference_pb2 as pb

from ..shared_memory.places import Places, SystemPlace
from ..shared_memory.pretended import Pretended
from .test_hub_forms import INVALID, Bench, parameters, place, request, strings

UNAVAILABLE = 14
ILLEGAL_ADDRESS, INVALID_HANDLE = 700, 400


class OnDevices(Places):
    """Places of a driver that takes orders."""

    def __init__(self, pretended: Pretended) -> None:
        self.driver = CudaDriver(pretended.library)
        self.exporter = pretended.exporter
        self._made = []


class World:
    """A hub, the region "r" on device 0, "other" on device 1, and "s" in system shared memory, 4096 bytes each."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pretended = Pretended(folder, monkeypatch.setenv)
        self.bench = Bench(OnDevices(self.pretended))
        self.other, self.system = self.pretended.allocate(4096, 1), SystemPlace(4096)
        assert self.other.register(self.bench.memory, "other", 4096)
        assert self.system.register(self.bench.memory, "s", 4096)

    def close(self) -> None:
        self.system.free()
        self.pretended.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.close()


def to(region: str, offset: int = 0) -> Any:
    """A request whose output y goes to a region."""
    asked = request(outputs=("y",))
    place(asked.outputs[0], 24, offset, region)
    return asked


def test_one_request_may_use_regions_of_every_kind(world: World) -> None:
    bench = world.bench
    bench.put(8, np.array([1.0, 5.0], "<f4").tobytes())
    world.other.write(100, strings(b"Riga", b"Oslo!"))
    asked = request({"size": 8, "offset": 8}, {"size": 17, "offset": 100, "region": "other"}, outputs=("y", "n", "s"))
    place(asked.outputs[0], 24, 1000)
    place(asked.outputs[1], 16, 0, "s")
    place(asked.outputs[2], 17, 200, "other")
    response = bench.ask(asked)
    assert list(response.raw_output_contents) == [b"", b"", b""]
    assert [parameters(output)["shared_memory_region"] for output in response.outputs] == ["r", "s", "other"]
    assert np.frombuffer(bench.place.read(1000, 24), "<f4").tolist() == [1, 2, -1, 5, 10, -5]
    assert np.frombuffer(world.system.read(0, 16), "<i8").tolist() == [4, 5]
    assert world.other.read(200, 17) == strings(b"Riga", b"Oslo!")


def test_a_request_waits_for_all_its_inputs_at_once_and_a_batch_for_all_its_outputs(world: World) -> None:
    bench = world.bench
    bench.put(0, np.array([1.0, 5.0], "<f4").tobytes() + strings(b"Riga", b"Oslo!"))
    for number in range(3):
        asked = request({"size": 8}, {"size": 17, "offset": 8}, outputs=("y", "s"))
        place(asked.outputs[0], 24, 100 + 100 * number)
        place(asked.outputs[1], 17, 150 + 100 * number)
        bench.submit(asked)
    assert world.pretended.waits() == [2, 2, 2]
    bench.step()
    assert [status for status, *_ in bench.answers(3)] == [0, 0, 0]
    assert world.pretended.waits() == [2, 2, 2, 6]
    assert world.pretended.log().count("stream") == 1
    for number in range(3):
        assert np.frombuffer(bench.place.read(100 + 100 * number, 8), "<f4").tolist() == [1, 2]


def test_a_request_whose_inputs_are_on_a_lost_gpu_is_unavailable(world: World) -> None:
    bench = world.bench
    world.pretended.order("cuMemcpyDtoHAsync_v2", ILLEGAL_ADDRESS)
    bench.submit(request({"size": 8}))
    ((status, _, message),) = bench.answers()
    assert status == UNAVAILABLE
    assert "the GPU is lost to this server, which restarts" in message
    world.pretended.no_order()
    bench.submit(request({"size": 8, "region": "other"}), in_stream=True)
    ((status, answer, _),) = bench.answers()
    assert status == 0
    assert "the GPU is lost" in pb.ModelStreamInferResponse.FromString(answer).error_message
    assert bench.hub.statistics("m")["dropped"]["unavailable"] == 2
    assert list(bench.ask(request({"size": 8, "region": "s"})).outputs[0].shape) == [2, 3]


def test_a_request_whose_inputs_cannot_be_copied_is_refused(world: World) -> None:
    for call in ("cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"):
        world.pretended.order(call, INVALID_HANDLE)
        assert "invalid resource handle" in world.bench.refused(request({"size": 8}))
        world.pretended.no_order()
    assert list(world.bench.ask(request({"size": 8})).outputs[0].shape) == [2, 3]


@pytest.mark.parametrize("call", ["cuMemcpyHtoDAsync_v2", "cuStreamSynchronize"])
@pytest.mark.parametrize(("code", "expected"), [(ILLEGAL_ADDRESS, UNAVAILABLE), (INVALID_HANDLE, INVALID)])
def test_outputs_that_cannot_be_copied_fail_the_requests_that_want_them_there(
    world: World, call: str, code: int, expected: int
) -> None:
    bench = world.bench
    for asked in (request(), to("r"), to("s"), to("other", 100), to("r", 100)):
        bench.submit(asked)
    bench.submit(to("r", 200), in_stream=True)
    world.pretended.order(call, code)
    bench.step()
    found = bench.answers(6)
    assert [status for status, *_ in found] == [0, expected, 0, expected, expected, 0]
    assert "restarts" in found[1][2] if code == ILLEGAL_ADDRESS else "invalid resource handle" in found[1][2]
    assert pb.ModelStreamInferResponse.FromString(found[5][1]).error_message
    assert np.frombuffer(world.system.read(0, 12), "<f4").tolist() == [1, 2, -1]
    statistics = bench.hub.statistics("m")["versions"][1]
    assert (statistics["success"][0], statistics["fail"][0]) == (2, 4)


def test_a_request_that_does_not_fit_fails_alone_among_those_on_a_device(world: World) -> None:
    small = request(outputs=("y",))
    place(small.outputs[0], 23)
    for asked in (to("r", 100), small, to("r", 200)):
        world.bench.submit(asked)
    world.bench.step()
    assert [status for status, *_ in world.bench.answers(3)] == [0, INVALID, 0]
    assert world.bench.place.read(100, 24) == world.bench.place.read(200, 24)


def test_submitting_does_not_hold_the_interpreter_while_inputs_are_copied(world: World) -> None:
    """Otherwise this thread would never get to let the copy go on."""
    reached, go = world.pretended.wait_in("cuStreamSynchronize")
    submitting = threading.Thread(target=world.bench.submit, args=(request({"size": 8}),))
    submitting.start()
    reached.read_bytes()
    world.pretended.no_order()
    go.write_bytes(b"")
    submitting.join()
    world.bench.step()
    assert world.bench.answers()[0][0] == 0


def test_answering_does_not_hold_the_interpreter_while_outputs_are_copied(world: World) -> None:
    world.bench.submit(to("r"))
    reached, go = world.pretended.wait_in("cuStreamSynchronize")
    answering = threading.Thread(target=world.bench.step)
    answering.start()
    reached.read_bytes()
    assert world.bench.place.unregister(world.bench.memory, "r"), "nor is the region's name kept from others"
    world.pretended.no_order()
    go.write_bytes(b"")
    answering.join()
    assert world.bench.answers()[0][0] == 0
    assert np.frombuffer(world.bench.place.read(0, 12), "<f4").tolist() == [1, 2, -1]
    assert world.pretended.log()[-2:] == ["close", "release 0"]
