"""Versions that sleep: what they let go of, and that they are the same when they wake."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.models import runner
from trimtab.models.capturing import VersionRun
from trimtab.models.errors import VersionUnfit
from trimtab.models.flat import Flat
from trimtab.models.loading import Version, read_weights
from trimtab.models.publishing import publish_first, publish_weights
from trimtab.models.runner import pack_version, running
from trimtab.models.sleeping import Sleepers
from trimtab.models.tensors import TensorSource, TensorVersion, load_tensor_version
from trimtab.models.version import LoadedVersion, load_version, version_files
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore

from .machines import PretendMachine
from .programs import make_rows
from .test_graphs import version_on
from .test_tensor_graphs import ENTRY, ONE, TENSORS, inputs_of
from .test_tensors import project

MACHINES = ["pretend", pytest.param("cuda", marks=pytest.mark.gpu)]


def columns_on(machine: str) -> LoadedVersion:
    """With its weights in one buffer, as on a GPU."""
    version, _ = version_on(machine)
    if version.flat is None:
        object.__setattr__(version, "flat", Flat.adopt(version.module))
    return version


def graphed(sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch, machine: str, made: list[Any]) -> Any:
    """The loader of a server on that device, and in `made` the machines that it captured on."""
    real = runner._machine

    def chosen(device: torch.device) -> Any:
        made.append(PretendMachine() if machine == "pretend" else real(device))
        return made[-1]

    monkeypatch.setattr(runner, "_machine", chosen)
    nothing: Any = None
    settings = ModelSettings.model_construct()
    return running(
        sleepers,
        nothing,
        settings,
        nothing,
        device="cuda",
        threads=1,
        lockstep=False,
        tell=lambda _, text: made.append(text),
    )


@pytest.mark.parametrize("machine", MACHINES)
def test_weights_go_to_the_host_and_back_and_graphs_go(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version, made = columns_on(machine), list[Any]()
    sleepers = Sleepers(lambda _: version, never)
    load = graphed(sleepers, monkeypatch, machine, made)
    slab = slab_from_arrow(make_rows(20, seed=4), version.program.schema)
    assert load(1) is version
    expected, awake = version.predict(slab), version.bytes
    parameters = dict(version.module.named_parameters())
    graphs, buffer = weakref.ref(staged(version).graphs), weakref.ref(flat_of(version).data)
    gc.disable()
    try:
        assert sleepers.put(version) == "host"
        assert (graphs(), buffer()) == (None, None)
    finally:
        gc.enable()
    assert version.asleep
    assert version.bytes == 0
    assert flat_of(version).data.device.type == "cpu"
    assert flat_of(version).data.is_pinned() == (machine == "cuda")
    sleepers.wake(version, load)
    assert not version.asleep
    assert version.bytes == awake
    assert len(made) == 2  # captured anew
    flat_of(version).check()
    for name, parameter in version.module.named_parameters():
        assert parameter is parameters[name]
        assert parameter.device.type == version.device.type
    np.testing.assert_array_equal(version.predict(slab), expected)


def test_graphs_that_others_run_by_are_there_on_waking(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, made = columns_on("pretend"), columns_on("pretend"), list[Any]()
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.mul_(2)
    versions = {1: one, 2: other}
    sleepers = Sleepers(versions.__getitem__, never)
    load = graphed(sleepers, monkeypatch, "pretend", made)
    slab = slab_from_arrow(make_rows(20, seed=4), one.program.schema)
    expected = [load(number).predict(slab) for number in (1, 2)]
    captured = [machine.captured for machine in made]
    assert captured[1:] == [0]
    sleepers.put(one)
    np.testing.assert_array_equal(other.predict(slab), expected[1])
    sleepers.wake(one, load)
    assert [machine.captured for machine in made] == [*captured, 0]  # nothing was captured for it
    for _ in range(2):
        np.testing.assert_array_equal(one.predict(slab), expected[0])
        np.testing.assert_array_equal(other.predict(slab), expected[1])


@pytest.mark.parametrize("machine", MACHINES)
def test_tensors_sleep_in_the_host_and_wake_with_graphs(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source, made = published(tmp_path), source_of(tmp_path), list[Any]()
    version = load_tensor_version(store, 1, source, "cpu" if machine == "pretend" else machine)
    if version.flat is None:
        object.__setattr__(version, "flat", Flat.adopt(version.module))
    sleepers = Sleepers(lambda _: version, never)
    load = graphed(sleepers, monkeypatch, machine, made)
    assert load(1) is version
    inputs = inputs_of(version, 5)
    expected, awake = version.call(inputs, 5), version.bytes
    run = weakref.ref(version._staged)  # type: ignore[attr-defined]
    gc.disable()
    try:
        assert sleepers.put(version) == "host"
        assert run() is None
    finally:
        gc.enable()
    assert version.bytes == 0
    sleepers.wake(version, load)
    assert version.bytes == awake
    assert len(made) == 2
    for found, wanted in zip(version.call(inputs, 5), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_without_a_device_of_its_own_a_version_is_freed_and_loaded_again(tmp_path: Path) -> None:
    store, source = published(tmp_path), source_of(tmp_path)
    sleepers = Sleepers(lambda number: load_tensor_version(store, number, source), partial(read_weights, store))
    version = sleepers(1)
    assert isinstance(version, TensorVersion)
    inputs, size = inputs_of(version, 5), version.bytes
    expected = version.call(inputs, 5)
    assert sleepers.put(version) == "disk"
    assert sum(p.numel() for p in version.module.parameters()) == 0
    assert version.bytes == 0
    sleepers.wake(version, sleepers)
    assert (version.asleep, version.bytes) == (False, size)
    sleepers.put(version)
    sleepers.wake(version, sleepers)
    for found, wanted in zip(version.call(inputs, 5), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_tied_weights_come_back_tied(tmp_path: Path) -> None:
    code = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.register_buffer("a", torch.ones(3))
        self.register_buffer("b", self.a)
    def forward(self, x):
        return self.two(self.one(x)) + self.a * self.b
"""
    version = plain_version(tmp_path, code)
    inputs = {"x": torch.randn(4, 3)}
    expected = version.call(inputs, 4)
    store = VersionStore(project(tmp_path, code, tensors=ONE % ("FP32", "3", "FP32")).model_state().versions)
    sleepers = Sleepers(lambda _: version, partial(read_weights, store))
    sleepers.put(version)
    sleepers.wake(version, sleepers)
    assert version.module.get_submodule("one").weight is version.module.get_submodule("two").weight
    np.testing.assert_array_equal(version.call(inputs, 4)[0], expected[0])


