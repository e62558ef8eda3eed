"""Versions that run by graphs: on a pretended machine everywhere, on a real one where there is one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.models import runner
from trimtab.models.architectures import build
from trimtab.models.capturing import TOLERANCE, VersionRun, graph_version
from trimtab.models.compiling import example_of
from trimtab.models.flat import Flat
from trimtab.models.loading import Loader, Version
from trimtab.models.machine import CudaMachine, Machine
from trimtab.models.runner import running, ways
from trimtab.models.sharing import GraphError
from trimtab.models.tasks import Task
from trimtab.models.version import LoadedVersion, architecture_of, loaded, version_files
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings

from .machines import PretendMachine
from .programs import make_rows
from .test_version import CONFIG, PROGRAM, make

BINARY, MULTI = Task("binary", ("n", "y")), Task("multiclass", ("a", "b", "c"))
PRICE = Task("regression", (), 100.0, 5.0)
LINEAR: dict[str, Any] = {"kind": "linear"}
MACHINES = ["pretend", pytest.param("cuda", marks=pytest.mark.gpu)]
MOST = 24


def version_on(machine: str, task: Task = MULTI, config: dict[str, Any] = CONFIG) -> tuple[LoadedVersion, Machine]:
    """A version, and the machine that is to capture it."""
    program = PROGRAM
    files = version_files(build({**config, "seed": 5}, program, task), program, Sketch(program.sketch))
    manifest, _ = make(task, architecture=architecture_of(config, task))
    version = loaded(manifest, files, "cpu" if machine == "pretend" else machine)
    return version, PretendMachine() if machine == "pretend" else CudaMachine(version.device)


def filled(features: torch.Tensor, ids: torch.Tensor) -> Callable[[Any, Any], None]:
    def write(to_features: Any, to_ids: Any) -> None:
        to_features[:], to_ids[:] = features.numpy(), ids.numpy()

    return write


def eager(version: LoadedVersion, features: torch.Tensor, ids: torch.Tensor) -> Any:
    with torch.inference_mode():
        return version.run_eagerly(features.to(version.device), ids.to(version.device)).cpu().numpy()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("task", [BINARY, MULTI, PRICE], ids=lambda task: task.kind)
@pytest.mark.parametrize("config", [CONFIG, LINEAR], ids=["mlp", "linear"])
def test_every_number_of_rows_is_answered_as_eagerly(machine: str, task: Task, config: dict[str, Any]) -> None:
    version, on = version_on(machine, task, config)
    run = graph_version(version, MOST, on)
    for n in [*range(1, MOST + 1), 1, 3, MOST]:
        features, ids = example_of(version, n)
        found = run.predict(n, filled(features, ids))
        np.testing.assert_allclose(found, eager(version, features, ids), rtol=1e-5, atol=1e-6 * task.scale)


@pytest.mark.parametrize("machine", MACHINES)
def test_predictions_of_a_slab_and_its_sketch_are_those_without_graphs(machine: str) -> None:
    version, on = version_on(machine)
    slab = slab_from_arrow(make_rows(60, seed=4), version.program.schema)
    plain = Sketch(version.program.sketch)
    expected = version.predict(slab, plain, 5, 20)
    version.use_staged(graph_version(version, MOST, on))
    sketch = Sketch(version.program.sketch)
    np.testing.assert_allclose(version.predict(slab, sketch, 5, 20), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sketch.counts, plain.counts)
    # More rows than any graph takes: eagerly, as before.
    np.testing.assert_allclose(version.predict(slab)[5:20], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(version.predict(slab, None, 50), version.predict(slab)[50:], rtol=1e-5, atol=1e-6)


def test_rows_of_other_batches_are_not_there_any_more() -> None:
    """In a smaller bucket, what was a row's features may lie where ids are: no index may be made of it."""
    version, on = version_on("pretend")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain = version.module.forward_of()

    def forward(features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        seen.append((features.clone(), ids.clone()))
        return plain(features, ids)

    version.module.forward_of = lambda: forward  # type: ignore[method-assign]
    run = graph_version(version, 16, on)
    bad, ids = example_of(version, 16)
    assert np.isnan(run.predict(16, filled(torch.full_like(bad, float("nan")), ids))).all()
    for n in (9, 3, 1, 5):
        features, ids = example_of(version, n)
        found = run.predict(n, filled(features, ids))
        np.testing.assert_allclose(found, eager(version, features, ids), rtol=1e-5, atol=1e-6)
        given_features, given_ids = seen[-1]
        assert not given_features[n:].any()
        assert not given_ids[n:].any()


def test_the_header_says_how_many_rows_there_are() -> None:
    version, on = version_on("pretend")
    seen: list[int] = []

    class Reading(PretendMachine):
        def serve(self, given: Any, replay: Any, taken: Any) -> None:
            super().serve(given, replay, taken)
            seen.append(int(given[0][0][:8].view(torch.int64)[0]))

    run = graph_version(version, 8, Reading())
    seen.clear()
    for n in (1, 5, 8):
        run.predict(n, filled(*example_of(version, n)))
    assert seen == [1, 5, 8]
    assert isinstance(on, PretendMachine)


def test_answers_are_not_overwritten_by_the_next_batch() -> None:
    version, on = version_on("pretend")
    run = graph_version(version, 8, on)
    first = run.predict(4, filled(*example_of(version, 4)))
    kept = first.copy()
    run.predict(8, filled(*example_of(version, 8)))
    np.testing.assert_array_equal(first, kept)


def test_memory_is_counted() -> None:
    version, on = version_on("pretend")
    assert isinstance(on, PretendMachine)
    before = version.bytes
    run = graph_version(version, 64, on)
    version.use_staged(run)
    assert run.shared is None
    assert run.bytes == sum(on.allocated) + PretendMachine.POOL
    assert version.bytes == before + run.bytes
    assert on.captured == 7  # 64, 32, ..., 1


def test_numbers_of_rows_without_a_graph_are_refused() -> None:
    version, on = version_on("pretend")
    run = graph_version(version, 8, on)
    assert [run.holds(n) for n in (0, 1, 8, 9)] == [False, True, True, False]
    with pytest.raises(ValueError, match="1 to 8 rows, got 9"):
        run.predict(9, lambda *_: None)


@pytest.mark.parametrize("machine", MACHINES)
def test_weights_that_are_copied_over_are_the_graphs_own(machine: str) -> None:
    """Between two batches, under graphs that are there: every answer is of one set of weights."""
    version, on = version_on(machine)
    flat = version.flat or Flat.adopt(version.module)
    other = Flat.adopt(build({**CONFIG, "seed": 77}, PROGRAM, MULTI).eval().requires_grad_(False))
    first = Flat(flat.layout, flat.data.clone())
    run = graph_version(version, 8, on)
    features, ids = example_of(version, 5)
    answers = []
    for weights in (first, other, first, other):
        flat.copy_from(weights)
        if machine == "cuda":
            torch.cuda.current_stream().synchronize()
        answers.append(run.predict(5, filled(features, ids)))
        np.testing.assert_allclose(answers[-1], eager(version, features, ids), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(answers[0], answers[2])
    np.testing.assert_array_equal(answers[1], answers[3])
    assert not np.allclose(answers[0], answers[1])


def test_a_failure_while_writing_leaves_the_next_batch_right() -> None:
    version, on = version_on("pretend")
    run = graph_version(version, 8, on)

    def broken(*_: Any) -> None:
        raise RuntimeError("no rows")

    with pytest.raises(RuntimeError, match="no rows"):
        run.predict(3, broken)
    features, ids = example_of(version, 3)
    expected = eager(version, features, ids)
    np.testing.assert_allclose(run.predict(3, filled(features, ids)), expected, rtol=1e-5, atol=1e-6)


@cache
def small() -> tuple[LoadedVersion, VersionRun]:
    version, on = version_on("pretend", BINARY, LINEAR)
    return version, graph_version(version, 16, on)


@given(st.lists(st.integers(1, 16), min_size=1, max_size=20))
def test_batches_of_any_sizes_after_one_another(sizes: list[int]) -> None:
    version, run = small()
    for n in sizes:
        features, ids = example_of(version, n)
        expected = eager(version, features, ids)
        np.testing.assert_allclose(run.predict(n, filled(features, ids)), expected, rtol=1e-5, atol=1e-6)


def test_threads_take_turns() -> None:
    version, on = version_on("pretend")
    run = graph_version(version, 8, on)
    wrong: list[int] = []
    barrier = threading.Barrier(4)

    def work(n: int) -> None:
        features, ids = example_of(version, n)
        expected = eager(version, features, ids)
        barrier.wait()
        for _ in range(20):
            if not np.allclose(run.predict(n, filled(features, ids)), expected, rtol=1e-5, atol=1e-6):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 3, 4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- what cannot run by graphs


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("operation not permitted when stream is capturing\nmore"),
            "cannot be captured: RuntimeError: op",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "there is no memory left for its graphs"),
    ],
)
@pytest.mark.parametrize("at", [0, 3])
def test_captures_that_fail_say_why(error: Exception, reason: str, at: int) -> None:
    version, _ = version_on("pretend")
    with pytest.raises(GraphError, match=reason):
        graph_version(version, 8, PretendMachine(fail=error, at=at))


