"""MLServer with a runtime of its own for the same network; adaptive batching, no worker processes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from peers.setup import environment, free_port, wait_for_port

PACKAGES = ["torch==2.13.0", "mlserver"]

_RUNTIME = '''"""One forward pass for what MLServer has put together."""
import sys

sys.path.insert(0, {here!r})
import numpy
import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from network import network

torch.set_num_threads(1)


class Runtime(MLModel):
    async def load(self):
        self.network = network()
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(numpy.float32, copy=False)
        with torch.inference_mode():
            outputs = self.network(torch.from_numpy(rows)).numpy()
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("OUT", outputs)])
'''


def start(core: int, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The server on one core, ready, and its gRPC address. Raises Absent."""
    python = environment("mlserver", PACKAGES, "torch, mlserver")
    port, http, metrics = free_port(), free_port(), free_port()
    folder.mkdir(parents=True)
    (folder / "runtime.py").write_text(_RUNTIME.format(here=str(Path(__file__).parent)))
    model = {"name": "m", "implementation": "runtime.Runtime", "max_batch_size": 64, "max_batch_time": 0.0005}
    (folder / "model-settings.json").write_text(json.dumps(model))
    server = {"parallel_workers": 0, "grpc_port": port, "http_port": http, "metrics_port": metrics, "debug": False}
    (folder / "settings.json").write_text(json.dumps({**server, "host": "127.0.0.1", "access_log_enabled": False}))
    log = folder / "log"
    command = ["taskset", "-c", str(core), str(python.parent / "mlserver"), "start", str(folder)]
    surroundings = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=surroundings, cwd=folder)
    wait_for_port(process, port, "mlserver", log)
    return process, f"127.0.0.1:{port}"
