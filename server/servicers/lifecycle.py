"""Lifecycle: everything that changes or reveals which weights serve. Offered on the admin socket only.

Who may call is decided by the socket's permissions (0600). The trainer names itself in its calls' metadata; where
[model.rollout] approve = "person", its promotions are refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version

from trimtab.models.version import LoadedVersion
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.advance import Advancer
from trimtab.server.channel import TrainerChannel
from trimtab.server.errors import Denied, Draining, InvalidRequest, NoTrainer, Unfit, Unsupported
from trimtab.server.events import EventBus
from trimtab.server.served import Model, Registry
from trimtab.server.supervisor import Supervisor
from trimtab.server.transport import Call, Handler, Service, service
from trimtab.server.versions import list_versions
from trimtab.store.ids import parse_id
from trimtab.store.kept_windows import WindowFolder
from trimtab.store.live import Live
from trimtab.store.pins import Pin, pin_of_bytes, pin_of_windows

__all__ = ["CALLER", "TRAINER", "LifecycleServicer"]

CALLER, TRAINER = "trimtab-caller", "trainer"
_RECIPES = ("refresh", "search")
_ORIGIN = 500


class LifecycleServicer:
    """See the module."""

    def __init__(
        self, registry: Registry, advancer: Advancer, channel: TrainerChannel, supervisor: Supervisor, events: EventBus
    ) -> None:
        self._registry = registry
        self._advancer = advancer
        self._channel = channel
        self._supervisor = supervisor
        self._events = events
        self._began = time.monotonic()
        self._workflows = 0

    def service(self) -> Service:
        """The service, for the admin listener."""
        handlers: dict[str, Handler] = {
            "Stage": self.stage,
            "Promote": self.promote,
            "Rollback": self.rollback,
            "SetAlias": self.set_alias,
            "ListVersions": self.list_versions,
            "WatchEvents": self.watch_events,
            "Advance": self.advance,
            "Retrain": self.retrain,
            "PinReference": self.pin_reference,
            "Status": self.status,
            "Forget": self.forget,
            "Attend": self.attend,
        }
        return service(pb.DESCRIPTOR.services_by_name["Lifecycle"], handlers)

    # --- versions

    async def stage(self, request: pb.StageRequest, _call: Call) -> pb.StageResponse:
        """Loads, checks and warms a version, or refuses it with a reason."""
        model = self._serving(request.model_name)
        staged = await model.swap.stage(request.version)
        return pb.StageResponse(
            weights=staged.version.weights,
            load_seconds=staged.load_seconds,
            warm_seconds=staged.warm_seconds,
            latency_one_us=staged.latency.one,
            latency_full_us=staged.latency.full,
        )

    async def promote(self, request: pb.PromoteRequest, call: Call) -> pb.PromoteResponse:
        """Makes a version live."""
        model = self._serving(request.model_name)
        if _needs_person(model, call):
            raise Denied(
                f"model {model.name!r} is promoted by a person ([model.rollout] approve); "
                f"`trimtab promote {request.version}` does it"
            )
        live = await model.swap.promote(request.version, request.expected_epoch, request.reason)
        return _promoted(model, live)

    async def rollback(self, request: pb.RollbackRequest, _call: Call) -> pb.PromoteResponse:
        """Makes the previous version live again."""
        model = self._serving(request.model_name)
        return _promoted(model, await model.swap.rollback(request.reason))

    async def set_alias(self, request: pb.SetAliasRequest, _call: Call) -> pb.SetAliasResponse:
        """Makes a name stand for a version, or takes it away."""
        model = self._serving(request.model_name)
        live = await model.swap.alias(request.alias, request.version, request.expected_epoch)
        return pb.SetAliasResponse(epoch=live.epoch, aliases=live.aliases)

    async def list_versions(self, request: pb.ListVersionsRequest, _call: Call) -> pb.ListVersionsResponse:
        """Every version there ever was, ascending, with what became of it."""
        model = self._registry.model(request.model_name)
        current = model.swap.current
        swap = model.swap
        versions = await asyncio.to_thread(list_versions, swap.versions, current, swap.staged, swap.naps.asleep)
        return pb.ListVersionsResponse(
            versions=versions,
            live=current.live,
            previous=current.previous or 0,
            epoch=current.epoch,
            aliases=model.engine.table.aliases,
            loaded=sorted(model.engine.table.loaded),
        )

    async def watch_events(self, request: pb.WatchEventsRequest, _call: Call) -> AsyncIterator[pb.Event]:
        """Events from now on."""
        if request.model_name:
            self._registry.model(request.model_name)
        async for event in self._events.watch(request.model_name):
            yield event

    # --- training

    async def advance(self, request: pb.AdvanceRequest, _call: Call) -> pb.AdvanceResponse:
        """Seals, tells the trainer, and waits for it to be quiescent."""
        self._open()
        models = self._registry.chosen(request.model_name)
        rows = await self._advancer.advance(models, request.data_time_us)
        before, self._workflows = self._workflows, self._channel.status.workflows
        return pb.AdvanceResponse(
            rows_sealed=rows,
            live=models[0].swap.current.live,
            # A trainer that was restarted counts from zero again.
            workflows=self._workflows - before if self._workflows >= before else self._workflows,
        )

    async def retrain(self, request: pb.RetrainRequest, _call: Call) -> pb.RetrainResponse:
        """Asks the trainer to train now; with `wait`, until there is a verdict."""
        model = self._serving(request.model_name)
        if not model.settings.retrainable:
            raise Unfit(
                f"model {model.name!r} takes tensors, and cannot be retrained; `trimtab publish FILE` adds a version"
            )
        if not self._channel.enabled:
            raise NoTrainer("this server runs without a trainer (--no-trainer, or [server] trainer = false)")
        recipe = request.recipe or "refresh"
        if recipe not in _RECIPES:
            raise InvalidRequest(f"recipe: expected one of {list(_RECIPES)}, got {recipe!r}")
        await self._advancer.seal([model])
        order = pb.RetrainRequest(model_name=model.name, recipe=recipe, reason=request.reason, wait=request.wait)
        command = self._channel.send(pb.TrainerCommand(retrain=order))
        if not request.wait:
            return pb.RetrainResponse(reason="asked for; `trimtab versions` will show what became of it")
        await command.done
        return command.retrained

    async def pin_reference(self, request: pb.PinReferenceRequest, call: Call) -> pb.PinReferenceResponse:
        """Chooses what drift windows are compared with."""
        model = self._serving(request.model_name)
        live = model.engine.table.live
        if model.drift is None or not isinstance(live, LoadedVersion):
            raise Unsupported(f"model {model.name!r} has drift switched off ([model.drift] enabled = false)")
        if _needs_person(model, call):
            raise Denied(f"the drift reference of model {model.name!r} is chosen by a person ([model.rollout] approve)")
        pin = await model.drift.pin(_chosen(request), live)
        return pb.PinReferenceResponse(pin=_drift_pin(pin, live) if pin is not None else None)

    async def attend(self, reports: AsyncIterator[pb.TrainerReport], _call: Call) -> AsyncIterator[pb.TrainerCommand]:
        """The trainer's channel."""
        if not self._channel.enabled:
            raise NoTrainer("this server runs without a trainer")
        self._supervisor.attended()
        async for command in self._channel.attend(reports):
            yield command

    # --- state

    async def status(self, _request: pb.StatusRequest, _call: Call) -> pb.StatusResponse:
        """The server, its models and the trainer at a glance."""
        return pb.StatusResponse(
            version=version("trimtab"),
            ready=self._registry.ready,
            draining=self._registry.draining,
            uptime_seconds=time.monotonic() - self._began,
            models=[_model_status(model) for model in self._registry.models.values()],
            trainer=self.trainer_status(),
        )

    def trainer_status(self) -> pb.TrainerStatus:
        """What the trainer says of itself, and what its supervisor knows better."""
        status = pb.TrainerStatus()
        status.CopyFrom(self._channel.status)
        supervisor = self._supervisor
        if not self._channel.attending or not status.state:
            status.state = supervisor.state
            status.step = ""
        status.pid = supervisor.pid
        status.restarts = supervisor.restarts
        status.last_error = status.last_error or supervisor.last_error
        return status

    async def forget(self, request: pb.ForgetRequest, _call: Call) -> pb.ForgetResponse:
        """Deletes rows, predictions and labels of requests for good."""
        model = self._serving(request.model_name)
        ids = [parse_id(text) for text in request.request_ids]
        await self._advancer.seal([model])
        # The copy of recent rows has no ids: all of it goes.
        if model.engine.keeper is not None:
            model.engine.keeper.recent = None
        rows = await asyncio.to_thread(model.captures.forget, ids) if model.captures is not None else 0
        labels = await asyncio.to_thread(model.labels.forget, ids)
        return pb.ForgetResponse(rows=rows, labels=labels)

    def _open(self) -> None:
        if self._registry.draining:
            raise Draining("the server is stopping")

    def _serving(self, name: str) -> Model:
        self._open()
        return self._registry.model(name)