def test_a_fault_while_capturing_is_no_reason_to_run_eagerly() -> None:
    version, _ = version_on("pretend")
    fault = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(torch.AcceleratorError):
        graph_version(version, 8, PretendMachine(fail=fault))


def test_graphs_that_disagree_are_refused() -> None:
    version, _ = version_on("pretend")

    class Wrong(PretendMachine):
        def serve(self, given: Any, replay: Any, taken: Any) -> None:
            super().serve(given, replay, taken)
            if len(taken[0][0]) == 5:
                taken[0][0].add_(1e-2)

    with pytest.raises(GraphError, match=r"predictions on 5 made-up rows differ by more than 0.0001"):
        graph_version(version, 8, Wrong())


def test_networks_whose_rows_depend_on_one_another_are_refused() -> None:
    """Padding would be part of the answer, and the rows of other clients with it."""
    version, on = version_on("pretend")
    module = version.module
    plain = module.forward_of()
    module.forward_of = lambda: lambda x, i: plain(x - x.mean(0), i)  # type: ignore[method-assign]
    object.__setattr__(version, "run_eagerly", lambda x, i: version.task.predict(module.forward_of()(x, i)))
    with pytest.raises(GraphError, match="made-up rows differ"):
        graph_version(version, 8, on)


# --- precision and compiling


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("task", [BINARY, MULTI, PRICE], ids=lambda task: task.kind)
def test_lower_precision_is_near(machine: str, precision: str, task: Task) -> None:
    version, on = version_on(machine, task)
    run = graph_version(version, MOST, on, precision=precision)
    features, ids = example_of(version, 17)
    found, expected = run.predict(17, filled(features, ids)), eager(version, features, ids)
    assert run.bytes > graph_version(version, MOST, version_on(machine, task)[1]).bytes  # a copy of the weights
    assert found.dtype == np.float32
    assert not np.array_equal(found, expected)
    near = TOLERANCE[precision]
    np.testing.assert_allclose(found, expected, rtol=near, atol=near * task.scale)
    assert all(p.dtype == torch.float32 for p in version.module.parameters())


