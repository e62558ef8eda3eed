"""The serving process: what it is made of, in which order it starts, and in which it stops.

    loop (uvloop)   transport and servicers, HTTP, channel and supervisor of the trainer
    hub             native: requests from bytes to answers, queues, batches (csrc/hub.h); has no thread of its own
    compute thread  batches: columns, model
    a thread        spans of traced requests, where tracing is on
    a thread each   capture writer, label store, drift, stage, flip (per model)
    a process       the trainer

Start: lock the state → HTTP port (not ready yet) → models → compute → gRPC and the admin socket → trainer → ready.

Stop, on SIGTERM or SIGINT, in all at most drain_seconds (plus a moment to end processes by force):
  1. readiness false, health NOT_SERVING; new requests get UNAVAILABLE
  2. accepted requests and labels are answered
  3. the public port closes
  4. captures are sealed, labels committed, drift windows recorded; spans sent
  5. the trainer is told, and leaves
  6. admin socket and HTTP close; the lock goes
A second signal ends the process at once.

A GPU that is lost (an illegal memory access, say) takes the process' CUDA context with it, and nothing within it helps.
So the server stops as above, with UNAVAILABLE from that batch on, and ends with exit code EXIT_DEVICE_LOST: whatever
supervises it starts a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable
from typing import Any

import torch
import uvloop
from trimtab._native import HAS_FRONT, HotTarget, Hub, keep_freed_memory
from trimtab.kernels import divergences
from trimtab.kernels.errors import KernelError
from trimtab.models.errors import ModelError
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.advance import Advancer
from trimtab.server.channel import TrainerChannel
from trimtab.server.compute import ComputeThread
from trimtab.server.errors import DeviceLost, ServerError, StartError
from trimtab.server.events import EventBus
from trimtab.server.gpu_share import mps_runs, share_environment
from trimtab.server.http import HttpServer
from trimtab.server.idle import Idle
from trimtab.server.local_calls import LocalCalls
from trimtab.server.memory import ModelMemory
from trimtab.server.metrics import Metrics
from trimtab.server.opening import close_model, open_model
from trimtab.server.pacing import Pacing
from trimtab.server.repository import Repository
from trimtab.server.rest import Rest
from trimtab.server.runtime import Address, StateLock, admin_path, remove_address, write_address
from trimtab.server.served import Model, Registry
from trimtab.server.servicers.drift import DriftServicer
from trimtab.server.servicers.feedback import FeedbackGroups, FeedbackServicer
from trimtab.server.servicers.health import Health, reflection
from trimtab.server.servicers.inference import InferenceServicer
from trimtab.server.servicers.lifecycle import LifecycleServicer
from trimtab.server.servicers.log_settings import LogControl, LogSwitch
from trimtab.server.servicers.model_control import ModelControl
from trimtab.server.servicers.shared_memory import SharedMemoryControl
from trimtab.server.supervisor import Supervisor
from trimtab.server.tls import TlsFiles
from trimtab.server.tracing import tracing_of
from trimtab.server.transport import Listener, Service, Transport
from trimtab.server.transport_grpcio import GrpcioTransport
from trimtab.store.errors import StoreError
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings

__all__ = ["EXIT_DEVICE_LOST", "NO_TRAINER", "Server", "serve"]

NO_TRAINER = "TRIMTAB_NO_TRAINER"
"""Set to anything but 0 or empty: no trainer is started, whatever the project says."""

EXIT_DEVICE_LOST = 75
"""sysexits' EX_TEMPFAIL: to be started again."""

_log = logging.getLogger(__name__)
_PUBLIC, _ADMIN = 0, 1
_SWITCH_SECONDS = 0.0005
# Seconds: for what should be instant; without a call, after which clients have gone; to wait for that.
_MOMENT, _QUIET, _LAME_DUCK = 0.5, 0.1, 2.0


