"""Versions that share one set of graphs: whoever asks for which, an answer is of one version's weights, all of them."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trimtab.kernels.sketch import Sketch
from trimtab.models import capturing, runner, sharing
from trimtab.models.architectures import build
from trimtab.models.capturing import Known, VersionRun, graph_version
from trimtab.models.compiling import example_of
from trimtab.models.flat import Flat
from trimtab.models.loading import Loader
from trimtab.models.machine import CudaMachine, Machine
from trimtab.models.runner import running
from trimtab.models.tasks import Task
from trimtab.models.version import LoadedVersion, architecture_of, loaded, version_files
from trimtab.server.memory import sizes_of
from trimtab.store.settings import ModelSettings

from .machines import PretendMachine
from .test_graphs import MACHINES, MULTI, PRICE, eager, filled
from .test_version import CONFIG, PROGRAM, make

MOST = 8


def version_of(machine: str, seed: int, task: Task = MULTI, config: dict[str, Any] = CONFIG) -> LoadedVersion:
    """A version with weights of that seed, which lie in one buffer wherever they are."""
    files = version_files(build({**config, "seed": seed}, PROGRAM, task), PROGRAM, Sketch(PROGRAM.sketch))
    manifest, _ = make(task, version=seed, architecture=architecture_of({**config, "seed": seed}, task))
    version = loaded(manifest, files, "cpu" if machine == "pretend" else machine)
    return version if version.flat is not None else replace(version, flat=Flat.adopt(version.module))


def machine_of(kind: str) -> Machine:
    return PretendMachine() if kind == "pretend" else CudaMachine(torch.device("cuda"))


def together(
    kind: str, seeds: list[int], known: Known | None = None, on: Machine | None = None, **how: Any
) -> list[tuple[LoadedVersion, VersionRun]]:
    known = {} if known is None else known
    on = on or machine_of(kind)
    versions = [version_of(kind, seed) for seed in seeds]
    return [(version, graph_version(version, MOST, on, known=known, **how)) for version in versions]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_version_answers_by_its_own_weights(machine: str, precision: str) -> None:
    pairs = together(machine, [1, 2, 3], precision=precision)
    assert len({id(run.graphs) for _, run in pairs}) == 1
    near = capturing.TOLERANCE[precision]
    answers = {}
    for version, run in [*pairs, *reversed(pairs), pairs[1], pairs[0]]:
        features, ids = example_of(version, 5)
        found = run.predict(5, filled(features, ids))
        np.testing.assert_allclose(found, eager(version, features, ids), rtol=near, atol=near)
        np.testing.assert_array_equal(found, answers.setdefault(version.number, found))
    assert len({answer.tobytes() for answer in answers.values()}) == 3


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, MOST)), min_size=1, max_size=30))
def test_weights_are_copied_where_another_version_was_before_and_only_there(asked: list[tuple[int, int]]) -> None:
    pairs = _three()
    graphs = pairs[0][1].graphs
    features, ids = example_of(pairs[0][0], 1)
    pairs[0][1].predict(1, filled(features, ids))
    before, last, changes = graphs.renewals, 0, 0
    for which, n in asked:
        version, run = pairs[which]
        features, ids = example_of(version, n)
        found = run.predict(n, filled(features, ids))
        np.testing.assert_allclose(found, eager(version, features, ids), rtol=1e-5, atol=1e-6)
        changes += which != last
        last = which
    assert graphs.renewals - before == changes


_KEPT: list[list[tuple[LoadedVersion, VersionRun]]] = []


def _three() -> list[tuple[LoadedVersion, VersionRun]]:
    if not _KEPT:
        _KEPT.append(together("pretend", [1, 2, 3]))
    return _KEPT[0]


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_that_ask_for_different_versions_get_whole_answers(machine: str) -> None:
    """Of four versions that every thread asks for in its own order."""
    pairs = together(machine, [1, 2, 3, 4])
    examples = [example_of(version, 3) for version, _ in pairs]
    expected = [[eager(version, *example) for example in examples] for version, _ in pairs]
    wrong: list[tuple[int, int]] = []
    barrier = threading.Barrier(4)

    def work(thread: int) -> None:
        order = np.random.default_rng(thread).integers(0, 4, (200, 2)).tolist()
        barrier.wait()
        for which, what in order:
            found = pairs[which][1].predict(3, filled(*examples[what]))
            if not np.allclose(found, expected[which][what], rtol=1e-4, atol=1e-5):
                wrong.append((which, what))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_capture_serves_all_of_a_shape() -> None:
    on = PretendMachine()
    known: Known = {}
    together("pretend", [1], known, on)
    captured, allocated = on.captured, len(on.allocated)
    together("pretend", [2, 3], known, on)
    assert (on.captured, len(on.allocated)) == (captured, allocated)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"most": MOST + 1},
        {"precision": "bf16"},
        {"config": {**CONFIG, "widths": [9]}},
        {"task": PRICE},
        {"config": {**CONFIG, "dropout": 0.25}},  # not in what is computed; files cannot tell
    ],
    ids=["none", "most", "precision", "widths", "task", "architecture"],
)
def test_other_shapes_have_graphs_of_their_own(other: dict[str, Any]) -> None:
    known: Known = {}
    on = PretendMachine()
    how = {"most": MOST} | {name: other[name] for name in ("most", "precision") if name in other}
    version = {name: value for name, value in other.items() if name not in how}
    first = graph_version(version_of("pretend", 1), MOST, on, known=known)
    second = graph_version(version_of("pretend", 2, **version), machine=on, known=known, **how)
    assert (first.graphs is second.graphs) == (not other)
    assert len(known) == 1 + bool(other)


def test_a_network_of_edited_code_has_graphs_of_its_own() -> None:
    """Though it answers alike: what differs may show on rows that nobody made up."""
    known: Known = {}
    versions = [version_of("pretend", seed) for seed in (1, 2, 3)]
    versions[1].module.code = "edited"
    runs = [graph_version(version, MOST, PretendMachine(), known=known) for version in versions]
    assert runs[0].graphs is runs[2].graphs is not runs[1].graphs


def test_what_was_folded_into_a_graph_is_noticed() -> None:
    """A network that makes numbers of its weights when the pass is built: their copy does not reach the graph."""
    known: Known = {}
    on = PretendMachine()
    runs = []
    for seed in (1, 2):
        version = version_of("pretend", seed)
        _fold(version)
        runs.append((version, graph_version(version, MOST, on, known=known)))
    assert runs[0][1].graphs is not runs[1][1].graphs
    for version, run in (*runs, *runs):
        features, ids = example_of(version, 4)
        np.testing.assert_allclose(
            run.predict(4, filled(features, ids)), eager(version, features, ids), rtol=1e-5, atol=1e-6
        )


def _fold(version: LoadedVersion) -> None:
    """Adds to the logits a number that is made of the weights once, as a constant of the forward pass."""
    kind = type(version.module)

    class Folding(kind):  # type: ignore[misc, valid-type]
        def forward_of(self) -> Any:
            plain = super().forward_of()
            shift = float(next(self.parameters()).detach().double().sum())
            return lambda x, i: plain(x, i) * (1.0 + abs(shift))

    version.module.__class__ = Folding
    forward, predict = version.module.forward_of(), version.task.predict
    object.__setattr__(version, "run_eagerly", lambda x, i: predict(forward(x, i)))


def test_a_network_that_cannot_be_copied_has_graphs_of_its_own() -> None:
    version = version_of("pretend", 1)
    version.module.lock = threading.Lock()  # type: ignore[assignment]
    run = graph_version(version, MOST, PretendMachine(), known={})
    assert run.shared is None
    features, ids = example_of(version, 4)
    np.testing.assert_allclose(
        run.predict(4, filled(features, ids)), eager(version, features, ids), rtol=1e-5, atol=1e-6
    )


def test_large_weights_are_not_copied_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    version = version_of("pretend", 1)
    assert version.flat is not None
    monkeypatch.setattr(sharing, "SHARED_BYTES", version.flat.layout.size - 1)
    assert graph_version(version, MOST, PretendMachine(), known={}).shared is None
    monkeypatch.setattr(sharing, "SHARED_BYTES", version.flat.layout.size)
    assert graph_version(version, MOST, PretendMachine(), known={}).shared is not None


def test_a_version_that_was_let_go_is_not_taken_for_a_later_one() -> None:
    """Neither by its buffer's identity nor by its address."""
    known: Known = {}
    on = PretendMachine()
    kept, run = together("pretend", [1], known, on)[0]
    graphs = run.graphs
    for seed in range(2, 12):
        pairs = together("pretend", [seed], known, on)
        del pairs
        gc.collect()
        features, ids = example_of(kept, 2)
        np.testing.assert_allclose(run.predict(2, filled(features, ids)), eager(kept, features, ids), rtol=1e-5)
    assert graphs.renewals >= 10


