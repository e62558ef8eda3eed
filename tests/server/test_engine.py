"""Engine and compute thread in this process, with a real version; the compute thread is held to make requests wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from trimtab._native import Hub
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.compute import ComputeThread
from trimtab.server.engine import Engine
from trimtab.server.errors import DeadlinePassed, Draining, InvalidRequest, NotFound, QueueFull, ServerError
from trimtab.server.keeping import ClosedWindow
from trimtab.server.local_calls import LocalCalls
from trimtab.store.captures import CaptureWriter
from trimtab.store.project import Project
from trimtab.store.segment import read_segment, sealed_segments

from .world import MODEL, expected, infer_request, loaded, predictions, publish, table, write_project


class Rig:
    """An engine on its compute thread."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.windows: list[ClosedWindow] = []
        self.hub = Hub()
        self.calls = LocalCalls(self.hub)
        self.compute = ComputeThread("cpu", 1, self.hub)
        settings = project.model(MODEL)
        self.captures = CaptureWriter(
            project.model_state(MODEL).captures, settings.request_schema(), 1, settings.capture, lockstep=True
        )
        self.engine = Engine(
            settings,
            hub=self.hub,
            capture=self.captures,
            on_window=self.windows.append,
        )
        self.one = loaded(project, 1)
        self.engine.install(self.one, {1: self.one})
        self.compute.startup({MODEL: self.engine})
        self._held = threading.Event()

    def submit(self, request: Any, remaining: float | None = None) -> asyncio.Future[bytes]:
        return self.calls.submit(request.SerializeToString(), remaining)[1]

    async def hold(self) -> None:
        """The compute thread does nothing until `release`."""
        holding = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait() -> None:
            loop.call_soon_threadsafe(holding.set)
            self._held.wait(30)

        self.compute.run_between_batches(wait)
        await holding.wait()

    def release(self) -> None:
        self._held.set()


@pytest.fixture
async def rig(tmp_path: Any) -> AsyncIterator[Rig]:
    sections = {
        "batching": "max_batch_size = 8\nmax_queue_size = 4",
        "drift": "window_rows = 10\nwindow_seconds = 0.0",
    }
    project = write_project(tmp_path / "project", sections=sections)
    publish(project, 1, verdict="initial")
    made = Rig(project)
    yield made
    made.release()
    await asyncio.to_thread(made.compute.shutdown, 10)
    made.calls.close()
    made.captures.close()


async def answer(future: asyncio.Future[bytes]) -> Any:
    return pb.ModelInferResponse.FromString(await future)


async def test_answers_name_the_weights_and_a_request_id(rig: Rig) -> None:
    rows = table(3)
    response = await answer(rig.submit(infer_request(rows)))
    assert response.model_version == "1"
    assert response.id == "r"
    assert response.parameters["trimtab_weights"].string_param == rig.one.weights
    assert response.parameters["trimtab_request_id"].string_param[14] == "7"
    np.testing.assert_array_equal(predictions(response), expected(rig.one, rows))


async def test_requests_that_wait_form_one_batch_and_get_their_own_rows(rig: Rig) -> None:
    await rig.hold()
    groups = [table(rows, seed) for seed, rows in enumerate([1, 3, 2])]
    futures = [rig.submit(infer_request(rows)) for rows in groups]
    rig.release()
    responses = [await answer(future) for future in futures]
    assert rig.engine.counts.versions[1].batches == 1
    assert len({r.parameters["trimtab_request_id"].string_param for r in responses}) == 3
    for response, rows in zip(responses, groups, strict=True):
        np.testing.assert_allclose(predictions(response), expected(rig.one, rows), rtol=1e-6)


async def test_larger_request_than_a_batch_is_run_in_chunks_on_one_version(rig: Rig) -> None:
    rows = table(30)
    response = await answer(rig.submit(infer_request(rows)))
    assert rig.engine.counts.versions[1].batches == 1
    np.testing.assert_allclose(predictions(response), expected(rig.one, rows), rtol=1e-6)


async def test_deadline_that_passes_in_the_queue_is_not_computed(rig: Rig) -> None:
    await rig.hold()
    late = rig.submit(infer_request(table(1), timeout=1))
    good = rig.submit(infer_request(table(1)))
    rig.release()
    with pytest.raises(DeadlinePassed):
        await late
    await good
    await rig.compute.barrier()
    assert rig.engine.counts.rows == 1
    assert rig.engine.counts.expired == 1
    assert rig.engine.waiting == 0