def _promoted(model: Model, live: Live) -> pb.PromoteResponse:
    loaded = model.engine.table.loaded.get(live.live)
    weights = loaded.weights if loaded is not None else ""
    return pb.PromoteResponse(live=live.live, previous=live.previous or 0, epoch=live.epoch, weights=weights)


def _chosen(request: pb.PinReferenceRequest) -> Callable[[WindowFolder], Pin] | None:
    kind = request.WhichOneof("reference")
    if kind is None:
        return None
    if kind == "windows":
        first, last = request.windows.first, request.windows.last
        if not 1 <= first <= last:
            raise InvalidRequest(f"windows: expected numbers from 1, the first not after the last, got {first}-{last}")
        return lambda folder: pin_of_windows(folder, first, last)
    # An origin is one line, wherever it is shown.
    origin = " ".join(request.origin.split())[:_ORIGIN] or "a sketch"
    pin = pin_of_bytes(request.sketch, origin)
    return lambda _folder: pin


def _drift_pin(pin: Pin, live: LoadedVersion) -> pb.DriftPin:
    fits = pin.sketch.spec.hash == live.program.sketch.hash
    return pb.DriftPin(origin=pin.origin, pinned_us=pin.pinned_us, rows=pin.rows, sha256=pin.sha256, fits=fits)


