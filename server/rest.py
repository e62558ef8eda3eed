"""REST v2, KServe's protocol with Triton's extensions: paths and JSON on the HTTP port, the gRPC servicers behind them.

A path names a method of GRPCInferenceService; its parts and body become that method's message, its answer becomes JSON.
So both protocols answer from the same handlers, and mean the same. Inference goes down the hot path as bytes
(rest_tensors.py).

An error is {"error": "..."}. Its HTTP status is Triton's where Triton has such an error, else the one that goes with
the gRPC status.

The `timeout` of an inference request is also the deadline of the call, for HTTP has no other. A client that goes away
takes its request out of the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from google.protobuf.message import Message
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.errors import DeadlinePassed, Disconnected, Draining, InvalidRequest, ServerError, TooLarge, status
from trimtab.server.rest_body import Bodies, compress, disconnected
from trimtab.server.rest_json import parse_object, raw_handle_of, set_repository_parameters, set_setting, to_json
from trimtab.server.rest_tensors import decode_infer_body, encode_infer_body
from trimtab.server.transport import Handler, Observer, Service

__all__ = ["HTTP_STATUS", "HttpCall", "Rest", "error_response", "refuse_path"]

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)
_HEADER_LENGTH = "inference-header-content-length"
# Answers that take longer to convert are not converted on the loop.
_LARGE = 1 << 16

HTTP_STATUS = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "ALREADY_EXISTS": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""HTTP's number for a gRPC status; all others are 500."""


class HttpCall:
    """What a handler may ask about a call that came over HTTP; see trimtab.server.transport.Call."""

    def __init__(self, request: Request, timeout: float | None = None) -> None:
        self._request = request
        loop = asyncio.get_running_loop()
        self._deadline = None if timeout is None else loop.time() + timeout

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - asyncio.get_running_loop().time())

    def invocation_metadata(self) -> Any:
        """The headers, their names in lower case."""
        return tuple(self._request.headers.items())

    def peer(self) -> str:
        """Where the call came from, in gRPC's form."""
        client = self._request.client
        if client is None:
            return "unix:"
        family, host = ("ipv6", f"[{client.host}]") if ":" in client.host else ("ipv4", client.host)
        return f"{family}:{host}:{client.port}"

    def auth_context(self) -> dict[str, list[bytes]]:
        """Nothing: the HTTP port does not identify its clients."""
        return {}

    def set_trailing_metadata(self, metadata: Any) -> None:
        """HTTP/1.1 answers have no trailers here; what a handler sets is dropped."""

    async def send_initial_metadata(self, metadata: Any) -> None:
        """As set_trailing_metadata."""