def test_files_are_not_trusted_on_waking_either(tmp_path: Path) -> None:
    store, source = published(tmp_path), source_of(tmp_path)
    sleepers = Sleepers(lambda number: load_tensor_version(store, number, source), partial(read_weights, store))
    version = sleepers(1)
    sleepers.put(version)
    weights = store.path(1) / "weights.safetensors"
    weights.chmod(0o600)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    store.path(1).chmod(0o700)
    weights.write_bytes(bytes(data))
    with pytest.raises(VersionUnfit):
        sleepers.wake(version, sleepers)
    assert version.asleep
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    sleepers.wake(version, sleepers)
    assert not version.asleep


def test_other_weights_than_those_that_fell_asleep_are_refused(tmp_path: Path) -> None:
    made = project(tmp_path, ENTRY, tensors=TENSORS)
    store, source = published(tmp_path), source_of(tmp_path)
    first = load_tensor_version(store, 1, source)
    changed = {name: torch.ones_like(value) for name, value in first.module.state_dict().items()}
    publish_weights(made, made.model(), store, save(changed), "")
    sleepers = Sleepers(lambda _: first, partial(read_weights, store))
    sleepers.put(first)
    object.__setattr__(first, "number", 2)
    with pytest.raises(VersionUnfit, match="other weights than when it was loaded"):
        sleepers.wake(first, sleepers)
    assert first.asleep
    assert sum(p.numel() for p in first.module.parameters()) == 0
    object.__setattr__(first, "number", 1)
    sleepers.wake(first, sleepers)


def test_strides_and_what_no_file_has_stay(tmp_path: Path) -> None:
    code = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3).t())
        self.register_buffer("scale", torch.full((4,), 3.0), persistent=False)
    def forward(self, x):
        return x @ self.weight * self.scale
