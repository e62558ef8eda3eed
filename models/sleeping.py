"""Versions without their weights: how they are put to sleep, and how a loader wakes them.

A version that is asleep is the object that it was: its columns, task, reference and manifest stay, so that everything
that only asks about it needs not know. What is let go is all by which it computes: graphs with their pool and buffers,
packed or compiled copies, and the weights. Those of a version whose weights are one flat buffer (on a GPU) go to pinned
host memory, in one copy, and come back in one copy to a buffer of their own. Those of any other (on the CPU) are freed:
the version's files have them, and waking reads these with the checks of loading. What no file has (buffers that are not
persistent) stays.

The module and its tensors stay the same objects throughout, as whatever was made of the module (Network.forward_of)
holds them; the user's code does not build it again. Whoever calls this makes sure that nothing computes with the
version meanwhile.

`Sleepers` is a loader, below the one that gives a version its graphs (runner.running): a version that wakes runs in the
way that a version that was loaded does, by the same code. The same is not always as fast: compiling is done anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from trimtab.models.faults import let_go
from trimtab.models.loading import Loader, Version

__all__ = ["Place", "Sleepers"]

Place = Literal["host", "disk"]
"""Where the weights of a version that is asleep are."""


class Sleepers(threading.local):
    """Loads versions of one model, and wakes those that were put to sleep. Each thread has what it wakes for itself."""

    def __init__(self, load: Loader, read: Callable[[Version], None]) -> None:
        """`load` loads a version from its files; `read` fills the module of one that is loaded anew."""
        self._load = load
        self._read = read
        self._waking: Version | None = None

    def put(self, version: Version) -> Place:
        """Puts a version to sleep that nothing computes with. Raises what moving raises, and leaves it as it was."""
        if version.flat is not None:
            version.flat.move("cpu", pinned=version.device.type == "cuda")
        version.use_module()
        if version.flat is None:
            _free(version)
        object.__setattr__(version, "asleep", True)
        if version.device.type == "cuda":
            let_go()
        return "disk" if version.flat is None else "host"

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
            self._refill(version)
        object.__setattr__(version, "asleep", False)
        return version

    def _refill(self, version: Version) -> None:
        shapes: dict[str, Tensor] = version._freed  # type: ignore[union-attr]
        try:
            for name, tensor in _stored(version.module).items():
                tensor.data = torch.empty_like(shapes[name], device=tensor.device)
            self._read(version)
        except BaseException:
            _free(version)
            raise


def _free(version: Version) -> None:
    stored = _stored(version.module)
    # What freed them last knows their shapes, however far waking came.
    shapes: dict[str, Tensor] = getattr(version, "_freed", {})
    shapes = shapes or {name: torch.empty_like(tensor, device="meta") for name, tensor in stored.items()}
    for tensor in stored.values():
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    object.__setattr__(version, "_freed", shapes)


def _stored(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors that its files have, each once."""
    kept = {id(value) for value in module.state_dict(keep_vars=True).values()}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in tensors.items() if id(tensor) in kept}
