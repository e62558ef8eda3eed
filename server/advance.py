"""Moving data time forward: seal what was captured, close the drift windows that are due, tell the trainer.

`advance` is what Lifecycle.Advance does and waits for. Outside lockstep the server does as much by itself: whenever
segments were sealed or labels came, at most once a second for a model and never before the last one was acknowledged,
so that a trainer that is busy or down is not sent a heap of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial

from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.channel import Command, TrainerChannel
from trimtab.server.compute import ComputeThread
from trimtab.server.errors import ServerError
from trimtab.server.served import Model, Registry
from trimtab.store.files import now_us

__all__ = ["Advancer"]

_SECONDS_BETWEEN = 1.0


class Advancer:
    """See the module. Lives on the loop."""

    def __init__(self, registry: Registry, compute: ComputeThread, channel: TrainerChannel) -> None:
        self._registry = registry
        self._compute = compute
        self._channel = channel

    async def advance(self, models: Sequence[Model], data_time_us: int) -> int:
        """Returns the number of rows sealed, when the trainer has dealt with all of it. Raises Draining, StoreError."""
        closing = [
            self._compute.run_between_batches(partial(model.engine.close_windows, data_time_us)) for model in models
        ]
        for closed in closing:
            await asyncio.wrap_future(closed)
        rows = await self.seal(models)
        if self._channel.enabled:
            commands = [self._send(model, data_time_us) for model in models if model.settings.retrainable]
            for command in commands:
                await command.done
        return rows

    async def seal(self, models: Sequence[Model]) -> int:
        """Everything answered so far is in sealed segments and in drift windows; those that are full are reported."""
        await self._compute.barrier()
        rows = 0
        for model in models:
            if model.captures is not None:
                rows += await asyncio.to_thread(model.captures.seal)
            if model.drift is not None:
                await model.drift.settled()
        return rows

    async def announce(self) -> None:
        """Tells the trainer of news, until cancelled."""
        async with asyncio.TaskGroup() as group:
            known: list[Model] = []
            while True:
                known = [model for model in known if self._registry.models.get(model.name) is model]
                for model in self._registry.models.values():
                    if model not in known and model.settings.retrainable:
                        # What came before the server was last stopped may not be dealt with yet.
                        model.news.set()
                        group.create_task(self._announce(model))
                        known.append(model)
                await self._registry.changed.wait()
                self._registry.changed.clear()

    async def _announce(self, model: Model) -> None:
        while True:
            await model.news.wait()
            model.news.clear()
            if self._registry.models.get(model.name) is not model:
                return  # it was unloaded
            with contextlib.suppress(ServerError):
                await self._send(model, now_us()).done
            await asyncio.sleep(_SECONDS_BETWEEN)

    def _send(self, model: Model, data_time_us: int) -> Command:
        advance = pb.AdvanceRequest(model_name=model.name, data_time_us=data_time_us)
        return self._channel.send(pb.TrainerCommand(advance=advance))
