"""Versions of tensors that run by graphs: on a pretended machine everywhere, on a real one where there is one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimtab._native import TensorSlab
from trimtab.models import runner
from trimtab.models.machine import CudaMachine, Machine
from trimtab.models.publishing import publish_first
from trimtab.models.runner import running
from trimtab.models.sharing import GraphError
from trimtab.models.tensor_graphs import GRAPH_BYTES, VersionTensors, graph_tensors
from trimtab.models.tensors import DTYPES, TensorSource, TensorVersion, load_tensor_version
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore

from .machines import PretendMachine
from .test_tensors import project

MACHINES = ["pretend", pytest.param("cuda", marks=pytest.mark.gpu)]
MOST = 20

ENTRY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.layer = nn.Linear(6, 3)

    def forward(self, x, ids, flag):
        hidden = torch.cat([x.flatten(1), self.words(ids - 1).sum(1)], 1)
        score = self.layer(hidden)
        return {"best": score.argmax(1), "score": score * flag[:, None], "half": hidden.half()}

class Model:
    def build(self, shape):
        return Net()

    def example(self, rows):
        generator = torch.Generator().manual_seed(rows)
        return {
            "x": torch.randn(rows, 2, 1, generator=generator),
            "ids": torch.randint(1, 8, (rows, 3), generator=generator),
            "flag": torch.rand(rows, generator=generator) < 0.5,
        }
"""
TENSORS = """
input = [{name = "x", datatype = "FP32", dims = [2, 1]}, {name = "ids", datatype = "INT64", dims = [3]},
         {name = "flag", datatype = "BOOL", dims = []}]
output = [{name = "score", datatype = "FP32", dims = [3]}, {name = "best", datatype = "INT64", dims = []},
          {name = "half", datatype = "FP16", dims = [-1]}]
"""
ONE = """
input = [{name = "x", datatype = "%s", dims = [%s]}]
output = [{name = "y", datatype = "%s", dims = [-1]}]
"""
FORWARD = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        {}
"""


def version_on(machine: str, folder: Path, code: str = ENTRY, tensors: str = TENSORS) -> TensorVersion:
    made = project(folder, code, tensors=tensors)
    store = VersionStore(made.model_state().versions)
    number = publish_first(made, made.model(), store).version
    source = TensorSource.of(made.directory, made.model())
    return load_tensor_version(store, number, source, "cpu" if machine == "pretend" else machine)


def plain(folder: Path, forward: str = "return x * self.weight", datatypes: str = "FP32 FP32") -> TensorVersion:
    taken, gives = datatypes.split()
    return version_on("pretend", folder, FORWARD.format(forward), ONE % (taken, "3", gives))


def machine_for(version: TensorVersion) -> Callable[[], Machine]:
    return PretendMachine if version.device.type == "cpu" else lambda: CudaMachine(version.device)


def inputs_of(version: TensorVersion, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for name, datatype, dims in version.source.shape.inputs:
        shape = (rows, *dims)
        if datatype == "FP32":
            found[name] = torch.randn(shape, generator=generator)
        elif datatype == "BOOL":
            found[name] = torch.rand(shape, generator=generator) < 0.5
        else:
            found[name] = torch.randint(1, 8, shape, generator=generator)
    return found


def same(found: Any, expected: Any) -> None:
    assert [array.dtype for array in found] == [array.dtype for array in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_of_rows_is_answered_as_eagerly(machine: str, tmp_path: Path) -> None:
    version = version_on(machine, tmp_path)
    expected = {n: version.call(inputs_of(version, n, n), n) for n in range(1, MOST + 3)}
    run = graph_tensors(version, MOST, machine_for(version))
    version.use_staged(run)
    assert [run.holds(n) for n in (0, 1, MOST, MOST + 1)] == [False, True, True, False]
    for n in [*range(1, MOST + 3), 1, MOST]:
        same(version.call(inputs_of(version, n, n), n), expected[n])


@pytest.mark.parametrize("machine", MACHINES)
def test_rows_of_a_slab_and_of_a_part_of_it(machine: str, tmp_path: Path) -> None:
    version = version_on(machine, tmp_path)
    slab = TensorSlab(version.schema)
    slab.append_zeros(30)
    for position, value in enumerate(inputs_of(version, 30).values()):
        slab.array(position)[...] = value.numpy()
    expected, all_rows = version.run(slab, None, 3, 10), version.run(slab)
    version.use_staged(graph_tensors(version, MOST, machine_for(version)))
    same(version.run(slab, None, 3, 10), expected)
    same(version.run_in_parts(slab, MOST), all_rows)


def test_answers_are_not_overwritten_by_the_next_batch(tmp_path: Path) -> None:
    version = version_on("pretend", tmp_path)
    version.use_staged(graph_tensors(version, 8, PretendMachine))
    first = version.call(inputs_of(version, 4, 1), 4)
    kept = [array.copy() for array in first]
    version.call(inputs_of(version, 8, 2), 8)
    same(first, kept)


def test_padding_is_a_row_that_the_model_takes(tmp_path: Path) -> None:
    """Never 0 where ids begin at 1, and nothing of other batches; while capturing, too."""
    version = version_on("pretend", tmp_path)
    seen: list[dict[str, torch.Tensor]] = []
    module = version.module
    run_module = module.forward

    def watching(x: torch.Tensor, ids: torch.Tensor, flag: torch.Tensor) -> Any:
        seen.append({"x": x.clone(), "ids": ids.clone(), "flag": flag.clone()})
        assert int(ids.min()) >= 1
        assert int(ids.max()) <= 7
        return run_module(x, ids, flag)

    module.forward = watching
    run = graph_tensors(version, 16, PretendMachine)
    row = version.example(1)
    run.call(inputs_of(version, 16, 5), 16)
    for n in (9, 3, 5):
        run.call(inputs_of(version, n, n), n)
        for name, value in seen[-1].items():
            assert len(value) == 1 << (n - 1).bit_length()
            assert torch.equal(value[n:], row[name].expand_as(value[n:]))


def test_memory_is_counted(tmp_path: Path) -> None:
    version = version_on("pretend", tmp_path)
    machines: list[PretendMachine] = []

    def machine() -> Machine:
        machines.append(PretendMachine())
        return machines[-1]

    before = version.bytes
    version.use_staged(graph_tensors(version, 64, machine))
    (on,) = machines
    assert version.bytes == before + sum(on.allocated) + PretendMachine.POOL
    assert on.captured == 7


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 16), min_size=1, max_size=12))
def test_batches_of_any_sizes_after_one_another(sizes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    version, run = small(tmp_path_factory)
    for n in sizes:
        inputs = inputs_of(version, n, n)
        same([value.numpy() for value in run.call(inputs, n)], version.call(inputs, n))


_SMALL: list[tuple[TensorVersion, VersionTensors]] = []


def small(paths: pytest.TempPathFactory) -> tuple[TensorVersion, VersionTensors]:
    if not _SMALL:
        version = version_on("pretend", paths.mktemp("small"))
        _SMALL.append((version, graph_tensors(version, 16, PretendMachine)))
    return _SMALL[0]


def test_threads_take_turns(tmp_path: Path) -> None:
    version = version_on("pretend", tmp_path)
    run = graph_tensors(version, 8, PretendMachine)
    wrong: list[int] = []
    barrier = threading.Barrier(4)

    def work(n: int) -> None:
        inputs = inputs_of(version, n, n)
        expected = version.call(inputs, n)
        barrier.wait()
        for _ in range(20):
            found = [value.numpy() for value in run.call(inputs, n)]
            if not all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True)):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 3, 4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "FP16", "BF16", "FP64"])
def test_every_datatype_goes_in_and_out(datatype: str, tmp_path: Path) -> None:
    dtype = DTYPES[datatype]
    code = "from torch import nn\nimport torch\nclass Model:\n    def build(self): return nn.Identity()\n"
    code += f"    def example(self, rows): return {{'x': (torch.arange(rows * 3).reshape(rows, 3) % 5).to({dtype})}}\n"
    version = version_on("pretend", tmp_path, code, ONE % (datatype, "3", datatype))
    inputs = {"x": torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 1]]).to(dtype)}
    expected = version.call(inputs, 3)
    version.use_staged(graph_tensors(version, 4, PretendMachine))
    (found,) = version.call(inputs, 3)
    assert found.dtype == expected[0].dtype
    assert found.tolist() == expected[0].tolist()


# --- the bound on memory


def test_larger_batches_than_there_is_memory_for_run_eagerly(tmp_path: Path) -> None:
    version = plain(tmp_path)
    row = 2 * 12  # in and out
    run = graph_tensors(version, 1024, PretendMachine, limit=100 * row + PretendMachine.POOL)
    assert run.graphs.most == 64
    assert run.bytes <= 100 * row + PretendMachine.POOL
    version.use_staged(run)
    for n in (64, 65, 300):
        inputs = {"x": torch.randn(n, 3)}
        same(version.call(inputs, n), [inputs["x"].numpy() * np.array([1, 2, 3], np.float32)])


def test_a_pool_that_is_too_large_is_tried_with_fewer_rows(tmp_path: Path) -> None:
    version = plain(tmp_path)
    tried: list[int] = []

    class Large(PretendMachine):
        def capture(self, works: Any) -> Any:
            replays, _ = super().capture(works)
            tried.append(1 << (len(works) - 1))
            return replays, 100_000 * tried[-1]

    run = graph_tensors(version, 256, Large, limit=3_300_000)
    assert tried == [256, 128, 64, 32]
    assert run.graphs.most == 32
    with pytest.raises(GraphError, match="one row of it takes more than 50,000 bytes"):
        graph_tensors(version, 256, Large, limit=50_000)
    with pytest.raises(GraphError, match="one row of it takes more than 10 bytes"):
        graph_tensors(version, 256, Large, limit=10)


# --- what cannot run by graphs


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        ("return x - x.mean(0)", "3 made-up rows give 'y' that differs by more than 0.0001"),
        ("return x @ x.T", r"output 1 is torch.float32 \[24, 24\] for 24 rows, expected torch.float32 \[24, 1\]"),
        ("return x if len(x) < 9 else x.double().float()[:, :2]", r"output 1 is torch.float32 \[24, 2\]"),
        ("return x.numpy()", "output 'y' is no tensor"),
        ("return x + (1 // 0 if len(x) == 16 else 1)", "cannot be captured: ZeroDivisionError"),
    ],
)
def test_models_that_cannot_be_captured_say_why(forward: str, reason: str, tmp_path: Path) -> None:
    version = plain(tmp_path, forward)
    with pytest.raises(GraphError, match=reason):
        graph_tensors(version, 24, PretendMachine)


@pytest.mark.parametrize(
    ("tensors", "code", "reason"),
    [
        (ONE % ("FP32", "-1", "FP32"), "return x * 2", r"input 'x' has dimensions that vary: \[-1\]"),
        (ONE % ("INT64", "3", "INT64"), "return x - x[:1]", r"made-up rows are all the same, .* `example\(rows\)`"),
        (ONE % ("BYTES", "3", "FP32"), "return torch.ones(len(x), 1)", "input 'x' is texts"),
    ],
)
def test_inputs_that_no_graph_takes(tensors: str, code: str, reason: str, tmp_path: Path) -> None:
    version = version_on("pretend", tmp_path, FORWARD.format(code), tensors)
    with pytest.raises(GraphError, match=reason):
        graph_tensors(version, 8, PretendMachine)


def test_whole_numbers_without_an_example_need_none_where_nothing_is_padded(tmp_path: Path) -> None:
    version = plain(tmp_path, "return x + 1", "INT64 INT64")
    assert graph_tensors(version, 2, PretendMachine).graphs.most == 2


def test_an_example_of_another_shape(tmp_path: Path) -> None:
    code = "from torch import nn\nimport torch\nclass Model:\n    def build(self): return nn.Identity()\n"
    code += "    def example(self, rows): return {'x': torch.ones(min(rows, 9), 3)}"
    version = version_on("pretend", tmp_path, code, ONE % ("FP32", "3", "FP32"))
    with pytest.raises(GraphError, match=r"`example` of 16 rows has 'x' \[9, 3\], not \[16, 3\]"):
        graph_tensors(version, 16, PretendMachine)


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
def test_captures_that_fail_say_why(error: Exception, reason: str, tmp_path: Path) -> None:
    version = plain(tmp_path)
    with pytest.raises(GraphError, match=reason):
        graph_tensors(version, 8, lambda: PretendMachine(fail=error, at=2))


def test_a_fault_while_capturing_is_no_reason_to_run_eagerly(tmp_path: Path) -> None:
    version = plain(tmp_path)
    fault = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(torch.AcceleratorError):
        graph_tensors(version, 8, lambda: PretendMachine(fail=fault))


def test_other_whole_numbers_than_the_eager_ones_are_refused(tmp_path: Path) -> None:
    version = version_on("pretend", tmp_path)

    class Wrong(PretendMachine):
        def serve(self, given: Any, replay: Any, taken: Any) -> None:
            super().serve(given, replay, taken)
            taken[1][0].add_(1)

    with pytest.raises(GraphError, match="8 made-up rows give 'best' that is not the eager one"):
        graph_tensors(version, 8, Wrong)


# --- precision and compiling


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_near(machine: str, precision: str, tmp_path: Path) -> None:
    code = "import torch\nfrom torch import nn\nclass Model(nn.Module):\n    def __init__(self):\n"
    code += "        super().__init__()\n        self.layer = nn.Linear(3, 5)\n"
    code += "    def forward(self, x):\n        return self.layer(x).tanh()\n"
    version = version_on(machine, tmp_path, code, ONE % ("FP32", "3", "FP32"))
    run = graph_tensors(version, 8, machine_for(version), precision=precision)
    inputs = {"x": torch.randn(5, 3)}
    (expected,), (found,) = version.call(inputs, 5), run.call(inputs, 5)
    assert found.dtype == torch.float32
    assert not np.array_equal(found.numpy(), expected)
    np.testing.assert_allclose(found.numpy(), expected, rtol=3e-2, atol=3e-2)
    assert all(p.dtype == torch.float32 for p in version.module.parameters())


# --- what a server loads


def served(version: TensorVersion, monkeypatch: pytest.MonkeyPatch, machine: Machine, **chosen: Any) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(runner, "_machine", lambda _: machine)
    nothing: Any = None
    loaded = running(
        lambda _: version,
        nothing,
        ModelSettings.model_construct(**chosen),
        nothing,
        device="cuda",
        threads=1,
        lockstep=False,
        tell=lambda _, text: told.append(text),
    )
    assert loaded(1) is version
    return told


def staged_of(version: TensorVersion) -> VersionTensors | None:
    found: VersionTensors | None = version._staged  # type: ignore[attr-defined]
    return found


def test_by_default_versions_run_by_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = version_on("pretend", tmp_path)
    assert served(version, monkeypatch, PretendMachine()) == []
    assert staged_of(version) is not None


def test_what_cannot_be_captured_runs_eagerly_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = plain(tmp_path, "return x - x.mean(0)")
    (text,) = served(version, monkeypatch, PretendMachine())
    assert text.startswith("version 1 runs eagerly: not by graphs in fp32: ")
    assert staged_of(version) is None


def test_a_bound_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = ONE % ("FP32", "3, 128, 128", "FP32")
    version = version_on("pretend", tmp_path, FORWARD.format("return x.mean((2, 3))"), tensors)
    monkeypatch.setattr("trimtab.models.tensor_graphs.graph_tensors", bounded)
    (text,) = served(version, monkeypatch, PretendMachine())
    assert text.endswith(f"; batches of more than 8 rows run eagerly: graphs take at most {GRAPH_BYTES:,} bytes")


def bounded(*arguments: Any, **options: Any) -> VersionTensors:
    return graph_tensors(*arguments, **options, limit=2_000_000)


def test_a_compiler_that_is_not_there_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    version = version_on("pretend", tmp_path)
    monkeypatch.setattr(torch, "compile", compiler)
    (text,) = served(version, monkeypatch, PretendMachine(), run="compiled")
    assert text.startswith("version 1 runs by graphs in fp32 (")
    assert "not by graphs in fp32, compiled: it cannot be captured: RuntimeError: no compiler" in text


@pytest.mark.gpu
def test_a_compiled_pass_is_captured(tmp_path: Path) -> None:
    version = version_on("cuda", tmp_path)
    run = graph_tensors(version, 8, machine_for(version), compiled=True)
    inputs = inputs_of(version, 5)
    np.testing.assert_allclose(run.call(inputs, 5)[0].numpy(), version.call(inputs, 5)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_model_that_looks_at_its_values_runs_eagerly(tmp_path: Path) -> None:
    code = FORWARD.format("return x * self.weight if float(x.sum()) < 1e30 else x")
    version = version_on("cuda", tmp_path, code, ONE % ("FP32", "3", "FP32"))
    with pytest.raises(GraphError, match="cannot be captured"):
        graph_tensors(version, 8, machine_for(version))
    # The device is in order afterwards.
    assert np.isfinite(version.call({"x": torch.ones(3, 3)}, 3)[0]).all()