async def test_call_deadline_counts_as_well(rig: Rig) -> None:
    await rig.hold()
    late = rig.submit(infer_request(table(1)), remaining=1e-6)
    rig.release()
    with pytest.raises(DeadlinePassed):
        await late
    with pytest.raises(DeadlinePassed):
        await rig.submit(infer_request(table(1)), remaining=0.0)


async def test_cancelled_request_is_not_computed(rig: Rig) -> None:
    await rig.hold()
    token, future = rig.calls.submit(infer_request(table(1)).SerializeToString(), None)
    assert rig.engine.waiting == 1
    rig.calls.cancel(token)
    assert rig.engine.waiting == 0
    with pytest.raises(ServerError):
        await future
    rig.release()
    await answer(rig.submit(infer_request(table(2))))
    await rig.compute.barrier()
    assert rig.engine.counts.rows == 2
    assert rig.engine.counts.cancelled == 1
    assert rig.engine.waiting == 0


async def test_admission_is_bounded(rig: Rig) -> None:
    await rig.hold()
    futures = [rig.submit(infer_request(table(1))) for _ in range(4)]
    with pytest.raises(QueueFull, match="4 requests wait"):
        await rig.submit(infer_request(table(1)))
    rig.release()
    for future in futures:
        await future
    await rig.submit(infer_request(table(1)))


async def test_version_by_number(rig: Rig) -> None:
    publish(rig.project, 2)
    two = loaded(rig.project, 2)
    rig.engine.install(rig.one, {1: rig.one, 2: two})
    rows = table(4)
    response = await answer(rig.submit(infer_request(rows, version="2")))
    assert response.model_version == "2"
    np.testing.assert_array_equal(predictions(response), expected(two, rows))
    for version in ("3", "x", "-1", "99999999999999999999", "²"):
        with pytest.raises(NotFound, match=r"loaded: 1, 2"):
            await rig.submit(infer_request(rows, version=version))


async def test_alias_of_a_version(rig: Rig) -> None:
    publish(rig.project, 2)
    two = loaded(rig.project, 2)
    rig.engine.install(rig.one, {1: rig.one, 2: two}, {"challenger": 2, "gone": 7})
    assert (await answer(rig.submit(infer_request(table(1), version="challenger")))).model_version == "2"
    with pytest.raises(NotFound, match="loaded: 1, 2, challenger"):
        await rig.submit(infer_request(table(1), version="gone"))
    await rig.hold()
    future = rig.submit(infer_request(table(1), version="challenger"))
    rig.engine.install(rig.one, {1: rig.one, 2: two}, {"challenger": 1})
    rig.release()
    assert (await answer(future)).model_version == "1"


async def test_live_is_resolved_when_the_batch_forms(rig: Rig) -> None:
    publish(rig.project, 2)
    two = loaded(rig.project, 2)
    await rig.hold()
    future = rig.submit(infer_request(table(1)))
    rig.engine.install(two, {1: rig.one, 2: two})
    rig.release()
    assert (await answer(future)).model_version == "2"


async def test_version_unloaded_while_its_request_waits_is_not_found(rig: Rig) -> None:
    publish(rig.project, 2)
    two = loaded(rig.project, 2)
    await rig.hold()
    future = rig.submit(infer_request(table(1), version="1"))
    rig.engine.install(two, {2: two})
    rig.release()
    with pytest.raises(NotFound, match="version 1 is not loaded any more"):
        await future


