"""tritonclient's other ways of asking, unmodified: `triton_extensions_session.py GRPC HTTP`. Prints what it saw.

gRPC: callbacks, asyncio, streams (callbacks and asyncio), shared memory, classes, string tensors; HTTP: shared memory,
classes; and what the examples of shared memory call before and after.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import queue
import sys
import types
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

# This version of the client finds its library through setuptools' pkg_resources, which is gone from setuptools.
stand_in: Any = types.ModuleType("pkg_resources")
stand_in.resource_filename = lambda package, name: str(importlib.resources.files(package) / name)
sys.modules.setdefault("pkg_resources", stand_in)

import tritonclient.grpc as grpc_client  # noqa: E402
import tritonclient.grpc.aio as grpc_aio  # noqa: E402
import tritonclient.http as http_client  # noqa: E402
import tritonclient.utils.shared_memory as shm  # noqa: E402
from tritonclient.utils import InferenceServerException, serialize_byte_tensor  # noqa: E402

COLUMNS = {
    "x": np.array([[0.5], [np.nan]], np.float32),
    "flag": np.array([[True], [False]]),
    "code": np.array([[3], [99]], np.int64),
    "city": np.array([["Riga"], ["Ålesund"]], np.object_),
    "order": np.array([["a"], ["b"]], np.object_),
}
TYPES = {"x": "FP32", "flag": "BOOL", "code": "INT64", "city": "BYTES", "order": "BYTES"}


def inputs(module: Any, leave_out: str = "", places: dict[str, tuple[str, int, int]] | None = None) -> list[Any]:
    """All columns but one; `places`: those that lie in shared memory (region, size, offset)."""
    made = []
    for name, values in COLUMNS.items():
        if name == leave_out:
            continue
        tensor = module.InferInput(name, list(values.shape), TYPES[name])
        if places and name in places:
            region, size, offset = places[name]
            tensor.set_shared_memory(region, size, offset)
        else:
            tensor.set_data_from_numpy(values)
        made.append(tensor)
    return made


def values(result: Any) -> Any:
    return result.as_numpy("probability").tolist()


def by_callback(client: Any) -> list[Any]:
    done: queue.Queue[Any] = queue.Queue()
    # The contexts are kept, since a call ends with its own.
    kept = [
        client.async_infer("tiny", inputs(grpc_client), lambda result, error: done.put((result, error)))
        for _ in range(8)
    ]
    found = [done.get(timeout=30) for _ in kept]
    assert all(error is None for _, error in found), [str(error) for _, error in found]
    return [values(result) for result, _ in found]


def by_stream(client: Any) -> dict[str, Any]:
    done: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: done.put((result, error)))
    for number in range(20):
        leave_out = "code" if number == 7 else ""
        client.async_stream_infer("tiny", inputs(grpc_client, leave_out), request_id=str(number))
    found = [done.get(timeout=30) for _ in range(20)]
    client.stop_stream()
    good = {result.get_response().id: values(result) for result, error in found if error is None}
    return {"good": good, "errors": [error.message() for _, error in found if error is not None]}


async def by_aio(address: str) -> dict[str, Any]:
    async with grpc_aio.InferenceServerClient(address) as client:
        answers = await asyncio.gather(*(client.infer("tiny", inputs(grpc_client)) for _ in range(8)))

        async def requests() -> AsyncIterator[Any]:
            for number in range(5):
                leave_out = "code" if number == 2 else ""
                yield {"model_name": "tiny", "inputs": inputs(grpc_client, leave_out), "request_id": str(number)}

        streamed = [found async for found in client.stream_infer(requests())]
        return {
            "answers": [values(answer) for answer in answers],
            "streamed": [values(result) for result, error in streamed if error is None],
            "errors": [error.message() for _, error in streamed if error is not None],
        }


def shared(client: Any, module: Any) -> dict[str, Any]:
    """As NVIDIA's examples: clear, create, register, infer, read, unregister, destroy."""
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    key = f"/trimtab-test-{uuid.uuid4().hex}"
    city = serialize_byte_tensor(COLUMNS["city"])
    handle = shm.create_shared_memory_region("data", key, 256)
    try:
        shm.set_shared_memory_region(handle, [COLUMNS["x"]])
        shm.set_shared_memory_region(handle, [city], offset=8)
        client.register_system_shared_memory("data", key, 256)
        status = client.get_system_shared_memory_status()
        places = {"x": ("data", 8, 0), "city": ("data", len(city.item()), 8)}
        output = module.InferRequestedOutput("probability")
        output.set_shared_memory("data", 8, 128)
        result = client.infer("tiny", inputs(module, places=places), outputs=[output])
        described = result.get_output("probability")
        shape = described["shape"] if isinstance(described, dict) else list(described.shape)
        found = shm.get_contents_as_numpy(handle, np.float32, list(shape), offset=128).tolist()
        errors = []
        for calls in (
            lambda: client.register_system_shared_memory("data", key, 256),
            lambda: client.register_system_shared_memory("more", key, 257),
            lambda: client.register_system_shared_memory("more", "/../etc/passwd", 1),
            lambda: client.register_cuda_shared_memory("gpu", b"eA==", 0, 1),
        ):
            try:
                calls()
            except InferenceServerException as error:
                errors.append(error.message())
        client.unregister_system_shared_memory("data")
        after = client.get_system_shared_memory_status()
        try:
            client.infer("tiny", inputs(module, places=places))
        except InferenceServerException as error:
            errors.append(error.message())
        return {"status": str(status), "answer": found, "errors": errors, "after": str(after)}
    finally:
        shm.destroy_shared_memory_region(handle)


def classes(client: Any, module: Any) -> list[str]:
    result = client.infer("tiny", inputs(module), outputs=[module.InferRequestedOutput("probability", class_count=3)])
    return [text.decode() for text in result.as_numpy("probability").flatten()]


def main(grpc_address: str, http_address: str) -> None:
    with grpc_client.InferenceServerClient(grpc_address) as client:
        seen = {
            "plain": values(client.infer("tiny", inputs(grpc_client))),
            "compressed": values(client.infer("tiny", inputs(grpc_client), compression_algorithm="gzip")),
            "callbacks": by_callback(client),
            "stream": by_stream(client),
            "shared": shared(client, grpc_client),
            "classes": classes(client, grpc_client),
            "log": client.get_log_settings(as_json=True),
            "trace": client.get_trace_settings(as_json=True),
        }
    seen["aio"] = asyncio.run(by_aio(grpc_address))
    with http_client.InferenceServerClient(http_address) as client:
        seen["http_shared"] = shared(client, http_client)
        seen["http_classes"] = classes(client, http_client)
        seen["http_log"] = client.get_log_settings()
        seen["http_trace"] = client.get_trace_settings()
        seen["http_extensions"] = client.get_server_metadata()["extensions"]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
