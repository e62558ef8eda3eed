"""The channel to the trainer by itself: order, repetition, acknowledgement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.channel import Command, TrainerChannel
from trimtab.server.errors import Draining
from trimtab.server.supervisor import back_off


class Trainer:
    """One stream: what the trainer reports, and what it is sent."""

    def __init__(self, channel: TrainerChannel) -> None:
        self._reports: asyncio.Queue[pb.TrainerReport | None] = asyncio.Queue()
        self._commands = channel.attend(self._stream())

    async def _stream(self) -> AsyncIterator[pb.TrainerReport]:
        while (report := await self._reports.get()) is not None:
            yield report

    async def next(self) -> int:
        return (await anext(self._commands)).sequence

    def say(self, **report: Any) -> None:
        self._reports.put_nowait(pb.TrainerReport(**report))

    async def leave(self) -> None:
        self._reports.put_nowait(None)
        async for _ in self._commands:
            pass


@pytest.fixture
def channel() -> TrainerChannel:
    return TrainerChannel(lambda report: None, enabled=True)


def advance(channel: TrainerChannel, time_us: int = 0) -> Command:
    return channel.send(pb.TrainerCommand(advance=pb.AdvanceRequest(data_time_us=time_us)))


async def test_commands_come_in_order_also_those_sent_before_anybody_attends(channel: TrainerChannel) -> None:
    advance(channel)
    trainer = Trainer(channel)
    assert await trainer.next() == 1
    advance(channel)
    advance(channel)
    assert [await trainer.next(), await trainer.next()] == [2, 3]
    await trainer.leave()


async def test_acknowledgement_covers_all_commands_up_to_its_number(channel: TrainerChannel) -> None:
    commands = [advance(channel) for _ in range(3)]
    trainer = Trainer(channel)
    await trainer.next()
    trainer.say(acknowledges=2)
    await commands[1].done
    assert commands[0].done.done()
    assert not commands[2].done.done()
    assert channel.waiting == 1
    assert channel.durations["advance"].buckets[-1] == 0
    assert sum(channel.durations["advance"].buckets) == 2
    await trainer.leave()


async def test_trainer_that_comes_back_is_sent_what_it_did_not_acknowledge(channel: TrainerChannel) -> None:
    commands = [advance(channel) for _ in range(3)]
    first = Trainer(channel)
    assert await first.next() == 1
    first.say(acknowledges=1)
    await commands[0].done
    await first.leave()
    assert not channel.attending
    second = Trainer(channel)
    assert [await second.next(), await second.next()] == [2, 3]
    second.say(acknowledges=3)
    await commands[2].done
    await second.leave()


async def test_newer_stream_ends_the_older_one(channel: TrainerChannel) -> None:
    advance(channel)
    old = Trainer(channel)
    await old.next()
    new = Trainer(channel)
    assert await new.next() == 1
    with pytest.raises(StopAsyncIteration):
        await old.next()
    assert channel.attending
    await new.leave()


async def test_repeated_and_unknown_acknowledgements_change_nothing(channel: TrainerChannel) -> None:
    command = advance(channel)
    trainer = Trainer(channel)
    await trainer.next()
    trainer.say(acknowledges=1)
    trainer.say(acknowledges=1)
    trainer.say(acknowledges=0)
    await command.done
    later = advance(channel)
    assert await trainer.next() == 2
    assert not later.done.done()
    await trainer.leave()


async def test_verdict_belongs_to_the_command_that_is_acknowledged(channel: TrainerChannel) -> None:
    one = channel.send(pb.TrainerCommand(retrain=pb.RetrainRequest(recipe="refresh")))
    two = channel.send(pb.TrainerCommand(retrain=pb.RetrainRequest(recipe="search")))
    trainer = Trainer(channel)
    await trainer.next()
    trainer.say(acknowledges=1, retrained=pb.RetrainResponse(verdict="refused"))
    trainer.say(acknowledges=2, retrained=pb.RetrainResponse(verdict="promoted"))
    await two.done
    assert (one.retrained.verdict, two.retrained.verdict) == ("refused", "promoted")
    await trainer.leave()


async def test_closing_fails_who_waits_and_who_sends(channel: TrainerChannel) -> None:
    command = advance(channel)
    trainer = Trainer(channel)
    await trainer.next()
    channel.close()
    with pytest.raises(Draining):
        await command.done
    with pytest.raises(Draining):
        advance(channel)
    await trainer.leave()


async def test_drift_of_a_trainer_that_is_down_is_bounded_and_the_rest_kept(channel: TrainerChannel) -> None:
    advance(channel)
    for number in range(1500):
        channel.send(pb.TrainerCommand(drift=pb.DriftReport(window=number)))
    assert channel.waiting == 1001
    trainer = Trainer(channel)
    assert [await trainer.next(), await trainer.next()] == [1, 502]
    await trainer.leave()


def test_back_off_doubles_and_is_bounded() -> None:
    assert [back_off(failures) for failures in range(1, 10)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert back_off(10**6) == 60