def test_a_copy_that_fails_leaves_no_half_of_it() -> None:
    """The next batch copies again, whichever version it is of."""
    (one, first), (two, second) = together("pretend", [1, 2])
    features, ids = example_of(one, 3)
    first.predict(3, filled(features, ids))
    assert second.weights is not None
    shared = first.graphs._weights
    assert shared is not None
    plain = shared.flat

    class Broken(Flat):
        def copy_from(self, other: Flat, *, non_blocking: bool = False) -> None:
            self.data[: self.layout.size // 2] = other.data[: self.layout.size // 2]
            raise RuntimeError("half way")

    broken = Broken(plain.layout, plain.data)
    shared.flat = broken
    with pytest.raises(RuntimeError, match="half way"):
        second.predict(3, filled(features, ids))
    shared.flat = plain
    np.testing.assert_allclose(first.predict(3, filled(features, ids)), eager(one, features, ids), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        second.predict(3, filled(features, ids)), eager(two, features, ids), rtol=1e-5, atol=1e-6
    )


def test_addresses_stay() -> None:
    (_, first), (two, second) = together("pretend", [1, 2])
    assert first.graphs._weights is not None
    weights = first.graphs._weights.flat
    before = [view.data_ptr() for view in weights.tensors().values()]
    second.predict(1, filled(*example_of(two, 1)))
    assert [view.data_ptr() for view in weights.tensors().values()] == before
    moved = next(iter(weights._held))[1]
    moved.data = moved.data.clone()
    with pytest.raises(Exception, match="has moved, and graphs may still read where it was"):
        first.predict(1, filled(*example_of(two, 1)))


@pytest.mark.parametrize("shared", [True, False])
def test_a_version_goes_with_its_last_reference(shared: bool) -> None:
    """At once, and not when somebody collects garbage: its weights are large."""
    known: Known | None = WeakValueDictionary() if shared else None
    versions = [version_of("pretend", seed) for seed in (1, 2)]
    for version in versions:
        version.use_staged(graph_version(version, MOST, PretendMachine(), known=known))
    first = versions.pop(0)
    flat, module = weakref.ref(first.flat), weakref.ref(first.module)
    gc.collect()
    gc.disable()
    try:
        del first, version
        assert [flat(), module()] == [None, None]
    finally:
        gc.enable()


# --- in the server


def test_memory_of_what_is_shared_is_counted_once() -> None:
    pairs = together("pretend", [1, 2, 3])
    versions = {}
    for version, run in pairs:
        version.use_staged(run)
        versions[version.number] = version
    weights = pairs[0][0].bytes
    graphs = pairs[0][1].graphs.bytes
    assert sizes_of(versions) == {1: weights + graphs, 2: weights, 3: weights}
    del versions[1]
    assert sizes_of(versions) == {2: weights + graphs, 3: weights}
    own = graph_version(pairs[1][0], MOST, PretendMachine())
    pairs[1][0].use_staged(own)
    assert sizes_of(versions) == {2: weights + own.graphs.bytes, 3: weights + graphs}


@pytest.mark.parametrize("graphs", ["shared", "own"])
def test_a_server_s_versions_share_graphs_unless_they_are_not_to(graphs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on = PretendMachine()
    monkeypatch.setattr(runner, "_machine", lambda _: on)
    nothing: Any = None
    load: Loader = lambda number: version_of("pretend", number)  # noqa: E731
    settings = ModelSettings.model_construct(graphs=graphs)
    told: list[str] = []
    tell: Callable[[int, str], None] = lambda _, text: told.append(text)  # noqa: E731
    wrapped = running(load, nothing, settings, nothing, device="cuda", threads=1, lockstep=False, tell=tell)
    one, two = wrapped(1), wrapped(2)
    assert isinstance(one, LoadedVersion)
    assert isinstance(two, LoadedVersion)
    assert not told
    if graphs == "own":
        assert one.shared is two.shared is None
        return
    assert one.shared is two.shared is not None
    captured = on.captured
    del one, two
    gc.collect()
    wrapped(3)
    assert on.captured == 2 * captured  # graphs go with the last version that ran by them


def test_warming_tries_each_graph_once() -> None:
    ((version, run),) = together("pretend", [1])
    version.use_staged(run)
    asked: list[int] = []
    plain = run.graphs.predict

    def noted(n: int, *rest: Any) -> Any:
        asked.append(n)
        return plain(n, *rest)

    run.graphs.predict = noted  # type: ignore[method-assign]
    version.warm(list(range(1, MOST + 1)))
    assert asked == [1, 2, 4, 8]


def test_known_graphs_may_be_forgotten_meanwhile() -> None:
    known: WeakValueDictionary[str, Any] = WeakValueDictionary()
    on = PretendMachine()
    together("pretend", [1], known, on)
    gc.collect()
    assert len(known) == 0
    kept = together("pretend", [2], known, on)
    assert len(known) == 1
    assert kept[0][1].shared is not None