"""
    version = plain_version(tmp_path, code)
    store = VersionStore(project(tmp_path, code, tensors=ONE % ("FP32", "3", "FP32")).model_state().versions)
    inputs, weight = {"x": torch.randn(4, 3)}, version.module.get_parameter("weight")
    expected, strides = version.call(inputs, 4), weight.stride()
    sleepers = Sleepers(lambda _: version, partial(read_weights, store))
    for _ in range(2):
        sleepers.put(version)
        sleepers.wake(version, sleepers)
        assert version.module.get_parameter("weight") is weight
        assert weight.stride() == strides
        np.testing.assert_array_equal(version.call(inputs, 4)[0], expected[0])


def test_columns_are_freed_and_read_again(tmp_path: Path) -> None:
    version, _ = version_on("pretend")
    files = version_files(version.module, version.program, version.reference)
    store = VersionStore(tmp_path / "versions")
    store.publish(1, files, version.manifest.model_copy(update={"version": 1}))
    loaded = load_version(store, 1)
    slab = slab_from_arrow(make_rows(20, seed=4), loaded.program.schema)
    run = pack_version(loaded, 24)
    expected = loaded.predict(slab)
    if run is not None:
        loaded.use(run)
    sleepers = Sleepers(partial(load_version, store), partial(read_weights, store))
    assert sleepers.put(loaded) == "disk"
    assert (loaded.module.size(), loaded.bytes) == (0, 0)
    sleepers.wake(loaded, sleepers)
    np.testing.assert_array_equal(loaded.predict(slab), expected)


def test_no_memory_on_waking_leaves_it_asleep_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    version = columns_on("pretend")
    slab = slab_from_arrow(make_rows(20, seed=4), version.program.schema)
    expected = version.predict(slab)
    sleepers = Sleepers(lambda _: version, never)
    sleepers.put(version)
    with monkeypatch.context() as patch:
        patch.setattr(Flat, "empty", staticmethod(out_of_memory))
        with pytest.raises(torch.OutOfMemoryError):
            sleepers.wake(version, sleepers)
    assert version.asleep
    sleepers.wake(version, sleepers)
    np.testing.assert_array_equal(version.predict(slab), expected)


def test_no_memory_on_the_host_leaves_it_awake_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    version, made = columns_on("pretend"), list[Any]()
    sleepers = Sleepers(lambda _: version, never)
    graphed(sleepers, monkeypatch, "pretend", made)(1)
    slab = slab_from_arrow(make_rows(20, seed=4), version.program.schema)
    expected, run = version.predict(slab), staged(version)
    monkeypatch.setattr(Flat, "empty", staticmethod(out_of_memory))
    with pytest.raises(torch.OutOfMemoryError):
        sleepers.put(version)
    assert not version.asleep
    assert staged(version) is run
    np.testing.assert_array_equal(version.predict(slab), expected)


def never(_: Version) -> None:
    raise AssertionError("nothing is to be read")


def out_of_memory(*_: Any, **__: Any) -> Flat:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_load_on_another_thread_is_not_taken_for_waking() -> None:
    """A candidate is staged while a version of the same number, or another one, wakes."""
    version, other = columns_on("pretend"), columns_on("pretend")
    sleepers = Sleepers(lambda _: other, never)
    sleepers.put(version)
    found: list[Version] = []

    def waking(number: int) -> Version:
        thread = threading.Thread(target=lambda: found.append(sleepers(number)))
        thread.start()
        thread.join()
        return sleepers(number)

    sleepers.wake(version, waking)
    assert found == [other]
    assert not version.asleep


def test_moving_a_buffer_keeps_tensors_and_values() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    module[1].register_parameter("tied", module[0].bias)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flat = Flat.adopt(module)
    held, old = dict(module.named_parameters()), flat.data
    flat.move("cpu")
    assert flat.data.data_ptr() != old.data_ptr()
    old.fill_(0xFF)
    flat.check()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(value is held[name] for name, value in module.named_parameters())
    with torch.no_grad():
        held["0.bias"].fill_(7)
    assert torch.equal(flat.tensors()["1.tied"], torch.full((4,), 7.0))


def published(folder: Path) -> VersionStore:
    made = project(folder, ENTRY, tensors=TENSORS)
    store = VersionStore(made.model_state().versions)
    if not store.numbers():
        publish_first(made, made.model(), store)
    return store


def plain_version(folder: Path, code: str, number: int = 0) -> TensorVersion:
    made = project(folder, code, tensors=ONE % ("FP32", "3", "FP32"))
    store = VersionStore(made.model_state().versions)
    number = number or publish_first(made, made.model(), store).version
    return load_tensor_version(store, number, TensorSource.of(made.directory, made.model()))


def source_of(folder: Path) -> TensorSource:
    made = project(folder, ENTRY, tensors=TENSORS)
    return TensorSource.of(made.directory, made.model())


def staged(version: LoadedVersion) -> VersionRun:
    found: VersionRun = version._staged  # type: ignore[attr-defined]
    return found


def flat_of(version: LoadedVersion) -> Flat:
    assert version.flat is not None
    return version.flat
