"""Versions of tensors that share one set of graphs; and that nothing which graphs read is let go before them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trimtab.models import capturing, runner, sharing
from trimtab.models.flat import Flat
from trimtab.models.runner import running
from trimtab.models.tensor_graphs import KnownTensors, VersionTensors, graph_tensors
from trimtab.models.tensors import TensorVersion
from trimtab.server.memory import sizes_of
from trimtab.store.files import sha256_file
from trimtab.store.settings import ModelSettings

from .machines import PretendMachine
from .test_tensor_graphs import ENTRY, FORWARD, MACHINES, ONE, TENSORS, inputs_of, machine_for, plain, version_on
from .test_tensors import first, project

MOST = 9
FLOATS = ("FP32", "3", "FP32")
PAIRS = list[tuple[TensorVersion, VersionTensors]]


def numbered(version: TensorVersion, number: int) -> TensorVersion:
    """As that number, with weights of that seed; in one buffer wherever they are."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in version.module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    flat = version.flat or Flat.adopt(version.module)
    return replace(version, number=number, flat=flat)


def three(machine: str, folder: Path, code: str = ENTRY, tensors: str = TENSORS, **how: Any) -> PAIRS:
    known: KnownTensors = {}
    versions = [numbered(version_on(machine, folder / str(number), code, tensors), number) for number in (1, 2, 3)]
    return [(version, graph_tensors(version, MOST, machine_for(version), known=known, **how)) for version in versions]


def check(version: TensorVersion, run: VersionTensors, rows: int, near: float = 1e-5) -> None:
    inputs = inputs_of(version, rows, rows)
    found = run.call(inputs, rows)
    for ours, theirs in zip(found, version.call_eagerly(inputs, rows), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=near, atol=near)


@pytest.mark.parametrize("machine", MACHINES)
def test_each_version_answers_by_its_own_weights(machine: str, tmp_path: Path) -> None:
    pairs = three(machine, tmp_path)
    assert len({id(run.graphs) for _, run in pairs}) == 1
    for version, run in [*pairs, *reversed(pairs), pairs[1], pairs[0]]:
        check(version, run, 5)


@pytest.mark.parametrize("machine", MACHINES)
def test_also_in_a_lower_precision(machine: str, tmp_path: Path) -> None:
    pairs = three(machine, tmp_path, FORWARD.format("return x * self.weight"), ONE % FLOATS, precision="fp16")
    assert len({id(run.graphs) for _, run in pairs}) == 1
    assert all(run.bytes == run.lowered > 0 for _, run in pairs)
    for version, run in [*pairs, *reversed(pairs), pairs[1], pairs[0]]:
        check(version, run, 5, 10 * capturing.TOLERANCE["fp16"])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> PAIRS:
    return three("pretend", tmp_path_factory.mktemp("kept"))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, MOST)), min_size=1, max_size=20))
def test_weights_are_copied_where_another_version_was_before(kept: PAIRS, asked: list[tuple[int, int]]) -> None:
    graphs = kept[0][1].graphs
    check(*kept[0], 1)
    before, last, changes = graphs.renewals, 0, 0
    for which, rows in asked:
        check(*kept[which], rows)
        changes += which != last
        last = which
    assert graphs.renewals - before == changes


def test_other_code_has_graphs_of_its_own(tmp_path: Path) -> None:
    """Though it computes the same: what differs may show on rows that nobody made up."""
    known: KnownTensors = {}
    forward = "return x * self.weight"
    codes = [forward, f"{forward}  # edited", forward]
    runs = [
        graph_tensors(numbered(plain(tmp_path / str(n), code), n), MOST, PretendMachine, known=known)
        for n, code in enumerate(codes)
    ]
    assert len(known) == 2
    assert runs[0].graphs is runs[2].graphs is not runs[1].graphs
    assert all(run.shared is not None for run in runs)


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"limit": 1 << 20}, {"most": MOST - 1}], ids=str)
def test_what_was_asked_for_in_another_way_has_graphs_of_its_own(other: dict[str, Any], tmp_path: Path) -> None:
    known: KnownTensors = {}
    for n, how in enumerate([{}, other]):
        most = how.get("most", MOST)
        rest = {key: value for key, value in how.items() if key != "most"}
        graph_tensors(numbered(plain(tmp_path / str(n)), n), most, PretendMachine, known=known, **rest)
    assert len(known) == 2


