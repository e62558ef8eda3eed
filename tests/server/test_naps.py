"""Versions that sleep as on a GPU, in this process: weights in the host's memory, graphs captured anew. On a pretended
machine everywhere, on a real one where there is one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trimtab._native import Hub
from trimtab.models import runner
from trimtab.models.flat import Flat
from trimtab.models.loading import read_weights
from trimtab.models.machine import CudaMachine
from trimtab.models.runner import running
from trimtab.models.sleeping import Sleepers
from trimtab.models.version import LoadedVersion, load_version
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.protos.v1 import trimtab_pb2
from trimtab.server.compute import ComputeThread
from trimtab.server.engine import Engine
from trimtab.server.errors import DeadlinePassed, NoRoom, QueueFull, ServerError
from trimtab.server.events import EventBus
from trimtab.server.idle import Idle
from trimtab.server.local_calls import LocalCalls
from trimtab.server.memory import ModelMemory
from trimtab.server.swap import Swap
from trimtab.store.live import LiveStore
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore

from tests.models.machines import PretendMachine

from .world import MODEL, expected, infer_request, loaded, predictions, publish, table, write_project

MACHINES = ["pretend", pytest.param("cuda", marks=pytest.mark.gpu)]


class Rig:
    """A model with versions 1 and 2 on a machine."""

    def __init__(self, project: Project, machine: str, limit: int) -> None:
        self.project = project
        self.hub = Hub()
        self.calls = LocalCalls(self.hub)
        self.compute = ComputeThread("cpu", 1, self.hub)
        self.events = EventBus()
        self.heard: list[Any] = []
        self.news = asyncio.Condition()
        self.plain = {number: loaded(project, number) for number in (1, 2)}
        settings = project.model(MODEL)
        self.engine = Engine(settings, hub=self.hub, capture=None, on_window=lambda _: None, lockstep=True)
        paths = project.model_state(MODEL)
        self.store = VersionStore(paths.versions)
        self.machine = machine
        self.memory = ModelMemory(limit)
        self.idle = Idle(self.memory)
        sleepers = Sleepers(self.load, lambda version: read_weights(self.store, version))
        options: dict[str, Any] = {"device": "cuda", "threads": 1, "lockstep": False}
        self.swap = Swap(
            self.engine,
            self.store,
            LiveStore(paths.live),
            self.events,
            load=running(sleepers, project, settings, self.store, **options, tell=lambda *_: None),
            memory=self.memory,
            idle=self.idle,
            sleepers=sleepers,
            between=self.compute.run_between_batches,
            threads=1,
        )
        self.watching = asyncio.create_task(self.watch())

    def load(self, number: int) -> LoadedVersion:
        version = load_version(self.store, number, "cpu" if self.machine == "pretend" else self.machine)
        if version.flat is None:
            object.__setattr__(version, "flat", Flat.adopt(version.module))
        return version

    async def watch(self) -> None:
        async for event in self.events.watch():
            async with self.news:
                self.heard.append(event)
                self.news.notify_all()

    async def event(self, kind: str, count: int = 1) -> trimtab_pb2.Event:
        """The event of that kind, when there have been so many."""

        def found() -> list[Any]:
            return [event for event in self.heard if event.kind == kind]

        async with self.news:
            await asyncio.wait_for(self.news.wait_for(lambda: len(found()) >= count), 60)
        event: trimtab_pb2.Event = found()[count - 1]
        return event

    async def ask(self, rows: Any, version: str = "", timeout: float | None = None) -> Any:
        request = infer_request(rows, version=version)
        return pb.ModelInferResponse.FromString(await self.calls.submit(request.SerializeToString(), timeout)[1])

    async def sleep(self, number: int) -> None:
        assert await asyncio.to_thread(self.swap.naps.put_to_sleep, number, "for a test")

    def version(self, number: int) -> LoadedVersion:
        version = self.engine.table.loaded[number]
        assert isinstance(version, LoadedVersion)
        return version


async def make(folder: Path, machine: str, monkeypatch: pytest.MonkeyPatch, limit: int = 0) -> Rig:
    project = write_project(folder / "project", sections={"batching": "max_batch_size = 8"})
    for number in (1, 2):
        publish(project, number, verdict="initial" if number == 1 else "")
    monkeypatch.setattr(runner, "_machine", lambda d: PretendMachine() if machine == "pretend" else CudaMachine(d))
    rig = Rig(project, machine, limit)
    await asyncio.to_thread(rig.swap.startup)
    rig.compute.startup({MODEL: rig.engine})
    return rig


async def end(rig: Rig) -> None:
    await asyncio.to_thread(rig.compute.shutdown, 10)
    await asyncio.to_thread(rig.swap.close)
    rig.calls.close()
    rig.watching.cancel()
    await asyncio.wait([rig.watching])


@pytest.fixture(params=MACHINES)
async def rig(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    made = await make(tmp_path, request.param, monkeypatch)
    yield made
    await end(made)


async def right(rig: Rig, number: int, version: str = "") -> None:
    rows = table(5, number)
    answer = await rig.ask(rows, version)
    assert answer.model_version == str(number)
    np.testing.assert_allclose(predictions(answer), expected(rig.plain[number], rows), rtol=1e-5, atol=1e-6)


async def test_a_request_wakes_weights_and_graphs(rig: Rig) -> None:
    await right(rig, 1)
    size = rig.memory.used
    await rig.sleep(1)
    version = rig.version(1)
    assert version.asleep
    assert version.flat is not None
    assert version.flat.data.device.type == "cpu"
    assert (rig.memory.used, rig.swap.naps.asleep) == (0, frozenset({1}))
    event = await rig.event("asleep")
    assert event.message == "version 1 sleeps, for a test: its weights are in the host's memory"
    assert event.numbers["bytes"] == size
    await right(rig, 1)
    assert (await rig.event("awake")).numbers["seconds"] > 0
    assert rig.version(1) is version
    assert rig.memory.used == size
    assert (rig.swap.naps.slept, rig.swap.naps.woken, rig.swap.naps.failed) == (1, 1, 0)


async def test_what_its_graphs_counted_is_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that run on a GPU count there: it is fetched while there is something to fetch it from."""
    settled: list[tuple[bool, bool, str]] = []

    def settle(version: LoadedVersion) -> None:
        there = version._staged is not None  # type: ignore[attr-defined]
        settled.append((version.asleep, there, threading.current_thread().name))

    monkeypatch.setattr(LoadedVersion, "settle", settle)
    await rig.sleep(1)
    assert settled == []  # nothing was counted
    await right(rig, 1)
    await rig.compute.barrier()
    await rig.sleep(1)
    assert settled == [(False, True, "trimtab-compute-cpu")]


