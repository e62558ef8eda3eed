"""A gRPC server that fails as it is told to: what a healthy server does not do. Answers are the protocol's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from trimtab.protos.v1 import inference_pb2 as inference
from trimtab.protos.v1.inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)


class Scripted(GRPCInferenceServiceServicer):
    """ModelReady fails with the codes of `script`, one call each, then answers; `calls` counts them."""

    def __init__(self, *script: grpc.StatusCode) -> None:
        self.script = list(script)
        self.calls = 0
        self.hang = threading.Event()
        self.hang.set()
        self.deadlines: list[float | None] = []

    def ModelReady(self, request: Any, context: Any) -> inference.ModelReadyResponse:  # noqa: N802
        self.calls += 1
        self.deadlines.append(context.time_remaining())
        self.hang.wait(30)
        if self.script:
            context.abort(self.script.pop(0), "as scripted")
        return inference.ModelReadyResponse(ready=True)


@contextmanager
def listening(servicer: Scripted, port: int = 0) -> Iterator[str]:
    """The servicer on a port of its own, and its address."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        servicer.hang.set()
        server.stop(None).wait()
