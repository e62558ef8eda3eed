"""Epochs: what the CUDA columns count in, in device memory, each with a place for all of a sketch's counts and moments
but the prediction's. Several, so that one is read and cleared on a second stream while rows count in another."""

from __future__ import annotations

import numpy as np
from trimtab.kernels.cuda_device import Copy, Device
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import MOMENTS, SketchSpec

__all__ = ["Epochs"]


class Epochs:
    """So many epochs of sketches of a spec. One thread at a time; nothing may count in an epoch that is taken."""

    def __init__(self, spec: SketchSpec, device: Device, number: int) -> None:
        self._device = device
        # The part of a sketch's arrays that rows are counted in; the prediction's comes after it.
        self._n_counts = spec.offsets[-2]
        moments = np.tile([np.inf, -np.inf, 0.0, 0.0], len(spec.fields)).astype(np.float64)
        self._empty = np.concatenate([np.zeros(self._n_counts, np.uint64), moments.view(np.uint64)])
        self._memory = device.memory(number * self._empty.nbytes)
        device.copy_in(self._memory, 0, np.tile(self._empty, number))

    @property
    def nbytes(self) -> int:
        """Of device memory."""
        return self._memory.nbytes

    @property
    def arguments(self) -> tuple[int, int, int, int]:
        """The kernel's: where counts begin, how many there are to the next epoch's, and so for moments."""
        counts, size = self._memory.pointer, self._empty.nbytes // 8
        return counts, size, counts + 8 * self._n_counts, size

    def take(self, epoch: int, sketch: Sketch) -> None:
        """Adds an epoch to a sketch of the spec, and clears it."""
        at, found = epoch * self._empty.nbytes, np.empty_like(self._empty)
        reads: list[Copy] = [(self._memory, at, found)]
        self._device.aside(reads, [(self._memory, at, self._empty)])
        sketch.counts[: self._n_counts] += found[: self._n_counts]
        theirs = found[self._n_counts :].view(np.float64).reshape(-1, MOMENTS)
        mine = sketch.moments[: theirs.size].reshape(-1, MOMENTS)
        np.minimum(mine[:, 0], theirs[:, 0], out=mine[:, 0])
        np.maximum(mine[:, 1], theirs[:, 1], out=mine[:, 1])
        mine[:, 2:] += theirs[:, 2:]