BUILT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("limit", torch.tensor(100.0))
        {init}

    def forward(self, x):
        {forward}

    {more}

class Model:
    def build(self):
        self.net = Net()
        return self.net

    def predict(self, y):
        {predict}
"""


def built(folder: Path, number: int, **parts: str) -> TensorVersion:
    """A version whose entry keeps the module that it builds."""
    given = {"init": "pass", "forward": "return x * self.weight", "more": "", "predict": "return y", **parts}
    code = BUILT
    for name, value in given.items():
        code = code.replace(f"{{{name}}}", value)
    return version_on("pretend", folder / str(number), code, ONE % FLOATS)


STRANGE = {
    # Numbers and tensors that were made of weights when they were first asked for.
    "a number folded": (
        {"forward": "return x * self.weight * self.kept", "init": "self.kept = 1.0"},
        lambda module, number: setattr(module, "kept", float(module.weight.sum())),
    ),
    "a tensor folded": (
        {"forward": "return x * self.weight * self.kept", "init": "self.kept = 1.0"},
        lambda module, number: setattr(module, "kept", module.weight.detach().sum().clone()),
    ),
    # What has no effect on any row that is made up.
    "a number that is no weight": (
        {"forward": "return (x * self.weight).clamp(max=self.most)", "init": "self.most = 1.0"},
        lambda module, number: setattr(module, "most", 1000.0 + number),
    ),
    "a tensor that is no weight": (
        {"forward": "return torch.minimum(x * self.weight, self.most)", "init": "self.most = torch.tensor(1.0)"},
        lambda module, number: setattr(module, "most", torch.tensor(1000.0 + number)),
    ),
    "another branch": (
        {"forward": "return x * self.weight if self.kind == 1 else self.weight * x", "init": "self.kind = 0"},
        lambda module, number: setattr(module, "kind", number),
    ),
    # Tensors that a copy of the module does not have.
    "a function of the module itself": (
        {"forward": "return self.scale(x)", "init": "self.scale = lambda x: x * self.weight"},
        lambda module, number: None,
    ),
    "weights that are replaced": (
        {"forward": "self.weight.data = self.weight.data.clamp(-9, 9); return x * self.weight"},
        lambda module, number: None,
    ),
    # A state between two batches.
    "a count": (
        {"forward": "self.limit.add_(0.0); return x * self.weight"},
        lambda module, number: None,
    ),
}


@pytest.mark.parametrize(("parts", "change"), STRANGE.values(), ids=STRANGE)
def test_versions_that_compute_something_else_have_graphs_of_their_own(
    parts: dict[str, str], change: Callable[[Any, int], None], tmp_path: Path
) -> None:
    known: KnownTensors = {}
    runs = []
    for number in (1, 2):
        version = numbered(built(tmp_path, number, **parts), number)
        change(version.module, number)
        runs.append((version, graph_tensors(version, MOST, PretendMachine, known=known)))
    assert runs[0][1].graphs is not runs[1][1].graphs
    for version, run in (*runs, *runs):
        check(version, run, 4)


def test_hooks_that_refer_to_the_module_follow_the_weights(tmp_path: Path) -> None:
    """They are copied with it: the limit is the version's own, also once the first one sleeps, or has gone."""
    known: KnownTensors = {}
    versions = []
    for number in (1, 2):
        version = numbered(
            built(tmp_path, number, predict="return y.clamp(max=float('inf')).minimum(self.net.limit)"), number
        )
        version.module.limit.fill_(number / 10)
        version.use_staged(graph_tensors(version, MOST, PretendMachine, known=known))
        versions.append(version)
    assert versions[0].shared is versions[1].shared is not None
    rows = {"x": torch.full((3, 3), 1e6)}
    for version in (*versions, versions[0]):
        (found,) = version.call(rows, 3)
        assert found.max() == np.float32(version.number / 10)
    module = weakref.ref(versions[0].module)
    del version
    versions.pop(0)
    gc.collect()
    assert module() is None


