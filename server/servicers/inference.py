"""GRPCInferenceService: ModelInfer on raw bytes, and what a client may ask about the server and its models.

ModelInfer and ModelStreamInfer make no protobuf objects: bytes go to the hub, which reads them in place, and encoded
answers come back. (Under the native transport they do not even come here.) What is not implemented here answers
UNIMPLEMENTED, and is not among the `extensions` of ServerMetadata.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import version

from trimtab.models.loading import Version
from trimtab.models.version import LoadedVersion
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.engine import Engine
from trimtab.server.errors import NotFound
from trimtab.server.local_calls import LocalCalls
from trimtab.server.memory import sizes_of
from trimtab.server.served import Registry
from trimtab.server.servicers.log_settings import LogControl
from trimtab.server.servicers.model_control import ModelControl
from trimtab.server.servicers.shared_memory import SharedMemoryControl
from trimtab.server.statistics import Stage, VersionCounts
from trimtab.server.transport import Call, Handler, Service, service
from trimtab.store.settings import QueuePolicySettings

__all__ = ["InferenceServicer"]

_PLATFORM = "trimtab"
_HOT = ("ModelInfer", "ModelStreamInfer")
# Of one stream that are under way together; more are not read until some are answered.
_STREAM_REQUESTS = 1024
# Triton's names; others depend on settings.
_EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)


class InferenceServicer:
    """See the module."""

    def __init__(
        self,
        registry: Registry,
        calls: LocalCalls,
        control: ModelControl,
        memory: SharedMemoryControl,
        log: LogControl,
    ) -> None:
        """`control`, `memory`, `log`: what a client of this listener may do about models, shared memory and the log."""
        self._control = control
        self._memory = memory
        self._log = log
        self._registry = registry
        self._calls = calls
        self._engines = registry.engines

    def service(self) -> Service:
        """The service, for a listener."""
        handlers: dict[str, Handler] = {
            "ModelInfer": self.infer,
            "ModelStreamInfer": self.stream_infer,
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            **self._control.handlers(),
            **self._memory.handlers(),
            **self._log.handlers(),
        }
        descriptor = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        return service(descriptor, handlers, raw=_HOT, accepted=_HOT)

    async def infer(self, body: bytes, call: Call) -> bytes:
        """ModelInfer, bytes to bytes."""
        return await self._calls.call(body, call.time_remaining(), traceparent=self._traceparent(call))

    async def stream_infer(self, bodies: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """ModelStreamInfer: each message is a request of its own, answered when it is computed; errors go in-band."""
        answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        room = asyncio.Semaphore(_STREAM_REQUESTS)
        traceparent = self._traceparent(call)

        async def answer(body: bytes) -> None:
            remaining = call.time_remaining()
            answers.put_nowait(await self._calls.call(body, remaining, in_stream=True, traceparent=traceparent))
            room.release()

        async def read() -> None:
            async with asyncio.TaskGroup() as requests:
                async for body in bodies:
                    await room.acquire()
                    requests.create_task(answer(body))
            answers.put_nowait(None)

        reader = asyncio.create_task(read())
        reader.add_done_callback(lambda _: answers.put_nowait(None))
        try:
            while (message := await answers.get()) is not None:
                yield message
            await reader
        finally:
            reader.cancel()

    def _traceparent(self, call: Call) -> str:
        """The client's trace context; empty without one, and where nothing is traced."""
        if not self._calls.traces:
            return ""
        found = [value for name, value in call.invocation_metadata() or () if name == "traceparent"]
        # More than one is none: nobody can say which is meant.
        return found[0] if len(found) == 1 and isinstance(found[0], str) else ""

    async def server_live(self, _request: pb.ServerLiveRequest, _call: Call) -> pb.ServerLiveResponse:
        """Whether the process answers at all."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _request: pb.ServerReadyRequest, _call: Call) -> pb.ServerReadyResponse:
        """Whether every model serves and new requests are taken."""
        return pb.ServerReadyResponse(ready=self._registry.ready)

    async def server_metadata(self, _request: pb.ServerMetadataRequest, _call: Call) -> pb.ServerMetadataResponse:
        """Name, version and the extensions that are offered."""
        extensions: list[str] = list(_EXTENSIONS)
        extensions += self._memory.extensions
        if self._log.offered:
            extensions.append("logging")
        return pb.ServerMetadataResponse(name="trimtab", version=version("trimtab"), extensions=sorted(extensions))

    async def model_ready(self, request: pb.ModelReadyRequest, _call: Call) -> pb.ModelReadyResponse:
        """Whether the model, or a version of it, would answer; one that is not there would not."""
        engine = self._engines.get(request.name)
        if engine is None or not engine.ready or engine.stalled or not self._registry.ready:
            return pb.ModelReadyResponse(ready=False)
        table = engine.table
        loaded = {*map(str, table.loaded), *table.aliases}
        return pb.ModelReadyResponse(ready=not request.version or request.version in loaded)

    async def model_metadata(self, request: pb.ModelMetadataRequest, _call: Call) -> pb.ModelMetadataResponse:
        """Inputs and outputs, with -1 for the number of rows."""
        engine = self._engine(request.name)
        _version(engine, request.version)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=engine.name,
            versions=[str(number) for number in sorted(engine.table.loaded)],
            platform=_PLATFORM,
            inputs=[tensor(name=name, datatype=kind, shape=[-1, *dims]) for name, kind, dims in engine.inputs],
            outputs=[tensor(name=name, datatype=kind, shape=[-1, *dims]) for name, kind, dims in engine.outputs],
        )

    async def model_config(self, request: pb.ModelConfigRequest, _call: Call) -> pb.ModelConfigResponse:
        """The model's settings in the form of Triton's model configuration."""
        engine = self._engine(request.name)
        return pb.ModelConfigResponse(config=_config(engine, _version(engine, request.version)))

    async def model_statistics(self, request: pb.ModelStatisticsRequest, _call: Call) -> pb.ModelStatisticsResponse:
        """Counts and times per version since the server started. No name: all models; no version: all that served."""
        engines = [self._engine(request.name)] if request.name else list(self._engines.values())
        response = pb.ModelStatisticsResponse()
        for engine in engines:
            loaded = engine.table.loaded
            served = engine.counts.versions
            known = dict.fromkeys([*loaded, *served])
            if request.version:
                known = {n: None for n in known if str(n) == request.version}
                if not known:
                    raise NotFound(f"model {engine.name!r} has no version {request.version!r} with statistics")
            for number in sorted(known):
                counts = served.get(number) or VersionCounts()
                response.model_stats.append(_statistics(engine.name, number, counts, loaded.get(number)))
        return response

    async def repository_index(self, request: pb.RepositoryIndexRequest, _call: Call) -> pb.RepositoryIndexResponse:
        """All models with their loaded versions; `ready` leaves out those that would not answer."""
        index = pb.RepositoryIndexResponse.ModelIndex
        models = []
        for engine in self._engines.values():
            if engine.ready:
                state = "READY" if self._registry.ready and not engine.stalled else "UNAVAILABLE"
                reason = "it stalls" if engine.stalled else ""
                reason = "the server is stopping" if self._registry.draining else reason
                models += [
                    index(name=engine.name, version=str(number), state=state, reason=reason or _sleep_of(version))
                    for number, version in sorted(engine.table.loaded.items())
                ]
        models += [index(name=n, state="UNAVAILABLE", reason=why) for n, why in self._registry.absent.items()]
        return pb.RepositoryIndexResponse(models=[m for m in models if m.state == "READY" or not request.ready])

    def _engine(self, name: str) -> Engine:
        engine = self._engines.get(name)
        if engine is None:
            raise self._unknown(name)
        return engine

    def _unknown(self, name: str) -> NotFound:
        why = self._registry.absent.get(name)
        if why is not None:
            return NotFound(f"model {name!r} is not loaded: {why}")
        return NotFound(f"no model {name!r}; this server has {', '.join(map(repr, self._engines))}")


def _version(engine: Engine, text: str) -> Version:
    table = engine.table
    if not text:
        return table.live
    if text in table.aliases:
        return table.loaded[table.aliases[text]]
    for number, loaded in table.loaded.items():
        if str(number) == text:
            return loaded
    known = ", ".join([*map(str, sorted(table.loaded)), *sorted(table.aliases)])
    raise NotFound(f"model {engine.name!r} has no version {text!r} loaded; loaded: {known}")


def _config_type(datatype: str) -> pb.DataType.ValueType:
    return pb.DataType.Value("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}")


def _config(engine: Engine, loaded: Version) -> pb.ModelConfig:
    batching = engine.settings.batching
    kind = pb.ModelInstanceGroup.KIND_GPU if loaded.device.type == "cuda" else pb.ModelInstanceGroup.KIND_CPU
    parameters = {
        "task": engine.settings.task,
        "classes": ",".join(loaded.task.classes) if isinstance(loaded, LoadedVersion) else "",
        "architecture": str(loaded.manifest.architecture.get("kind", "")),
        "weights": loaded.weights,
    }
    return pb.ModelConfig(
        name=engine.name,
        platform=_PLATFORM,
        backend=_PLATFORM,
        max_batch_size=batching.max_batch_size,
        input=[pb.ModelInput(name=name, data_type=_config_type(kind), dims=dims) for name, kind, dims in engine.inputs],
        output=[
            pb.ModelOutput(name=name, data_type=_config_type(kind), dims=dims) for name, kind, dims in engine.outputs
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            preferred_batch_size=batching.preferred_batch_size,
            max_queue_delay_microseconds=batching.max_queue_delay_microseconds,
            preserve_ordering=batching.preserve_ordering,
            priority_levels=batching.priority_levels,
            default_priority_level=batching.default_priority_level,
            default_queue_policy=_queue_policy(batching.queue_policy(0)),
            priority_queue_policy={
                int(level): _queue_policy(policy) for level, policy in batching.priority_queue_policy.items()
            },
        ),
        instance_group=[pb.ModelInstanceGroup(name=f"{engine.name}_0", kind=kind, count=1)],
        parameters={key: pb.ModelParameter(string_value=value) for key, value in parameters.items() if value},
    )


def _queue_policy(policy: QueuePolicySettings) -> pb.ModelQueuePolicy:
    return pb.ModelQueuePolicy(
        timeout_action=pb.ModelQueuePolicy.TimeoutAction.Value(policy.timeout_action),
        default_timeout_microseconds=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _statistics(name: str, number: int, counts: VersionCounts, loaded: Version | None) -> pb.ModelStatistics:
    sizes = sorted(counts.sizes.items())
    return pb.ModelStatistics(
        name=name,
        version=str(number),
        last_inference=counts.last_ms,
        inference_count=counts.rows,
        execution_count=counts.batches,
        inference_stats=pb.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.fail),
            queue=_duration(counts.queue),
            compute_input=_duration(counts.input),
            compute_infer=_duration(counts.infer),
            compute_output=_duration(counts.output),
            # There is no cache of answers.
            cache_hit=pb.StatisticDuration(),
            cache_miss=pb.StatisticDuration(),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(size.input),
                compute_infer=_duration(size.infer),
                compute_output=_duration(size.output),
            )
            for rows, size in sizes
        ],
        memory_usage=[_memory_of(loaded)] if loaded else [],
    )


def _sleep_of(version: Version) -> str:
    return "it sleeps; a request wakes it" if version.asleep else ""


def _memory_of(version: Version) -> pb.MemoryUsage:
    """What it needs, that which it shares with other versions included."""
    (size,) = sizes_of({version.number: version}).values()
    return pb.MemoryUsage(type=version.device.type.upper(), byte_size=size)


def _duration(stage: Stage) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=stage.count, ns=stage.ns)
