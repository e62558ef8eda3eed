"""tritonclient with CUDA shared memory, unmodified: `triton_cuda_session.py GRPC HTTP LIBRARY`. Prints what it saw.

As NVIDIA's examples simple_grpc_cudashm_client and simple_http_cudashm_client do: clear, create, register, infer, read,
unregister, destroy. LIBRARY is the libcuda.so.1 of the client, NVIDIA's or the one that pretends.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from triton_extensions_session import COLUMNS, inputs
from tritonclient import grpc as grpc_client
from tritonclient import http as http_client
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

sys.path.append(str(Path(__file__).parents[1] / "shared_memory"))
from cuda_python import install


def shared(client: Any, module: Any, cuda_shared_memory: Any) -> dict[str, Any]:
    """Inputs and an output in one region; then everything that may go wrong."""
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    city = serialize_byte_tensor(COLUMNS["city"])
    size = 16 + len(city.item())
    handle = cuda_shared_memory.create_shared_memory_region("data", size, 0)
    taken = cuda_shared_memory.create_shared_memory_region("taken", 8, 0)
    try:
        cuda_shared_memory.set_shared_memory_region(handle, [np.zeros(2, np.float32), COLUMNS["x"], city])
        raw = cuda_shared_memory.get_raw_handle(handle)
        client.register_cuda_shared_memory("data", raw, 0, size)
        client.register_cuda_shared_memory("taken", cuda_shared_memory.get_raw_handle(taken), 0, 8)
        status = str(client.get_cuda_shared_memory_status())
        places = {"x": ("data", 8, 8), "city": ("data", len(city.item()), 16)}
        output = module.InferRequestedOutput("probability")
        output.set_shared_memory("data", 8, 0)
        result = client.infer("tiny", inputs(module, places=places), outputs=[output])
        described = result.get_output("probability")
        shape = described["shape"] if isinstance(described, dict) else list(described.shape)
        values = cuda_shared_memory.get_contents_as_numpy(handle, np.float32, list(shape)).tolist()
        output.set_shared_memory("taken", 4)
        errors = []
        for call in (
            lambda: client.register_cuda_shared_memory("data", raw, 0, size),
            lambda: client.register_cuda_shared_memory("more", raw, 0, 1 << 30),
            lambda: client.register_cuda_shared_memory("more", raw, 99, size),
            lambda: client.register_cuda_shared_memory("more", b"eA==", 0, size),
            lambda: client.register_system_shared_memory("data", "data", size),
            lambda: client.infer("tiny", inputs(module), outputs=[output]),
        ):
            try:
                call()
            except InferenceServerException as error:
                errors.append(error.message())
        client.unregister_cuda_shared_memory("data")
        after = str(client.get_cuda_shared_memory_status())
        try:
            client.infer("tiny", inputs(module, places=places))
        except InferenceServerException as error:
            errors.append(error.message())
        client.unregister_cuda_shared_memory()
        empty = str(client.get_cuda_shared_memory_status())
        plain = client.infer("tiny", inputs(module)).as_numpy("probability").tolist()
        return {
            "status": status, "answer": values, "plain": plain, "errors": errors, "after": after, "empty": empty,
        }  # fmt: skip
    finally:
        cuda_shared_memory.destroy_shared_memory_region(handle)
        cuda_shared_memory.destroy_shared_memory_region(taken)


def main(grpc_address: str, http_address: str, library: str) -> None:
    """See the module."""
    try:
        install(library)
    except ImportError as error:
        print(f"no cuda-python: {error}", file=sys.stderr)
        sys.exit(3)
    cuda_shared_memory = importlib.import_module("tritonclient.utils.cuda_shared_memory")
    with grpc_client.InferenceServerClient(grpc_address) as client:
        seen: dict[str, Any] = {"grpc": shared(client, grpc_client, cuda_shared_memory)}
        seen["extensions"] = list(client.get_server_metadata().extensions)
    with http_client.InferenceServerClient(http_address) as client:
        seen["http"] = shared(client, http_client, cuda_shared_memory)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