def test_weights_beyond_half_precision_are_refused_in_it() -> None:
    version, on = version_on("pretend", PRICE, LINEAR)
    with torch.no_grad():
        version.module.get_parameter("weight").fill_(1e6)
    with pytest.raises(GraphError, match=r"differ by more than 0.004 from the eager"):
        graph_version(version, 4, on, precision="fp16")
    graph_version(version, 4, on, precision="bf16")


def test_what_is_asked_for_is_tried_first() -> None:
    plain = ("fp32", False, False)
    assert ways("auto", "fp32") == [plain]
    assert ways("auto", "bf16") == [("bf16", False, False), plain]
    assert ways("compiled", "fp32") == [("fp32", True, False), plain]
    assert ways("compiled", "fp16") == [("fp16", True, False), ("fp16", False, False), plain]
    assert ways("auto", "fp32", "gpu") == [("fp32", False, True), plain]
    assert ways("auto", "bf16", "gpu") == [(p, False, c) for c in (True, False) for p in ("bf16", "fp32")]


@pytest.mark.gpu
def test_a_compiled_pass_is_captured() -> None:
    version, on = version_on("cuda")
    run = graph_version(version, 8, on, compiled=True)
    features, ids = example_of(version, 5)
    np.testing.assert_allclose(
        run.predict(5, filled(features, ids)), eager(version, features, ids), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("works", [True, False])
def test_compiling_is_asked_for_and_done_without(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def compiler(function: Any, **options: Any) -> Any:
        asked.append(options)
        if not works:
            raise RuntimeError("no compiler")
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    version, on = version_on("pretend")
    (text,) = served(version, monkeypatch, on, run="compiled")
    assert asked == [{"dynamic": True, "fullgraph": True}]
    if works:
        assert text.startswith("version 1 runs by graphs in fp32, compiled (")
    else:
        assert text.startswith("version 1 runs by graphs in fp32 (")
        assert text.endswith("; not by graphs in fp32, compiled: it cannot be captured: RuntimeError: no compiler")
    assert staged_of(version) is not None


def test_any_number_of_networks_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives up on a function that it had to compile eight times."""
    plain: Any = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: plain(function, backend="eager", **options))
    for width in range(5, 11):
        version, on = version_on("pretend", config={**CONFIG, "widths": [width]})
        graph_version(version, 4, on, compiled=True)


# --- what a server loads


def served(
    version: Version, monkeypatch: pytest.MonkeyPatch, machine: Machine, *, device: str = "cuda", **settings: Any
) -> list[str]:
    """Loads a version as a server on that device does; what was told."""
    told: list[str] = []
    monkeypatch.setattr(runner, "_machine", lambda _: machine)
    chosen = ModelSettings.model_construct(**settings)
    load: Loader = lambda _: version  # noqa: E731
    nothing: Any = None
    wrapped = running(
        load, nothing, chosen, nothing, device=device, threads=1, lockstep=False, tell=lambda _, text: told.append(text)
    )
    assert wrapped(1) is version
    return told


def staged_of(version: LoadedVersion) -> VersionRun | None:
    found: VersionRun | None = version._staged  # type: ignore[attr-defined]
    return found


def test_by_default_versions_run_by_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    version, on = version_on("pretend")
    assert served(version, monkeypatch, on) == []
    run = staged_of(version)
    assert run is not None
    assert run.holds(ModelSettings.model_construct().batching.max_batch_size)


def test_eager_versions_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    version, on = version_on("pretend")
    assert served(version, monkeypatch, on, run="eager") == []
    assert staged_of(version) is None


def test_what_cannot_be_captured_runs_eagerly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    version, _ = version_on("pretend")
    failing = PretendMachine(fail=RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture"))
    told = served(version, monkeypatch, failing, precision="bf16")
    assert staged_of(version) is None
    (text,) = told
    assert text.startswith("version 1 runs eagerly: not by graphs in bf16: it cannot be captured: RuntimeError: Cannot")
    assert "; not by graphs in fp32: " in text


def test_a_precision_that_is_too_low_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    version, on = version_on("pretend", PRICE, LINEAR)
    with torch.no_grad():
        version.module.get_parameter("weight").fill_(1e6)
    (text,) = served(version, monkeypatch, on, precision="fp16")
    assert text.startswith("version 1 runs by graphs in fp32 (")
    assert "not by graphs in fp16: predictions on" in text
    assert staged_of(version) is not None


def test_precision_is_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    version, on = version_on("pretend")
    told = served(version, monkeypatch, on, device="cpu", precision="bf16")
    assert told == ["version 1 runs in fp32: bf16 is for a GPU"]


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    from trimtab.store.errors import ProjectError

    text = '[[model]]\nname = "m"\ntask = "regression"\n{more}\n[[model.feature]]\nname = "x"\ntype = "real"\n'
    text += '[model.label]\ncolumn = "y"\n'
    for more, reason in (
        ('precision = "bf16"\nrun = "eager"', 'needs run = "auto" or "compiled"'),
        ('precision = "int8"', "precision"),
        ('run = "graphs"', "run"),
    ):
        (tmp_path / "trimtab.toml").write_text(text.format(more=more))
        with pytest.raises(ProjectError, match=reason):
            Project.load(tmp_path)


# --- the real machine


@pytest.mark.gpu
def test_graphs_of_several_versions_while_others_are_captured() -> None:
    """Answers of a version stay the same to the bit while others are warmed and captured beside it."""
    version, on = version_on("cuda", config={"kind": "mlp", "widths": [512, 512], "embedding": 16})
    run = graph_version(version, 64, on)
    features, ids = example_of(version, 64)
    expected = run.predict(64, filled(features, ids))
    others: list[VersionRun] = []
    done, failures = threading.Event(), list[BaseException]()

    def capture() -> None:
        try:
            for _ in range(5):
                other, machine = version_on("cuda", config={"kind": "mlp", "widths": [512, 512], "embedding": 16})
                others.append(graph_version(other, 64, machine))
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=capture)
    thread.start()
    differing = 0
    while not done.is_set():
        differing += not np.array_equal(run.predict(64, filled(features, ids)), expected)
    thread.join()
    assert not failures
    assert differing == 0
    assert len(others) == 5


@pytest.mark.gpu
def test_a_model_that_looks_at_its_values_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    version, on = version_on("cuda")
    plain = version.module.forward_of()

    def looking(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return plain(x, i) if float(x.sum()) < 1e30 else plain(-x, i)

    version.module.forward_of = lambda: looking  # type: ignore[method-assign]
    (text,) = served(version, monkeypatch, on, device="cuda")
    assert text.startswith("version 1 runs eagerly: ")
    features, ids = example_of(version, 3)
    # The device is in order afterwards.
    assert np.isfinite(eager(version, features, ids)).all()


@pytest.mark.gpu
def test_weights_on_a_gpu_lie_in_one_buffer() -> None:
    version, _ = version_on("cuda")
    assert version.flat is not None
    base = version.flat.data.data_ptr()
    assert all(base <= p.data_ptr() < base + version.flat.layout.size for p in version.module.parameters())


def test_features_are_written_where_they_are_copied_from() -> None:
    version, _ = version_on("pretend")
    slab = slab_from_arrow(make_rows(10, seed=4), version.program.schema)
    seen: list[Any] = []

    class Watching(PretendMachine):
        def serve(self, given: Any, replay: Any, taken: Any) -> None:
            seen.append(given[0][1].clone())
            super().serve(given, replay, taken)

    version.use_staged(graph_version(version, 16, Watching()))
    seen.clear()
    version.predict(slab)
    features, _ = CpuExecutor(version.program).run(slab)
    assert features.tobytes() in seen[0].numpy().tobytes()
