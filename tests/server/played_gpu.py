"""A server's GPU, played in the memory of the host: what a server process does with graphs, shared ones too, and with
columns in them, where there is no GPU. Everything but torch.cuda and CuPy is the real thing."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a server process has its script's folder only

import torch
from torch import nn
from trimtab.kernels.cuda_graph import GraphColumns
from trimtab.kernels.program import ColumnProgram
from trimtab.models import runner, tensors, version
from trimtab.models.flat import Flat
from trimtab.server import app

from tests.kernels.cuda_on_cpu.emulation import EmulatedDevice
from tests.models.machines import PretendMachine

__all__ = ["play"]


def play() -> None:
    """From now on this process has a GPU."""

    def columns(program: ColumnProgram, _: int) -> GraphColumns | str:
        return GraphColumns(program, EmulatedDevice())

    def flat(module: nn.Module, _: torch.device) -> Flat:
        return Flat.adopt(module)

    app._device = lambda _: "cuda"
    for module in (version, tensors):
        module.device_of = lambda *_: torch.device("cpu")
        module.flat_on = flat
    runner._machine = lambda _: PretendMachine()
    runner.graph_columns = columns
