"""Servers whose versions run by graphs, on a GPU that is played (played_gpu.py): swaps and drift under load."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.protos.v1 import inference_pb2 as pb2
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.store.kept_windows import WindowFolder
from trimtab.store.project import Project

from tests.kernels.programs import assert_same_sketch

from . import own
from .test_drift_windows import advance, send
from .test_scale_to_zero import WIDE, publish_wide
from .test_under_load import ROWS, load
from .world import MODEL, infer_request, loaded, predictions, program, publish, serving, write_project

WAYS = {
    "shared": ("", 40),
    "shared, with columns": ('columns = "gpu"', 15),  # a played kernel takes its time
    "own": ('graphs = "own"', 20),
}
"""Settings of the model, and how many swaps."""


def project_of(folder: Path, model: str, sections: dict[str, str] | None = None, versions: int = 4) -> Project:
    made = write_project(
        folder / "project", model=model, sections={"batching": "max_batch_size = 32", **(sections or {})}
    )
    fitted = program(made)
    publish(made, 1, verdict="initial", fitted=fitted)
    for number in range(2, versions + 1):
        publish(made, number, fitted=fitted)
    return made


@pytest.mark.parametrize(("model", "swaps"), WAYS.values(), ids=WAYS)
def test_swaps_without_a_failed_or_mixed_answer(model: str, swaps: int, tmp_path: Path) -> None:
    """While requests by number and alias ask for the other versions, too: each answer is of one set of weights."""
    project = project_of(tmp_path, model)
    with serving(project, played_gpu=True) as running, running.lifecycle() as lifecycle, running.inference() as stub:
        traffic = load(project, running, 4).start(3)
        versions = {number: loaded(project, number) for number in range(1, 5)}
        rows = ROWS[2]
        try:
            traffic.wait_for(lambda: traffic.codes["OK"] > 10)
            for number in range(swaps):
                target = 1 + (number + 1) % 4
                lifecycle.Promote(pb.PromoteRequest(model_name=MODEL, version=target, expected_epoch=-1, reason="test"))
                before = 1 + number % 4
                answer = stub.ModelInfer(infer_request(rows, version=str(before)))
                slab = slab_from_arrow(rows, versions[before].program.schema)
                expected = versions[before].predict(slab)[:, 0]
                np.testing.assert_allclose(predictions(answer), expected, rtol=1e-5, atol=1e-6)
        finally:
            traffic.stop()
        assert traffic.wrong == []
        assert set(traffic.codes) == {"OK"}
        assert len(traffic.versions) == 4
        assert running.stop() == 0


@pytest.mark.parametrize("graphs", ["shared", "own"])
def test_swaps_of_models_that_take_tensors(graphs: str, tmp_path: Path) -> None:
    """As above: an answer is of the version that it says, x plus the mean of that version's weights."""
    more = f'graphs = "{graphs}"'
    scalar = "[model.batching]\nmax_batch_size = 32"
    room = (5 if graphs == "shared" else 4) * WIDE  # for three versions, what they share, and no version more
    models = own.model("slow", "Slow", more) + scalar
    project = own.write(tmp_path / "project", models, server=f"max_model_bytes = {room}")
    wrong: list[tuple[str, list[float]]] = []
    done = threading.Event()
    with serving(project, played_gpu=True) as running, running.lifecycle() as lifecycle, running.inference() as stub:

        def promote(number: int) -> None:
            lifecycle.Promote(pb.PromoteRequest(model_name="slow", version=number, expected_epoch=-1), timeout=60)

        def ask(n: int) -> int:
            asked = 0
            while not done.is_set():
                version = ("", "1", "2", "3")[(asked + n) % 4]
                name = version and f"v{version}"
                answer = stub.ModelInfer(own.request("slow", name, x=own.numbers(n, n + 1)), timeout=60)
                added = (own.outputs(answer)["y"] - own.numbers(n, n + 1)).tolist()
                if added != [float(answer.model_version) - 1] * 2 or version not in ("", answer.model_version):
                    wrong.append((answer.model_version, added))
                asked += 1
            return asked

        for number in (1, 2, 3):
            if number > 1:
                publish_wide(project, "slow", number - 1.0, tmp_path)
            promote(number)
            alias = pb.SetAliasRequest(model_name="slow", alias=f"v{number}", version=number, expected_epoch=-1)
            lifecycle.SetAlias(alias, timeout=60)
        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask, n) for n in range(3)]
            for turn in range(40):
                promote(1 + turn % 3)
            done.set()
            assert all(one.result(60) for one in asking)
        assert wrong == []
        statistics = stub.ModelStatistics(pb2.ModelStatisticsRequest(name="slow")).model_stats
        sizes = [one.memory_usage[0].byte_size for one in statistics]
        assert len(sizes) == 3
        assert all(size > WIDE for size in sizes)
        assert all((size > 2 * WIDE) == (graphs == "shared") for size in sizes)  # those of the graphs, too
        promote(3)
        assert running.stop() == 0
    with serving(project, played_gpu=True) as running, running.inference() as stub:  # 3, 1, 2 are loaded, in this order
        for number in (1, 2, 3):
            answer = stub.ModelInfer(own.request("slow", f"v{number}", x=own.numbers(1)), timeout=60)
            assert own.outputs(answer)["y"].tolist() == [float(number)]
        assert running.stop() == 0


def test_drift_windows_are_those_that_the_cpu_counts(tmp_path: Path) -> None:
    """Of several versions, and of a window that the next server goes on with."""
    windows = [_windows(tmp_path / columns, columns) for columns in ("cpu", "gpu")]
    spec = loaded(Project.load(tmp_path / "gpu" / "project"), 1).program
    assert [sketch.rows for sketch in windows[0]] == [56, 33]
    for mine, theirs in zip(*windows, strict=True):
        assert_same_sketch(spec, mine, theirs)
        np.testing.assert_array_equal(mine.counts, theirs.counts)


def _windows(folder: Path, columns: str) -> list[Sketch]:
    project = project_of(folder, f'columns = "{columns}"', {"drift": 'window = "1h"'}, versions=2)
    with serving(project, played_gpu=True) as running:
        send(running, 30, 0.25, seed=1)
        with running.lifecycle() as lifecycle:
            lifecycle.Promote(pb.PromoteRequest(model_name=MODEL, version=2, expected_epoch=-1, reason="test"))
        send(running, 20, 0.5, seed=2)
        assert running.stop() == 0
    with serving(project, played_gpu=True) as running:
        send(running, 6, 0.75, seed=3)
        send(running, 32, 1.0, seed=4)
        send(running, 1, 1.75, seed=5)
        advance(running, 3.0)
        assert running.stop() == 0
    kept = WindowFolder(project.model_state(MODEL).windows)
    return [kept.load(number)[1] for number in kept.numbers()]
