"""A project of several models of one's own: plain ones, ones that fail, and one that is not loaded at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.store.project import Project

CODE = '''
import pathlib
import time

import torch
from torch import nn


class Scale(nn.Module):
    """x [n, 3] times a weight, and the tokens' sum."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, ids):
        return {"total": ids.sum(1), "scaled": x * self.weight}


class Texts:
    def build(self):
        return nn.Identity()

    def preprocess(self, inputs):
        return inputs["text"]

    def predict(self, texts):
        return [bytes(reversed(text)) for text in texts]


class Moody(nn.Module):
    """Raises on NaN, sleeps for so many seconds on negative numbers."""

    def forward(self, x):
        low = float(x.min())
        if torch.isnan(x).any():
            raise RuntimeError("no numbers today")
        if low < 0:
            time.sleep(-low)
        return x + 1


class Gated(nn.Module):
    """Stalls on negative numbers until the file `open` is there, once the file `armed` is."""

    def forward(self, x):
        here = pathlib.Path(__file__).parent
        while float(x.min()) < 0 and (here / "armed").exists() and not (here / "open").exists():
            time.sleep(0.01)
        return x + 1


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000, 250))

    def forward(self, x):
        return x * self.weight.mean()


class Slow(nn.Module):
    """x plus the mean of 1 MB of weights. Waits while the file `hold` is there, also in being loaded."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1000, 250))

    def forward(self, x):
        while (pathlib.Path(__file__).parent / "hold").exists():
            time.sleep(0.01)
        return x + self.weight.mean()


class Hungry(nn.Module):
    """Fails as a GPU does: on 1 there is no memory left, on 2 the GPU is lost. `hungry` in its folder: while loading,
    too, in the way that it says."""

    def forward(self, x):
        said = pathlib.Path(__file__).parent / "hungry"
        number = float(said.read_text()) if said.exists() else float(x.max())
        if number == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\\nGPU 0 has 1 GiB")
        if number == 2:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\\nCompile with")
        return x + 1


def broken():
    raise OSError("no such dataset")
'''
SCALAR = """
[[model.input]]
name = "x"
datatype = "FP32"
dims = []
[[model.output]]
name = "y"
datatype = "FP32"
dims = []
"""
SCALE = """
[[model]]
name = "scale"
entry = "own_models:Scale"
{model}
[[model.input]]
name = "x"
datatype = "FP32"
dims = [3]
[[model.input]]
name = "ids"
datatype = "INT64"
dims = [-1]
[[model.output]]
name = "scaled"
datatype = "FP32"
dims = [3]
[[model.output]]
name = "total"
datatype = "INT64"
dims = []
{sections}
"""
TEXTS = """
[[model]]
name = "texts"
entry = "own_models:Texts"
[[model.input]]
name = "text"
datatype = "BYTES"
dims = []
[[model.output]]
name = "back"
datatype = "BYTES"
dims = []
"""
SERVER = """
[server]
grpc_port = 0
http_port = 0
trainer = false
{server}
[mlflow]
enabled = false
"""


def model(name: str, entry: str, more: str = "") -> str:
    """A model of one number in, one out."""
    return f'[[model]]\nname = "{name}"\nentry = "own_models:{entry}"\n{more}\n{SCALAR}'


def scale(model: str = "", sections: str = "") -> str:
    return SCALE.format(model=model, sections=sections)


def write(folder: Path, *models: str, server: str = "") -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own_models.py").write_text(CODE)
    (folder / "trimtab.toml").write_text("\n".join([SERVER.format(server=server), *models]))
    return Project.load(folder)


NAMES = {"f4": "FP32", "i8": "INT64"}


def request(name: str, version: str = "", **inputs: Any) -> pb.ModelInferRequest:
    """A request with raw tensors; a list of bytes is BYTES."""
    message = pb.ModelInferRequest(model_name=name, model_version=version)
    for key, value in inputs.items():
        if isinstance(value, list):
            message.inputs.add(name=key, datatype="BYTES", shape=[len(value)])
            message.raw_input_contents.append(b"".join(len(t).to_bytes(4, "little") + t for t in value))
            continue
        message.inputs.add(name=key, datatype=NAMES[value.dtype.str[1:]], shape=value.shape)
        message.raw_input_contents.append(value.tobytes())
    return message


def numbers(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def outputs(response: Any) -> dict[str, Any]:
    """By name: arrays, or lists of bytes."""
    found: dict[str, Any] = {}
    kinds: dict[str, Any] = {"FP32": np.float32, "INT64": np.int64}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype == "BYTES":
            texts = []
            while raw:
                size = int.from_bytes(raw[:4], "little")
                texts.append(raw[4 : 4 + size])
                raw = raw[4 + size :]
            found[tensor.name] = texts
        else:
            found[tensor.name] = np.frombuffer(raw, kinds[tensor.datatype]).reshape(list(tensor.shape))
    return found
