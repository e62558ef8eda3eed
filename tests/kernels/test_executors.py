"""What every executor keeps to: one suite over the CPU's, the CUDA executor on a CPU that plays the GPU, and the CUDA
executor on a GPU, where there is one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from trimtab._native import Schema, Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.cuda import CudaExecutor
from trimtab.kernels.cuda_device import cuda_device
from trimtab.kernels.device import Executor
from trimtab.kernels.errors import ExecutorError
from trimtab.kernels.joint_spec import JointSpec
from trimtab.kernels.program import ColumnProgram, RealField, SketchSpec
from trimtab.kernels.reference import reference_joint, run_reference
from trimtab.kernels.sketch import Sketch

from tests.kernels.cuda_on_cpu.emulation import EmulatedDevice
from tests.kernels.programs import assert_same_sketch, bounds, numbers_program

Make = Callable[[ColumnProgram], Executor]


@pytest.fixture(params=["cpu", "cuda on the CPU", pytest.param("cuda", marks=pytest.mark.gpu)])
def executor_of(request: pytest.FixtureRequest) -> Make:
    if request.param == "cpu":
        return CpuExecutor
    if request.param == "cuda on the CPU":
        return lambda program: CudaExecutor(program, EmulatedDevice())
    device = cuda_device()
    if isinstance(device, str):
        pytest.skip(device)
    return lambda program: CudaExecutor(program, device)


@pytest.mark.parametrize("n", [255, 256, 257, 5000])
def test_rows_across_blocks(executor_of: Make, n: int) -> None:
    program, slab = numbers_program(n)
    sketch = Sketch(program.sketch)
    features, ids = executor_of(program).run(slab, sketch)
    expected, expected_ids, expected_sketch = run_reference(program, slab)
    assert (np.abs(features - expected) <= bounds(program, slab, expected)).all()
    np.testing.assert_array_equal(ids, expected_ids)
    assert_same_sketch(program, sketch, expected_sketch)


def test_same_calls_same_bits_from_any_thread(executor_of: Make) -> None:
    program, slab = numbers_program(5000)
    executor = executor_of(program)

    def work(_: int) -> tuple[bytes, bytes, bytes]:
        sketch = Sketch(program.sketch)
        features, ids = executor.run(slab, sketch)
        return features.tobytes(), ids.tobytes(), sketch.to_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(work, range(8)))) == 1


def test_start_and_stop(executor_of: Make) -> None:
    program, slab = numbers_program(600)
    executor = executor_of(program)
    features, ids = executor.run(slab)
    part, part_ids = executor.run(slab, None, 100, 450)
    assert part.tobytes() == features[100:450].tobytes()
    assert part_ids.tobytes() == ids[100:450].tobytes()
    assert executor.run(slab, None, 600, 600)[0].shape == (0, program.n_features)
    for start, stop in ((-2, 5), (5, 4), (0, 601)):
        with pytest.raises(ExecutorError, match="rows within"):
            executor.run(slab, None, start, stop)


def test_outputs_that_are_given(executor_of: Make) -> None:
    program, slab = numbers_program(300)
    executor = executor_of(program)
    features, ids = executor.run(slab)
    into = np.full_like(features, 7.0), np.full_like(ids, 7)
    given_back = executor.run(slab, None, 0, -1, *into)
    assert given_back[0] is into[0]
    assert given_back[1] is into[1]
    assert into[0].tobytes() == features.tobytes()
    assert into[1].tobytes() == ids.tobytes()
    frozen = into[0].copy()
    frozen.flags.writeable = False
    wrong = (into[0][1:], into[0][:, :-1], into[0].astype(np.float64), np.asfortranarray(into[0]), into[0][0], frozen)
    for array in wrong:
        with pytest.raises(ExecutorError):
            executor.run(slab, None, 0, -1, array, into[1])  # type: ignore[arg-type]
    with pytest.raises(ExecutorError):
        executor.run(slab, None, 0, -1, into[0], np.zeros((300, program.n_ids + 1), np.int64))


def test_sketch_of_an_equal_spec_that_is_another_object(executor_of: Make) -> None:
    program, slab = numbers_program(20)
    executor, twin = executor_of(program), ColumnProgram.from_json(program.to_json())
    own, equal = Sketch(program.sketch), Sketch(twin.sketch)
    for sketch in (own, equal, own, equal):
        executor.run(slab, sketch)
    assert own == equal
    assert own.rows == 40


def test_slab_or_sketch_of_another_kind(executor_of: Make) -> None:
    program, slab = numbers_program(3)
    executor = executor_of(program)
    with pytest.raises(ExecutorError, match="schema"):
        executor.run(Slab(Schema(["x"], ["real"])))
    with pytest.raises(ExecutorError, match="spec"):
        executor.run(slab, Sketch(SketchSpec((RealField("x", ()),))))


def test_rows_are_summed_up_as_a_whole(executor_of: Make) -> None:
    program, slab = numbers_program(300)
    joint = JointSpec(((),) * len(program.sketch.fields), tuple(field.buckets for field in program.sketch.fields))
    spec = SketchSpec(program.sketch.fields, program.sketch.prediction_edges, joint)
    program = ColumnProgram(program.fields, program.chains, spec, program.keys)
    sketch = Sketch(spec)
    executor_of(program).sum_jointly(slab, np.arange(0, 300, 7, dtype=np.int64), sketch)
    assert sketch.joint.tolist() == reference_joint(program, slab, range(0, 300, 7)).tolist()
