"""NVIDIA Triton Inference Server, from the nvidia-pytriton wheel: its own binary and Python backend, no PyTriton.

One server has the same network under several batching settings, so that a benchmark can pick what serves best:
m64d100 is at most 64 rows a batch and 100 µs of delay, and so on. One instance (CPU), torch on one thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from peers.setup import environment, free_port, wait_for_port

PACKAGES = ["torch==2.13.0", "nvidia-pytriton==0.7.0"]
SETTINGS = {"m64d100": (64, 100), "m64d0": (64, 0), "m256d0": (256, 0), "m512d0": (512, 0), "m1024d0": (1024, 0)}

_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {batch}
input [{{ name: "IN" data_type: TYPE_FP32 dims: [32] }}]
output [{{ name: "OUT" data_type: TYPE_FP32 dims: [1] }}]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""

_MODEL = '''"""One forward pass for all requests that Triton has put together."""
import sys

sys.path.insert(0, {here!r})
import numpy
import torch
import triton_python_backend_utils as utils
from network import network

torch.set_num_threads(1)


class TritonPythonModel:
    def initialize(self, args):
        self.network = network()

    def execute(self, requests):
        inputs = [utils.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        rows = inputs[0] if len(inputs) == 1 else numpy.concatenate(inputs)
        with torch.inference_mode():
            outputs = self.network(torch.from_numpy(rows)).numpy()
        ends = numpy.cumsum([len(each) for each in inputs])
        parts = [outputs] if len(inputs) == 1 else numpy.split(outputs, ends[:-1])
        return [utils.InferenceResponse([utils.Tensor("OUT", part)]) for part in parts]
'''


def start(core: int, folder: Path, only: tuple[str, ...] = tuple(SETTINGS)) -> tuple[subprocess.Popen[bytes], str]:
    """The server on one core, ready, with these of SETTINGS, and its gRPC address. Raises Absent."""
    python = environment("triton", PACKAGES, "torch, pytriton")
    ask = "import sysconfig, sys; print(sysconfig.get_path('purelib'), sysconfig.get_config_var('LIBDIR'), end=' ')"
    ask += "; print('%d.%d' % sys.version_info[:2])"
    site, libraries, version = subprocess.check_output([str(python), "-c", ask], text=True).split()
    wheel = Path(site) / "pytriton"
    backend = folder / "backends" / "python"
    shutil.copytree(wheel / "tritonserver" / "backends" / "python", backend)
    stub = wheel / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backend)
    for name in only:
        batch, delay = SETTINGS[name]
        place = folder / "models" / name / "1"
        place.mkdir(parents=True)
        (place.parent / "config.pbtxt").write_text(_CONFIG.format(name=name, batch=batch, delay=delay))
        (place / "model.py").write_text(_MODEL.format(here=str(Path(__file__).parent)))
    port, http = free_port(), free_port()
    surroundings = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{site}/nvidia_pytriton.libs:{libraries}",
        "PYTHONPATH": site,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    command = ["taskset", "-c", str(core), str(wheel / "tritonserver" / "bin" / "tritonserver")]
    command += [f"--model-repository={folder / 'models'}", f"--backend-directory={folder / 'backends'}"]
    command += ["--grpc-port", str(port), "--http-port", str(http), "--allow-metrics=false", "--log-verbose=0"]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=surroundings)
    wait_for_port(process, port, "triton", log)
    return process, f"127.0.0.1:{port}"
