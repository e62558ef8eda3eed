"""An empty handler on grpc.aio with uvloop: what Python's own gRPC server costs. Prints its port."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any


def start(core: int, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The server on one core, ready, and its address."""
    folder.mkdir(parents=True)
    with (folder / "log").open("wb") as log:
        command = ["taskset", "-c", str(core), sys.executable, __file__]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    return process, f"127.0.0.1:{int(process.stdout.readline())}"


async def main() -> None:
    import grpc
    import grpc.aio

    async def echo(body: bytes, context: Any) -> bytes:
        return body

    server = grpc.aio.server()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