async def test_what_cannot_be_settled_stays_awake(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(_: LoadedVersion) -> None:
        raise RuntimeError("no")

    await right(rig, 1)
    await rig.compute.barrier()
    with monkeypatch.context() as patch:
        patch.setattr(LoadedVersion, "settle", settle)
        assert not await asyncio.to_thread(rig.swap.naps.put_to_sleep, 1, "")
    assert rig.swap.naps.asleep == frozenset()
    await right(rig, 1)


async def test_many_requests_wake_it_once(rig: Rig) -> None:
    await rig.sleep(1)
    await asyncio.gather(*[right(rig, 1) for _ in range(50)])
    assert rig.swap.naps.woken == 1


async def test_one_of_two_that_share_graphs_sleeps(rig: Rig) -> None:
    await rig.swap.promote(2, -1, "")
    await right(rig, 2)
    both = rig.memory.used
    own = rig.version(1).bytes
    await rig.sleep(1)
    assert rig.memory.used == both - own  # what they share stays
    await right(rig, 2)
    await right(rig, 1, "1")
    await right(rig, 2)
    assert rig.memory.used == both
    await rig.sleep(1)
    await rig.swap.rollback("")
    assert not rig.version(1).asleep
    await right(rig, 1)
    await right(rig, 2, "2")


async def test_all_sleep_and_are_promoted(rig: Rig) -> None:
    await rig.swap.stage(2)
    await rig.sleep(1)
    await rig.sleep(2)
    assert rig.memory.used == 0
    live = await rig.swap.promote(2, -1, "")
    assert live.live == 2
    assert rig.swap.naps.asleep == {1}
    await right(rig, 2)


async def test_a_version_that_is_staged_anew_while_it_sleeps(rig: Rig) -> None:
    await rig.swap.promote(2, -1, "")
    await rig.sleep(1)
    staged = await rig.swap.stage(1)
    assert not staged.version.asleep
    await right(rig, 1, "1")


async def test_no_room_on_the_device(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.sleep(1)
    with monkeypatch.context() as patch:
        patch.setattr(Flat, "empty", staticmethod(_no_memory))
        with pytest.raises(QueueFull, match=r"sleeps and cannot be woken: .* there is no memory left"):
            await rig.ask(table(1))
    assert rig.swap.naps.asleep == {1}
    assert rig.swap.naps.failed == 1
    await right(rig, 1)


async def test_no_room_for_what_it_computes_with(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are there again, and a batch to try does not fit: it sleeps on, whole."""
    await rig.sleep(1)
    with monkeypatch.context() as patch:
        patch.setattr(LoadedVersion, "warm", _no_memory)
        with pytest.raises(QueueFull, match="there is no memory left"):
            await rig.ask(table(1))
    assert rig.swap.naps.asleep == {1}
    assert rig.memory.used == 0
    await right(rig, 1)


async def test_a_deadline_passes_while_it_wakes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.sleep(1)
    held = asyncio.Event()
    loop = asyncio.get_running_loop()
    plain = LoadedVersion.warm

    def slow(version: LoadedVersion, sizes: Any) -> None:
        asyncio.run_coroutine_threadsafe(held.wait(), loop).result(60)
        plain(version, sizes)

    monkeypatch.setattr(LoadedVersion, "warm", slow)
    waiting = asyncio.create_task(right(rig, 1))
    with pytest.raises(DeadlinePassed):
        await rig.ask(table(1), timeout=0.05)
    assert not waiting.done()
    held.set()
    await waiting


async def test_a_candidate_that_comes_while_another_wakes_is_not_counted_with_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.swap.stage(2)
    both = rig.memory.used
    await rig.swap.promote(2, -1, "")
    await rig.swap.rollback("")  # version 1 has what they share
    publish(rig.project, 3)
    await rig.swap.stage(3)
    rig.memory.limit = rig.memory.used
    three = dict(rig.memory.of(MODEL))
    rig.swap._staged.clear()
    rig.swap._install()  # version 3 is let go
    assert rig.memory.used == both
    await rig.sleep(2)
    plain, loop = LoadedVersion.warm, asyncio.get_running_loop()

    def slow(version: LoadedVersion, sizes: Any) -> None:
        if version.number == 2:
            patch.setattr(LoadedVersion, "warm", plain)
            asyncio.run_coroutine_threadsafe(rig.swap.stage(3), loop).result(60)
        plain(version, sizes)

    with monkeypatch.context() as patch:
        patch.setattr(LoadedVersion, "warm", slow)
        await right(rig, 2, "2")
    assert rig.memory.of(MODEL) == three
    assert rig.swap.naps.failed == 0


async def test_a_flip_while_a_version_wakes_leaves_it_reserved(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.swap.promote(2, -1, "")
    await rig.swap.rollback("")
    before = rig.memory.of(MODEL)
    await rig.sleep(2)
    plain, loop = LoadedVersion.warm, asyncio.get_running_loop()
    seen: list[int] = []

    def slow(version: LoadedVersion, sizes: Any) -> None:
        object.__setattr__(version, "asleep", True)  # as it is until its weights are there
        asyncio.run_coroutine_threadsafe(rig.swap.alias("other", 1, -1), loop).result(60)
        seen.append(rig.memory.of(MODEL)[2])
        object.__setattr__(version, "asleep", False)
        plain(version, sizes)

    with monkeypatch.context() as patch:
        patch.setattr(LoadedVersion, "warm", slow)
        await right(rig, 2, "2")
    assert seen == [before[2]]
    assert rig.memory.of(MODEL) == before


async def test_staging_anew_what_is_loaded_is_counted_once_and_in_vain_as_before(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.swap.promote(2, -1, "")
    before = rig.memory.of(MODEL)
    sizes: list[int] = []
    plain = LoadedVersion.warm

    def look(version: LoadedVersion, batches: Any) -> None:
        if len(batches) > 1:
            sizes.append(rig.memory.of(MODEL)[1])
        plain(version, batches)

    with monkeypatch.context() as patch:
        patch.setattr(LoadedVersion, "warm", look)
        await rig.swap.stage(1)
    assert sizes
    assert min(sizes) > 0  # the new one is there, and not yet in place of the old
    await rig.swap.promote(1, -1, "")
    before = rig.memory.of(MODEL)
    with monkeypatch.context() as patch:
        patch.setattr(LoadedVersion, "warm", _no_memory)
        with pytest.raises(NoRoom):
            await rig.swap.stage(2)
    assert rig.memory.of(MODEL) == before


async def test_what_a_stalled_batch_is_computed_with_stays(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is given up between being looked for in the hub and the version being let go."""
    held, begun, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()
    plain = LoadedVersion.predict

    def slow(version: LoadedVersion, *arguments: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        held.wait(60)
        return plain(version, *arguments)

    monkeypatch.setattr(LoadedVersion, "predict", slow)
    monkeypatch.setattr(rig.swap.naps, "_settle", lambda _: None)  # as on the thread that serves on
    asked = asyncio.create_task(rig.ask(table(1)))
    await begun.wait()

    class Between:
        def __getattr__(self, name: str) -> Any:
            return getattr(rig.hub, name)

        def put_to_sleep(self, name: str, number: int) -> bool:
            assert rig.engine.give_up(0.0)
            return rig.hub.put_to_sleep(name, number)

    with monkeypatch.context() as patch:
        patch.setattr(rig.engine, "_hub", Between())
        assert not await asyncio.to_thread(rig.swap.naps.put_to_sleep, 1, "")
    assert rig.swap.naps.asleep == frozenset()
    held.set()
    with pytest.raises(ServerError, match="stalls"):
        await asked
    await rig.compute.barrier()
    await right(rig, 1)


async def test_nothing_sleeps_that_was_closed(rig: Rig) -> None:
    rig.swap.naps.close()
    assert not rig.swap.naps.put_to_sleep(1, "")
    assert not rig.swap.naps.put_to_sleep(7, "")
    await right(rig, 1)


async def test_kept_versions_sleep_to_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await make(tmp_path, "pretend", monkeypatch)
    try:
        await rig.swap.promote(2, -1, "")
        rig.memory.limit = rig.memory.used + 1
        publish(rig.project, 3)
        await rig.swap.stage(3)
        assert rig.swap.naps.asleep == {1}
        assert "to make room for 'tiny' version 3" in (await rig.event("asleep")).message
        await right(rig, 1, "1")
        assert rig.swap.naps.asleep == {3}
        await right(rig, 2)
    finally:
        await end(rig)


def _no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
