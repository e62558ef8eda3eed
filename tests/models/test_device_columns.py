"""Graphs that begin with the columns: what a server would answer and count by them, on a GPU that is played."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from trimtab.kernels.cuda_graph import GraphColumns
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.models import runner
from trimtab.models.capturing import Columns, Known, graph_version
from trimtab.models.device_columns import DeviceColumns
from trimtab.models.loading import Loader
from trimtab.models.machine import CudaMachine, Machine
from trimtab.models.runner import running
from trimtab.models.sharing import GraphError
from trimtab.models.version import LoadedVersion
from trimtab.server.keeping import ClosedWindow, Keeper
from trimtab.store.settings import ModelSettings

from tests.kernels.cuda_on_cpu.emulation import EmulatedDevice
from tests.kernels.programs import assert_same_sketch

from .machines import PretendMachine
from .programs import make_rows
from .test_graphs import MACHINES
from .test_shared_graphs import version_of
from .test_version import PROGRAM

MOST = 24


def played(program: ColumnProgram) -> GraphColumns:
    return GraphColumns(program, EmulatedDevice())


def machine_and_columns(kind: str) -> tuple[Machine, Columns]:
    if kind == "pretend":
        return PretendMachine(), played
    device = version_of("cuda", 1).device
    return CudaMachine(device), lambda program: runner._columns(device, program)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_slab_is_answered_and_counted_as_without_graphs(machine: str) -> None:
    version = version_of(machine, 3)
    slab = slab_from_arrow(make_rows(60, seed=4), PROGRAM.schema)
    spans = ((5, 20), (0, MOST), (59, 60), (20, 29))
    plain, sketch = Sketch(PROGRAM.sketch), Sketch(PROGRAM.sketch)
    expected = [version.predict(slab, plain, start, stop) for start, stop in spans]
    on, columns = machine_and_columns(machine)
    run = graph_version(version, MOST, on, columns=columns)
    assert isinstance(run.graphs.intake, DeviceColumns)
    version.use_staged(run)
    for (start, stop), answer in zip(spans, expected, strict=True):
        np.testing.assert_allclose(version.predict(slab, sketch, start, stop), answer, rtol=1e-5, atol=1e-6)
    version.settle()
    assert_same_sketch(PROGRAM, sketch, plain)


def test_checking_counts_nothing() -> None:
    version = version_of("pretend", 3)
    run = graph_version(version, MOST, PretendMachine(), columns=played)
    version.use_staged(run)
    sketch = Sketch(PROGRAM.sketch)
    version.warm([1, 2, 3])
    version.predict(slab_from_arrow(make_rows(5), PROGRAM.schema), sketch)
    version.settle()
    assert sketch.rows == 5


def test_versions_that_share_graphs_count_in_one_window() -> None:
    known: Known = {}
    on = PretendMachine()
    versions = [version_of("pretend", seed) for seed in (1, 2)]
    for version in versions:
        version.use_staged(graph_version(version, MOST, on, known=known, columns=played))
    assert len(known) == 1
    slab = slab_from_arrow(make_rows(12), PROGRAM.schema)
    sketch = Sketch(PROGRAM.sketch)
    for version in (*versions, versions[0]):
        version.predict(slab, sketch)
    versions[1].settle()
    assert sketch.rows == 36


def test_memory_of_columns_is_counted() -> None:
    version = version_of("pretend", 1)
    without = graph_version(version, MOST, PretendMachine())
    on = PretendMachine()
    run = graph_version(version, MOST, on, columns=played)
    intake = run.graphs.intake
    assert isinstance(intake, DeviceColumns)
    assert run.graphs.bytes == sum(on.allocated) + intake._columns.nbytes + PretendMachine.POOL
    assert run.graphs.bytes > without.graphs.bytes


class _Served:
    """What an engine does with batches of a version."""

    def __init__(self, version: LoadedVersion, window_rows: int) -> None:
        self.closed: list[ClosedWindow] = []
        self.version = version
        self.keeper = Keeper(PROGRAM.schema, window_rows, None, self.closed.append)

    def batch(self, rows: int, seed: int) -> None:
        slab = slab_from_arrow(make_rows(rows, seed=seed), PROGRAM.schema)
        times = np.array([seed], np.int64)
        sketch = self.keeper.sketch(self.version, self.version, rows, times)
        predictions = self.version.predict(slab, sketch)
        ids, counts = np.zeros((1, 16), np.uint8), np.array([rows], np.int32)
        self.keeper.keep(slab, ids, counts, times, self.version, predictions, sketch)


def test_windows_close_with_all_of_their_rows() -> None:
    windows: list[list[ClosedWindow]] = []
    for columns in (None, played):
        version = version_of("pretend", 1)
        version.use_staged(graph_version(version, MOST, PretendMachine(), columns=columns))
        served = _Served(version, 50)
        for seed, rows in enumerate((20, 24, 7, 1, 24, 24, 2, 13)):
            served.batch(rows, seed)
        windows.append(served.closed)
    plain, found = windows
    assert [window.sketch.rows for window in found] == [window.sketch.rows for window in plain] == [51, 51]
    for one, other in zip(found, plain, strict=True):
        assert_same_sketch(PROGRAM, one.sketch, other.sketch)
        np.testing.assert_array_equal(one.sketch.counts, other.sketch.counts)


def test_an_open_window_is_handed_over_with_all_of_its_rows() -> None:
    version = version_of("pretend", 1)
    version.use_staged(graph_version(version, MOST, PretendMachine(), columns=played))
    opened: list[Any] = []
    keeper = Keeper(
        PROGRAM.schema, 10, None, lambda _: None, window_us=3_600_000_000, lockstep=True, on_open=opened.append
    )
    slab = slab_from_arrow(make_rows(9), PROGRAM.schema)
    times = np.array([5], np.int64)
    sketch = keeper.sketch(version, version, 9, times)
    predictions = version.predict(slab, sketch)
    keeper.keep(slab, np.zeros((1, 16), np.uint8), np.array([9], np.int32), times, version, predictions, sketch)
    keeper.suspend()
    assert [window.sketch.rows for window in opened] == [9]


# --- what a server loads


def loaded_by(monkeypatch: pytest.MonkeyPatch, made: Any, **settings: Any) -> tuple[LoadedVersion, list[str]]:
    told: list[str] = []
    monkeypatch.setattr(runner, "_machine", lambda _: PretendMachine())
    if made is not None:
        monkeypatch.setattr(runner, "graph_columns", made)
    load: Loader = lambda number: version_of("pretend", number)  # noqa: E731
    chosen = ModelSettings.model_construct(**settings)
    nothing: Any = None
    wrapped = running(
        load, nothing, chosen, nothing, device="cuda", threads=1, lockstep=False, tell=lambda _, text: told.append(text)
    )
    version = wrapped(1)
    assert isinstance(version, LoadedVersion)
    return version, told


def intake_of(version: LoadedVersion) -> Any:
    return version._staged.graphs.intake  # type: ignore[attr-defined]


def test_columns_run_on_the_gpu_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    version, told = loaded_by(monkeypatch, lambda program, _: played(program), columns="gpu")
    assert isinstance(intake_of(version), DeviceColumns)
    assert not told
    plain, _ = loaded_by(monkeypatch, None)
    assert not isinstance(intake_of(plain), DeviceColumns)


@pytest.mark.parametrize("refuses", ["with a reason", "by raising"])
def test_where_they_cannot_the_cpu_has_them_and_an_event_says_why(
    refuses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def columns(program: ColumnProgram, _: int) -> GraphColumns | str:
        if refuses == "with a reason":
            return "CuPy is not installed"
        made = played(program)
        made._device.kernel = _broken  # type: ignore[method-assign]
        return made

    version, told = loaded_by(monkeypatch, columns, columns="gpu")
    assert not isinstance(intake_of(version), DeviceColumns)
    (text,) = told
    assert text.startswith("version 1 runs by graphs in fp32 (")
    why = "its columns cannot run there: CuPy is not installed"
    why = why if refuses == "with a reason" else "it cannot be captured: ExecutorError: no kernel"
    assert text.endswith(f"; not by graphs of columns and model in fp32: {why}")


def _broken(*_: Any) -> Any:
    from trimtab.kernels.errors import ExecutorError

    raise ExecutorError("no kernel")


def test_columns_that_differ_are_refused() -> None:
    version = version_of("pretend", 1)

    def wrong(program: ColumnProgram) -> GraphColumns:
        made = played(program)
        plain = made.launcher

        def launcher(rows: int, staged: int, features: int, ids: int) -> Any:
            launch = plain(rows, staged, features, ids)

            def shifted() -> None:
                launch()
                import ctypes

                ctypes.c_float.from_address(features).value += 1.0

            return shifted

        made.launcher = launcher  # type: ignore[method-assign]
        return made

    with pytest.raises(GraphError, match="made-up rows differ"):
        graph_version(version, MOST, PretendMachine(), columns=wrong)
    gc.collect()