def serve(
    project: Project,
    *,
    grpc_port: int | None = None,
    http_port: int | None = None,
    transport: str | None = None,
    device: str | None = None,
    trainer: bool | None = None,
    as_json: bool = False,
) -> int:
    """Serves the project until a signal ends it; what is None comes from [server]. Returns the exit code, or ends the
    process with it where its GPU is lost.

    Prints one line to stdout when it is ready. Where it cannot start, prints one line to stderr and returns 1.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("trimtab").setLevel(logging.INFO)
    settings = project.server.model_copy(
        update={
            key: value
            for key, value in (
                ("grpc_port", grpc_port),
                ("http_port", http_port),
                ("transport", transport),
                ("device", device),
                ("trainer", trainer),
            )
            if value is not None
        }
    )
    changed = dataclasses.replace(project, server=settings)

    async def main() -> int:
        return await Server(changed, as_json=as_json).main()

    try:
        # A compute thread that wants the interpreter gets it within this time, however busy the loop is.
        sys.setswitchinterval(_SWITCH_SECONDS)
        keep_freed_memory()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except DeviceLost as error:
        print(f"trimtab: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_DEVICE_LOST
    except (ServerError, StoreError, KernelError, ModelError) as error:
        print(f"trimtab: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


class Server:
    """One process' worth of serving: `main` is `startup`, `run`, `shutdown`. Made on the loop that it runs on."""

    def __init__(self, project: Project, *, as_json: bool = False) -> None:
        """Makes the parts; nothing runs yet. Raises StartError."""
        settings = project.server
        if settings.transport == "native" and not HAS_FRONT:
            raise StartError("transport 'native' was not built; install its libraries and Trimtab again, or use auto")
        self._project = project
        self._settings = settings
        self._as_json = as_json
        self._device = _device(settings.device)
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._device_lost = False
        self._lock: StateLock | None = None
        self._announcements: asyncio.Task[None] | None = None
        self._paces: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[object] | None = None
        self._health: list[Health] = []
        self._registry = Registry()
        self._events = EventBus()
        self._shared = SharedMemoryControl(settings.max_message_bytes, allowed=project.security.shared_memory)
        self._hub = Hub(self._shared.memory)
        self._spans = tracing_of(settings.tracing)
        if self._spans is not None:
            self._hub.trace(self._spans.tracing)
        self._calls = LocalCalls(self._hub, traces=self._spans is not None)
        self._feedback = FeedbackGroups(self._registry)
        self._compute = ComputeThread(
            self._device,
            settings.threads,
            self._hub,
            stall_seconds=settings.stall_seconds,
            on_stall=self._on_stall,
        )
        self._memory = ModelMemory(settings.max_model_bytes)
        self._idle = Idle(self._memory)
        self._putting_to_sleep: asyncio.Task[None] | None = None
        self._repository = Repository(
            project,
            self._registry,
            self._events,
            open_model=self._open,
            on_change=self._on_model_change,
            unload_seconds=settings.drain_seconds,
        )
        # Models that only take tensors leave a trainer nothing to do.
        trains = settings.trainer and not _switched_off() and any(model.retrainable for model in project.models)
        self._channel = TrainerChannel(self._on_report, enabled=trains)
        self._supervisor = Supervisor(
            project.directory,
            project.state / "trainer.log",
            self._channel,
            self._events,
            environment=self._trainer_environment() if trains else {},
        )
        self._advancer = Advancer(self._registry, self._compute, self._channel)
        self._lifecycle = LifecycleServicer(
            self._registry, self._advancer, self._channel, self._supervisor, self._events
        )
        self._metrics = Metrics(self._registry, self._hub, self._channel, self._lifecycle.trainer_status)
        self._metrics.spans = self._spans
        self._pacing: Pacing | None = None
        if trains and settings.trainer_p99_budget > 0 and not settings.lockstep:
            self._pacing = Pacing(self._latencies, self._channel, self._events, settings.trainer_p99_budget)
            self._metrics.duty = self._pacing.duty
        self._tls = TlsFiles.of(project.security, project.directory)
        self._transport = self._make_transport()
        everybody = project.security.model_control == "everywhere"
        self._log_switch = LogSwitch()
        self._inference = InferenceServicer(
            self._registry,
            self._calls,
            self._control(everybody),
            self._shared,
            LogControl(self._log_switch, self._registry, allowed=everybody),
        )
        rest = Rest(
            self._inference.service(),
            started=lambda: self._registry.started,
            max_message_bytes=settings.max_message_bytes,
            observer=self._metrics.call,
        )
        self._http = HttpServer(self._registry, self._metrics.page, rest, tls=self._tls)

    def _make_transport(self) -> Transport:
        settings, observer, tls = self._settings, self._metrics.call, self._tls
        if settings.transport == "grpcio" or not HAS_FRONT:
            given = {name: getattr(settings.limits, name) for name in settings.limits.model_fields_set}
            return GrpcioTransport(
                max_message_bytes=settings.max_message_bytes, observer=observer, tls=tls, limits=given
            )
        # The front is there only where it was built.
        from trimtab.server.transport_native import NativeTransport

        hot: dict[str, HotTarget] = {
            "/inference.GRPCInferenceService/ModelInfer": self._hub,
            "/inference.GRPCInferenceService/ModelStreamInfer": self._hub,
            "/trimtab.v1.Feedback/Send": self._feedback.queue,
        }
        native = NativeTransport(
            max_message_bytes=settings.max_message_bytes,
            observer=observer,
            io_threads=settings.io_threads,
            tls=tls,
            hot=hot,
            limits=settings.client_limits(),
        )
        self._metrics.native_calls = native.calls
        return native

    async def main(self) -> int:
        """Starts, runs until told to stop, stops; ends the process if stopping takes too long. The exit code.

        Raises StartError, StoreError where it cannot start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._lock = StateLock(self._project.state)
        try:
            await self.startup()
            await self.run()
        finally:
            done = await self.shutdown()
            if not done or self._device_lost:
                # Whatever hangs would keep the interpreter from ending: its threads cannot be cancelled. And without
                # its GPU, it would end in the destructors of what was there.
                sys.stderr.flush()
                os._exit(EXIT_DEVICE_LOST if self._device_lost else 1)
        return 0

    def _on_signal(self) -> None:
        if self._stop.is_set():
            # The trainer dies with this process. Requests under way, and rows that are not on disk, are lost.
            _log.warning("second signal: ending at once")
            os._exit(1)
        self._stop.set()

    # --- startup

    async def startup(self) -> None:
        """See the module."""
        settings = self._settings
        self._log_switch.attach()
        self._shared.startup(self._on_fault)
        torch.set_num_threads(settings.threads)
        if self._spans is not None:
            self._spans.startup()
        http = await self._http.startup(settings.host, settings.http_port)
        await self._repository.startup()
        self._compute.startup(self._registry.engines)
        self._feedback.startup()
        grpc, admin = await self._listen()
        write_address(self._project.state, Address(os.getpid(), grpc, http, admin))
        self._registry.started = True
        for health in self._health:
            health.set(True)
        if self._channel.enabled:
            self._supervisor.startup()
            if not settings.lockstep:
                self._announcements = asyncio.create_task(self._advancer.announce(), name="announcements")
                self._announcements.add_done_callback(_log_failure)
            if self._pacing is not None:
                self._paces = asyncio.create_task(self._pacing.run(), name="paces of the trainer")
                self._paces.add_done_callback(_log_failure)
        self._putting_to_sleep = asyncio.create_task(self._idle.run(), name="putting idle versions to sleep")
        self._putting_to_sleep.add_done_callback(_log_failure)
        self._say_ready(grpc, http, admin)
        # What was made so far stays: the collector need not look at it again, which would stop every thread.
        gc.freeze()
        # The first drift window is not to wait for it, nor the start.
        self._warming = asyncio.create_task(asyncio.to_thread(divergences.special), name="warming")
        self._warming.add_done_callback(_log_failure)

    def _open(self, project: Project, settings: ModelSettings) -> Model:
        return open_model(
            project,
            settings,
            compute=self._compute,
            memory=self._memory,
            idle=self._idle,
            events=self._events,
            on_drift=self._on_drift,
            on_fault=self._on_fault,
        )

    def _on_stall(self, name: str, stalls: bool) -> None:
        text = f"model {name!r} {'stalls, and takes no requests until it has answered' if stalls else 'answers again'}"
        self._events.publish("stalled", name, text)

    def _on_fault(self, what: str) -> None:
        """Any thread, and for each batch that still comes."""
        if self._device_lost:
            return
        self._device_lost = True
        self._events.publish("device_lost", "", what)
        self._hub.set_draining(True)
        # The loop may be closed: the server is about to end anyway.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)

    def _on_model_change(self, model: Model) -> None:
        # The trainer knows the models of the trimtab.toml that it started with.
        if model.settings.retrainable and self._channel.enabled:
            self._supervisor.renew()

    async def _listen(self) -> tuple[str, str]:
        drift = DriftServicer(self._registry).service()
        public = [
            self._inference.service(),
            FeedbackServicer(self._registry).service(),
            drift,
        ]
        path = admin_path(self._project.state)
        log = LogControl(self._log_switch, self._registry, allowed=True)
        listeners = [
            self._listener(f"{self._settings.host}:{self._settings.grpc_port}", public),
            self._listener(
                f"unix:{path}", [self._lifecycle.service(), self._control(True).service(log.handlers()), drift]
            ),
        ]
        grpc, _ = await self._transport.start(listeners)
        return grpc, str(path)

    def _control(self, allowed: bool) -> ModelControl:
        return ModelControl(self._registry, self._repository, allowed=allowed)

    def _listener(self, address: str, services: list[Service]) -> Listener:
        """A listener with its services, their health and their reflection."""
        health = Health([service.name for service in services])
        self._health.append(health)
        offered = [*services, health.service()]
        return Listener(address, (*offered, reflection([service.name for service in offered])))

    def _say_ready(self, grpc: str, http: str, admin: str) -> None:
        if self._as_json:
            line = json.dumps({"grpc": grpc, "http": http, "admin": admin, "pid": os.getpid()})
        else:
            engines = self._registry.engines.values()
            models = ", ".join(f"{engine.name} version {engine.table.live.number}" for engine in engines)
            line = f"trimtab: serving {models} on grpc {grpc}, http {http}"
        # Nobody may be reading; that is no reason to stop.
        with contextlib.suppress(OSError):
            print(line, flush=True)

    # --- run

    async def run(self) -> None:
        """Returns when the server is to stop."""
        await self._stop.wait()

    def _trainer_environment(self) -> dict[str, str]:
        on_gpu = any(model.retrainable and model.retrain.device == "cuda" for model in self._project.models)
        added, told = share_environment(self._settings.trainer_gpu_share, on_gpu=on_gpu, mps=mps_runs())
        if told:
            self._events.publish("note", "", told)
        return added

    def _latencies(self) -> dict[str, bytes]:
        found = {}
        for name, engine in self._registry.engines.items():
            # One that is being unloaded may have left the hub already.
            with contextlib.suppress(ValueError):
                found[name] = self._hub.latencies(name) if engine.ready else b""
        return {name: copied for name, copied in found.items() if copied}

    def _on_report(self, report: pb.TrainerReport) -> None:
        if self._pacing is not None:
            self._pacing.heard()
        for event in report.events:
            self._events.forward(event)
        for quality in report.quality:
            model = self._registry.models.get(quality.model_name)
            if model is not None:
                model.quality[quality.version] = quality

    def _on_drift(self, report: pb.DriftReport) -> None:
        if self._channel.enabled:
            with contextlib.suppress(ServerError):
                self._channel.send(pb.TrainerCommand(drift=report))

    # --- shutdown

    async def shutdown(self) -> bool:
        """See the module; also after a start that failed half way. Whether all of it was done in time."""
        left = _Countdown(self._settings.drain_seconds)
        self._registry.draining = True
        self._hub.set_draining(True)
        self._feedback.queue.set_draining(True)
        for health in self._health:
            health.set(False)
        done = await self._drain(left)
        for task in (self._announcements, self._paces, self._putting_to_sleep):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        done &= await asyncio.to_thread(self._compute.shutdown, left())
        done &= await _in_time(asyncio.to_thread(self._feedback.shutdown), left(), "storing labels")
        for model in self._registry.models.values():
            done &= await _in_time(asyncio.to_thread(close_model, model), left(), f"closing model {model.name}")
        if self._spans is not None:
            await asyncio.to_thread(self._spans.shutdown, left())
        if self._channel.enabled:
            if self._channel.attending:
                self._channel.send(pb.TrainerCommand(shutdown=pb.ShutdownCommand()))
            await self._supervisor.shutdown(left())
        self._channel.close()
        self._events.close()
        await self._transport.stop(_ADMIN, _MOMENT)
        await self._http.shutdown()
        self._calls.close()
        self._shared.shutdown()
        remove_address(self._project.state)
        if self._lock is not None:
            self._lock.release()
        return done

    async def _drain(self, left: _Countdown) -> bool:
        drained = await _in_time(self._transport.drained(), left(), "answering what was accepted")
        drained &= await _in_time(self._calls.drained(), left(), "answering what streams have sent")
        if drained:
            # Closing the port under clients that still send ends their calls as CANCELLED, where UNAVAILABLE would have
            # told them to send again. So they are told for a while, until they have gone elsewhere.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._transport.drained(_QUIET), min(left(), _LAME_DUCK))
        # Handlers have returned; what they returned may still be on its way.
        await self._transport.stop(_PUBLIC, _MOMENT)
        return drained


async def _in_time(work: Awaitable[None], seconds: float, what: str) -> bool:
    """Awaits the work for so long; whether it ended."""
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        _log.error("%s took longer than drain_seconds allows", what)
        return False
    return True


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s ended", task.get_name(), exc_info=error)


class _Countdown:
    """Seconds left of so many, but always a moment."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def __call__(self) -> float:
        return max(_MOMENT, self._end - time.monotonic())


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise StartError("device cuda was asked for, and torch sees no GPU; use cpu, or auto")
    return name


def _switched_off() -> bool:
    return os.environ.get(NO_TRAINER, "0") not in ("", "0")
