"""Versions without their weights: how they are put to sleep, and how a loader wakes them.

A version that is asleep is the object that it was: its columns, task, reference and manifest stay, so that everything
that only asks about it needs not know. What is let go is all by which it computes: graphs with their pool and buffers,
packed or compiled copies, and the weights. Those of a version whose weights are one flat buffer (on a GPU) go to pinned
host memory, in one copy, and come back in one copy to a buffer of their own. Those of any other (on the CPU) are freed:
the version's files have them, and waking loads, verifies and checks these as for the first time, then hands the tensors
to the module that waits for them.

The module's tensors stay the same objects throughout, as whatever was made of the module (Network.forward_of) holds
them. Whoever calls this makes sure that nothing computes with the version meanwhile.

`Sleepers` is a loader, below the one that gives a version its graphs (runner.running): a version that wakes runs in the
way that a version that was loaded does, by the same code. The same is not always as fast: compiling is done anew.
"""

from __future__ import annotations

import threading
from typing import Literal

import torch
from torch import nn
from trimtab.models.errors import VersionUnfit
from trimtab.models.faults import let_go
from trimtab.models.loading import Loader, Version

__all__ = ["Place", "Sleepers"]

Place = Literal["host", "disk"]
"""Where the weights of a version that is asleep are."""


class Sleepers(threading.local):
    """Loads versions of one model, and wakes those that were put to sleep. Each thread has what it wakes for itself."""

    def __init__(self, load: Loader) -> None:
        """`load` loads a version from its files."""
        self._load = load
        self._waking: Version | None = None

    def put(self, version: Version) -> Place:
        """Puts a version to sleep that nothing computes with. Raises what moving raises; it is awake then, as it was."""
        place: Place = "host" if version.flat is not None else "disk"
        if version.flat is not None:
            version.flat.move("cpu", pinned=version.device.type == "cuda")
        version.use_module()
        if version.flat is None:
            for tensor in _tensors(version.module).values():
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        object.__setattr__(version, "asleep", True)
        if version.device.type == "cuda":
            let_go()
        return place

    def wake(self, version: Version, load: Loader) -> None:
        """Wakes a version that sleeps; `load` loads by way of this object. Raises VersionUnfit, and what the device
        raises for want of memory; the version may be awake all the same then."""
        self._waking = version
        try:
            load(version.number)
        finally:
            self._waking = None

    def __call__(self, number: int) -> Version:
        """The version, loaded, or the one that is being woken. Raises VersionUnfit."""
        version = self._waking
        if version is None:
            return self._load(number)
        if version.flat is not None:
            version.flat.move(version.device)
        else:
            fresh = self._load(number)
            if fresh.weights != version.weights:
                raise VersionUnfit(f"version {number}: its files have other weights than when it fell asleep")
            _hand_over(fresh.module, version.module)
        object.__setattr__(version, "asleep", False)
        return version


def _hand_over(fresh: nn.Module, asleep: nn.Module) -> None:
    given, taken = _tensors(fresh), _tensors(asleep)
    for name, tensor in taken.items():
        # In exchange: whatever holds the fresh module for a while is not to hold weights.
        tensor.data, given[name].data = given[name].data, tensor.data


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Each once, by the first of its names."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