async def test_batch_that_fails_fails_its_requests_and_nothing_else(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(type(rig.one), "predict", broken)
        with pytest.raises(Exception, match="RuntimeError: out of luck"):
            await rig.submit(infer_request(table(1)))
    await rig.submit(infer_request(table(1)))
    assert rig.engine.counts.failed == 1


async def test_bad_requests_say_what_was_expected(rig: Rig) -> None:
    wrong = infer_request(table(2))
    wrong.inputs[0].datatype = "BYTES"
    with pytest.raises(InvalidRequest, match="x"):
        await rig.submit(wrong)
    unknown = infer_request(table(1))
    unknown.outputs.add(name="nonsense")
    with pytest.raises(InvalidRequest, match='"nonsense": expected one of "probability"'):
        await rig.submit(unknown)
    assert rig.engine.waiting == 0


async def test_rows_are_captured_as_received_with_their_predictions(rig: Rig) -> None:
    rows = table(9, seed=3)
    one = await answer(rig.submit(infer_request(rows, trimtab_time_us=5_000_000)))
    two = await answer(rig.submit(infer_request(table(1), trimtab_time_us=6_000_000)))
    await rig.compute.barrier()
    assert rig.captures.seal() == 10
    directory = rig.project.model_state(MODEL).captures
    (segment,) = sealed_segments(directory)
    kept = read_segment(directory, segment)
    assert kept.column("_row").to_pylist() == [*range(9), 0]
    ids = [bytes(value).hex() for value in kept.column("_request_id").to_pylist()]
    sent = [r.parameters["trimtab_request_id"].string_param.replace("-", "") for r in (one, two)]
    assert ids == [sent[0]] * 9 + [sent[1]]
    assert kept.column("_version").to_pylist() == [1] * 10
    assert kept.column("city").to_pylist()[:9] == rows.column("city").to_pylist()
    np.testing.assert_array_equal(kept.column("_prediction").to_numpy()[:9], predictions(one))
    assert segment.first_time_us == 5_000_000
    assert segment.last_time_us == 6_000_000


async def test_drift_windows_close_at_batch_ends_whatever_the_timing(rig: Rig) -> None:
    for number in range(6):
        await rig.submit(infer_request(table(4, number), trimtab_time_us=number * 1000))
    await rig.compute.barrier()
    assert [window.sketch.rows for window in rig.windows] == [12, 12]
    assert [(window.start_us, window.end_us) for window in rig.windows] == [(0, 2000), (3000, 5000)]
    assert rig.windows[0].sketch.prediction.rows == 12


async def test_what_is_queued_is_answered_when_the_thread_ends(rig: Rig) -> None:
    await rig.hold()
    futures = [rig.submit(infer_request(table(1))) for _ in range(3)]
    ending = asyncio.ensure_future(asyncio.to_thread(rig.compute.shutdown, 10))
    rig.release()
    for future in futures:
        await answer(future)
    assert await ending
    assert not isinstance(futures[0].exception(), Draining)


# --- models that leave


async def leaving(rig: Rig, timeout: float) -> asyncio.Task[bool]:
    """A leave that has begun."""
    task = asyncio.create_task(rig.engine.leave(timeout))
    await asyncio.sleep(0)  # its first step, which ends at its first wait
    return task


async def test_leaving_answers_what_was_accepted_and_refuses_the_rest(rig: Rig) -> None:
    await rig.hold()
    accepted = [rig.submit(infer_request(table(1))) for _ in range(3)]
    gone = await leaving(rig, 30)
    with pytest.raises(NotFound, match="model 'tiny' was unloaded"):
        await rig.submit(infer_request(table(1)))
    assert not gone.done()
    rig.release()
    for future in accepted:
        assert (await answer(future)).model_version == "1"
    assert await gone
    rig.engine.close()
    with pytest.raises(NotFound, match='no model "tiny"; this server has none'):
        await rig.submit(infer_request(table(1)))


async def test_leaving_with_nothing_accepted_does_not_wait(rig: Rig) -> None:
    assert await rig.engine.leave(0.0)


async def test_what_waits_when_leaving_takes_too_long_is_not_found(rig: Rig) -> None:
    await rig.hold()
    waiting = rig.submit(infer_request(table(1)))
    assert not await rig.engine.leave(0.0)
    assert not waiting.done()
    rig.engine.close()
    with pytest.raises(NotFound, match='model "tiny" was unloaded'):
        await waiting


async def test_a_batch_under_way_when_its_model_goes_is_answered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    predict = type(rig.one).predict

    def slow(*given: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(30)
        return predict(*given)

    monkeypatch.setattr(type(rig.one), "predict", slow)
    under_way = rig.submit(infer_request(rows := table(2)))
    await begun.wait()
    assert not await rig.engine.leave(0.0)
    rig.engine.close()
    go_on.set()
    np.testing.assert_array_equal(predictions(await answer(under_way)), expected(rig.one, rows))


async def test_a_model_that_left_may_come_again(rig: Rig) -> None:
    await rig.submit(infer_request(table(1)))
    assert await rig.engine.leave(30)
    rig.engine.close()
    again = Engine(rig.engine.settings, hub=rig.hub, capture=rig.captures, on_window=None)
    with pytest.raises(NotFound, match="has no version yet"):
        await rig.submit(infer_request(table(1)))
    again.install(rig.one, {1: rig.one})
    await rig.submit(infer_request(table(1)))
    assert again.counts.versions[1].requests == 1, "it counts from its own beginning"