class Scaled(torch.nn.Module):
    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.mean: Any = torch.tensor([0.5, 0.25, 0.125]) if constant else 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight - self.mean


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # torch's own, of torch
@pytest.mark.parametrize("constant", [False, True])
def test_exported_programs(constant: bool, tmp_path: Path) -> None:
    """A copy of one has its constants among its buffers, where the program itself has not."""
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    program = torch.export.export(Scaled(constant), (torch.ones(3, 3),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, tmp_path / "scaled.pt2")
    digest = sha256_file(tmp_path / "scaled.pt2")
    made = project(tmp_path, "", f'program = "scaled.pt2"\nsha256 = "{digest}"', ONE % FLOATS)
    known: KnownTensors = {}
    runs = []
    for number in (1, 2):
        version = numbered(first(made, min(number - 1, 1)), number)
        runs.append((version, graph_tensors(version, MOST, PretendMachine, known=known)))
    assert (runs[0][1].graphs is runs[1][1].graphs) == (not constant)
    for version, run in (*runs, *runs):
        check(version, run, 5)


def test_without_memory_for_a_copy_a_version_has_graphs_of_its_own(tmp_path: Path) -> None:
    tries: list[int] = []

    def machine() -> PretendMachine:
        tries.append(1)
        return PretendMachine(fail=torch.OutOfMemoryError("CUDA out of memory") if len(tries) == 1 else None)

    version = numbered(built(tmp_path, 1), 1)
    run = graph_tensors(version, MOST, machine, known={})
    assert run.shared is None
    check(version, run, 5)


def test_large_weights_are_not_copied_between_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = numbered(plain(tmp_path), 1)
    assert version.flat is not None
    monkeypatch.setattr(sharing, "SHARED_BYTES", version.flat.layout.size - 1)
    assert graph_tensors(version, MOST, PretendMachine, known={}).shared is None
    assert graph_tensors(replace(version, flat=None), MOST, PretendMachine, known={}).shared is None


def test_memory_of_what_is_shared_is_counted_once(tmp_path: Path) -> None:
    pairs = three("pretend", tmp_path)
    versions = {}
    for version, run in pairs:
        version.use_staged(run)
        versions[version.number] = version
    weights, graphs = pairs[0][0].bytes, pairs[0][1].graphs.bytes
    assert graphs > weights > 0
    assert sizes_of(versions) == {1: weights + graphs, 2: weights, 3: weights}
    del versions[1]
    assert sizes_of(versions) == {2: weights + graphs, 3: weights}


@pytest.mark.parametrize("shared", [True, False])
def test_a_version_goes_with_its_last_reference(shared: bool, tmp_path: Path) -> None:
    """At once, and not when somebody collects garbage: its weights are large. Also where others go on by the graphs
    that were captured for it."""
    known: KnownTensors | None = WeakValueDictionary() if shared else None
    versions = [numbered(version_on("pretend", tmp_path / str(number)), number) for number in (1, 2)]
    for version in versions:
        version.use_staged(graph_tensors(version, MOST, PretendMachine, known=known))
    first = versions.pop(0)
    flat, module = weakref.ref(first.flat), weakref.ref(first.module)
    graphs = weakref.ref(first._staged.graphs)  # type: ignore[attr-defined]
    gc.collect()
    gc.disable()
    try:
        del first, version
        assert [flat(), module()] == [None, None]
        assert (graphs() is None) == (not shared)
        check(versions[0], versions[0]._staged, 5)  # type: ignore[attr-defined]
        versions.clear()
        assert graphs() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("graphs", ["shared", "own"])
def test_a_server_s_versions_share_graphs_unless_they_are_not_to(
    graphs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_machine", lambda _: PretendMachine())
    nothing: Any = None
    told: list[str] = []
    load = running(
        lambda number: numbered(version_on("pretend", tmp_path / str(number)), number),
        nothing,
        ModelSettings.model_construct(graphs=graphs),
        nothing,
        device="cuda",
        threads=1,
        lockstep=False,
        tell=lambda _, text: told.append(text),
    )
    one, two = load(1), load(2)
    assert not told
    assert one.shared is two.shared
    assert (one.shared is None) == (graphs == "own")