class Rest:
    """The routes of REST v2 over the handlers of GRPCInferenceService. Lives on the loop."""

    def __init__(
        self, service: Service, *, started: Callable[[], bool], max_message_bytes: int, observer: Observer
    ) -> None:
        """`started`: whether the models are there; before, only the server itself can be asked about."""
        self._handlers: dict[str, Handler] = {method.name: method.handler for method in service.methods}
        self._bodies = Bodies(max_message_bytes)
        self._observer = observer
        self._started = started

    def routes(self) -> list[Route]:
        """All paths of the protocol. What is under /v2 and none of them is for the caller to refuse."""
        model = "/v2/models/{name}"
        shared = "/v2/systemsharedmemory"
        cuda = "/v2/cudasharedmemory"
        return [
            self._get("/v2", "ServerMetadata", pb.ServerMetadataRequest),
            self._ready("/v2/health/live", "ServerLive", pb.ServerLiveRequest, "live"),
            self._ready("/v2/health/ready", "ServerReady", pb.ServerReadyRequest, "ready"),
            self._get("/v2/models/stats", "ModelStatistics", pb.ModelStatisticsRequest),
            *self._versioned(f"{model}", "ModelMetadata", pb.ModelMetadataRequest, _as_it_is),
            *self._versioned(f"{model}/config", "ModelConfig", pb.ModelConfigRequest, _config),
            *self._versioned(f"{model}/stats", "ModelStatistics", pb.ModelStatisticsRequest, _as_it_is),
            self._ready(f"{model}/ready", "ModelReady", pb.ModelReadyRequest, "ready"),
            self._ready(f"{model}/versions/{{version}}/ready", "ModelReady", pb.ModelReadyRequest, "ready"),
            self._infer(f"{model}/infer"),
            self._infer(f"{model}/versions/{{version}}/infer"),
            self._post("/v2/repository/index", "RepositoryIndex", pb.RepositoryIndexRequest, _index),
            self._post("/v2/repository/models/{model_name}/load", "RepositoryModelLoad", pb.RepositoryModelLoadRequest),
            self._post(
                "/v2/repository/models/{model_name}/unload", "RepositoryModelUnload", pb.RepositoryModelUnloadRequest
            ),
            *self._regions(shared, "SystemSharedMemory"),
            *self._regions(cuda, "CudaSharedMemory"),
            *self._settings("/v2/logging", "LogSettings", pb.LogSettingsRequest),
            *self._settings("/v2/trace/setting", "TraceSetting", pb.TraceSettingRequest),
            *self._settings("/v2/models/{model_name}/trace/setting", "TraceSetting", pb.TraceSettingRequest),
        ]

    # --- kinds of routes

    def _get(
        self, path: str, method: str, kind: Callable[[], Message], shape: Callable[[Message], Any] | None = None
    ) -> Route:
        """GET, the message from the path alone."""

        async def answer(request: Request) -> Response:
            return _json((shape or _as_it_is)(await self._call(method, _from_path(kind(), request), request)))

        return self._route(path, method, answer, "GET")

    def _versioned(
        self, path: str, method: str, kind: Callable[[], Message], shape: Callable[[Message], Any]
    ) -> list[Route]:
        start, _, end = path.partition("{name}")
        return [self._get(there, method, kind, shape) for there in (path, f"{start}{{name}}/versions/{{version}}{end}")]

    def _ready(self, path: str, method: str, kind: Callable[[], Message], field: str) -> Route:
        """GET that is answered by its status alone: 200, or Triton's 400."""

        async def answer(request: Request) -> Response:
            found = await self._call(method, _from_path(kind(), request), request)
            return Response(status_code=200) if getattr(found, field) else error_response(400, "not ready")

        return self._route(path, method, answer, "GET")

    def _post(
        self, path: str, method: str, kind: Callable[[], Message], shape: Callable[[Message], Any] | None = None
    ) -> Route:
        """POST, the message from the path and a JSON body."""

        async def answer(request: Request) -> Response:
            with self._bodies.hold() as reader:
                body = parse_object(await reader.read(request.receive, request.headers))
            message = _from_body(_from_path(kind(), request), body)
            found = await self._call(method, message, request)
            return _json(shape(found)) if shape is not None else Response(status_code=200)

        return self._route(path, method, answer, "POST")

    def _settings(self, path: str, method: str, kind: Callable[[], Message]) -> list[Route]:
        return [self._get(path, method, kind, _settings), self._post(path, method, kind, _settings)]

    def _regions(self, path: str, prefix: str) -> list[Route]:
        kinds = {part: getattr(pb, f"{prefix}{part}Request") for part in ("Status", "Register", "Unregister")}
        region = f"{path}/region/{{name}}"
        return [
            self._get(f"{path}/status", f"{prefix}Status", kinds["Status"], _regions),
            self._get(f"{region}/status", f"{prefix}Status", kinds["Status"], _regions),
            self._post(f"{region}/register", f"{prefix}Register", kinds["Register"]),
            self._post(f"{path}/unregister", f"{prefix}Unregister", kinds["Unregister"]),
            self._post(f"{region}/unregister", f"{prefix}Unregister", kinds["Unregister"]),
        ]

    def _infer(self, path: str) -> Route:
        return self._route(path, "ModelInfer", self._answer_infer, "POST")

    def _route(self, path: str, method: str, answer: Callable[[Request], Awaitable[Response]], verb: str) -> Route:
        async def endpoint(request: Request) -> Response:
            code = "OK"
            try:
                if not self._started() and not method.startswith("Server"):
                    raise Draining("the server is starting; try again later")
                return await answer(request)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except Exception as error:
                code, message = status(error)
                if code == "INTERNAL" and not isinstance(error, ServerError):
                    _log.error("REST %s failed", method, exc_info=error)
                if isinstance(error, TooLarge):
                    # The rest of its body is not read.
                    return error_response(413, message, {"connection": "close"})
                return error_response(HTTP_STATUS.get(code, 500), message)
            finally:
                self._observer(f"REST/{method}", code)

        return Route(path, endpoint, methods=[verb])

    # --- calls

    async def _call(self, method: str, message: Message, request: Request) -> Any:
        handler: Any = self._handlers[method]
        return await handler(message, HttpCall(request))

    async def _answer_infer(self, request: Request) -> Response:
        header_length = _header_length(request)
        path = request.path_params
        with self._bodies.hold() as reader:
            body = await reader.read(request.receive, request.headers)
            name, version = path["name"], path.get("version", "")
            message, wanted = await _maybe_aside(len(body), decode_infer_body, body, header_length, name, version)
            del body
            answer = await self._infer_bytes(message, HttpCall(request, wanted.timeout), request)
        made = await _maybe_aside(len(answer), encode_infer_body, answer, wanted)
        headers = {"content-type": "application/json" if made.json_bytes is None else "application/octet-stream"}
        if made.json_bytes is not None:
            headers["Inference-Header-Content-Length"] = str(made.json_bytes)
        content, encoding = await compress(made.content, request.headers.get("accept-encoding", ""))
        if encoding:
            headers["content-encoding"] = encoding
        return Response(content, headers=headers)

    async def _infer_bytes(self, message: bytes, call: HttpCall, request: Request) -> bytes:
        """The answer, unless the client goes away or its time passes before it is there."""
        handler: Any = self._handlers["ModelInfer"]
        work: asyncio.Task[bytes] = asyncio.create_task(handler(message, call))
        gone = asyncio.create_task(disconnected(request.receive))
        try:
            await asyncio.wait({work, gone}, timeout=call.time_remaining(), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise Disconnected("the client went away")
            raise DeadlinePassed("the deadline passed (parameter timeout)")
        finally:
            for task in (work, gone):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task


def error_response(number: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as the protocol has it."""
    return _json({"error": message}, number, headers)


async def refuse_path(request: Request, error: Exception) -> Response:
    """What is none of the paths, or not by this method: as the protocol's error under /v2, else as text."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if not (path == "/v2" or path.startswith("/v2/")):
        return Response(f"{error.detail}\n", error.status_code, error.headers, "text/plain")
    missing = error.status_code == 404
    message = f"no path {path!r} in the protocol" if missing else f"{request.method} is not for {path!r}"
    return error_response(error.status_code, message, error.headers)


async def _maybe_aside(size: int, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    if size <= _LARGE:
        return work(*arguments, **options)
    return await asyncio.to_thread(work, *arguments, **options)


def _json(value: Any, number: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return Response(text, number, headers, "application/json")


def _header_length(request: Request) -> int | None:
    text = request.headers.get(_HEADER_LENGTH)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InvalidRequest(f"Inference-Header-Content-Length: expected a number of bytes, came {text!r}")
    if int(text) == 0:
        raise InvalidRequest(
            "Inference-Header-Content-Length: expected JSON before the binary data, came 0 bytes of it"
        )
    return int(text)


# --- messages


def _from_path(message: Any, request: Request) -> Any:
    for name, value in request.path_params.items():
        setattr(message, name, value)
    return message


def _from_body(message: Any, body: dict[str, Any]) -> Any:
    if isinstance(message, pb.TraceSettingRequest | pb.LogSettingsRequest):
        for key, value in body.items():
            set_setting(message, key, value)
        return message
    body = dict(body)
    if isinstance(message, pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest):
        set_repository_parameters(message.parameters, body.pop("parameters", {}))
    if isinstance(message, pb.CudaSharedMemoryRegisterRequest):
        message.raw_handle = raw_handle_of(body.pop("raw_handle", None))
    fields = message.DESCRIPTOR.fields_by_name
    for key, value in body.items():
        if key not in fields:
            raise InvalidRequest(f"expected {', '.join(fields) or 'nothing'} in the body, came {key!r}")
        try:
            setattr(message, key, value)
        except (TypeError, ValueError, UnicodeError) as error:
            raise InvalidRequest(f"{key!r} in the body: {error}") from None
    return message


# --- the forms of answers


def _as_it_is(message: Message) -> Any:
    return to_json(message)


def _index(message: Any) -> Any:
    return [{key: value for key, value in to_json(model).items() if value} for model in message.models]


def _config(message: Any) -> Any:
    """As Triton: the configuration itself, with the fields that it always has and this server never sets."""
    never: dict[str, Any] = {
        "batch_input": [],
        "batch_output": [],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "model_warmup": [],
    }
    return to_json(message.config) | never


def _regions(message: Any) -> Any:
    return [to_json(message.regions[name]) for name in sorted(message.regions)]


def _settings(message: Any) -> Any:
    made: dict[str, Any] = {}
    for name in sorted(message.settings):
        value = message.settings[name]
        if isinstance(value, pb.TraceSettingResponse.SettingValue):
            made[name] = list(value.value) if len(value.value) != 1 or name == "trace_level" else value.value[0]
        else:
            kind = value.WhichOneof("parameter_choice")
            made[name] = None if kind is None else getattr(value, kind)
    return made