def _model_status(model: Model) -> pb.ModelStatus:
    current, counts = model.swap.current, model.engine.counts
    quality = model.quality.get(current.live)
    captured = model.captures.stats() if model.captures is not None else None
    live = model.engine.table.live
    pin = model.drift.pinned if model.drift is not None else None
    return pb.ModelStatus(
        name=model.name,
        live=current.live,
        previous=current.previous or 0,
        weights=model.engine.table.live.weights,
        requests=counts.requests,
        rows=counts.rows,
        failed=counts.failed,
        queued=max(model.engine.waiting, 0),
        captured_rows=captured.rows if captured is not None else 0,
        dropped_rows=captured.dropped if captured is not None else 0,
        labels=model.labels.count(),
        quality=dict(quality.metrics) if quality is not None else {},
        drifted_features=model.drift.alarms if model.drift is not None else 0,
        drift_pin=_drift_pin(pin, live) if pin is not None and isinstance(live, LoadedVersion) else None,
    )


def _needs_person(model: Model, call: Call) -> bool:
    return model.settings.rollout.approve == "person" and _caller(call) == TRAINER


def _caller(call: Call) -> str:
    for key, value in call.invocation_metadata() or ():
        if key == CALLER:
            return value if isinstance(value, str) else ""
    return ""
