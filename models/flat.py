"""All parameters and buffers of a network as views into one flat tensor of bytes, so that one copy replaces them all.

A swap in place has to replace the weights of a network whose CUDA graphs hold their addresses. So the tensors of the
network become views (`Flat.adopt`), each at an offset that follows from names, shapes, strides and dtypes alone
(`Layout`): two networks of one layout hash can exchange weights by one copy of bytes, and no address changes
(`Flat.copy_from` makes sure of it).

One buffer of bytes and not one a dtype: there is one copy however the dtypes are mixed, and nothing is decided by which
of several copies has been done. Parameters keep their identity (their `data` is replaced), so that whoever holds one,
such as Network.forward_of, sees the new values; strides stay as they were where the tensor was dense, so that a
product over a transposed weight runs the same kernel before and after, to the last bit. Tensors that are the same
memory (tied weights) stay so. Ones that share a part of it only are refused: nobody could say which bytes are whose.

Knows nothing of versions and of streams: a copy runs on the current stream.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn
from trimtab.models.errors import ModelError

__all__ = ["ALIGNMENT", "Flat", "FlatError", "Layout", "Place", "flat_on"]

ALIGNMENT = 256
"""Bytes. As torch's own allocator aligns on a GPU, so that a view is as good as a tensor of its own."""


class FlatError(ModelError):
    """Tensors cannot be laid out, or are not those of the layout; the message says which."""


@dataclass(frozen=True)
class Place:
    """Where one tensor lies, and all the names that it goes by."""

    names: tuple[str, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements; dense."""
    offset: int
    """In bytes."""

    @property
    def size(self) -> int:
        """Bytes."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count * self.dtype.itemsize

    def view(self, data: Tensor) -> Tensor:
        """The tensor in a buffer uint8 [layout.size]."""
        typed = data[self.offset : self.offset + self.size].view(self.dtype)
        return typed.as_strided(self.shape, self.strides)

    def __str__(self) -> str:
        return f"{'='.join(map(repr, self.names))} {self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Layout:
    """Which tensors lie where. Equal layouts have equal hashes, on any machine and device."""

    places: tuple[Place, ...]
    size: int
    """Bytes of the buffer."""

    @staticmethod
    def of(module: nn.Module) -> Layout:
        """The layout of a module's parameters and buffers, in the order in which it names them. Raises FlatError for
        tensors that are not dense memory (sparse, quantised, not materialised), or overlap without being the same."""
        places: list[Place] = []
        offset = 0
        for names, tensor in _distinct(module):
            strides = tuple(torch.empty_like(tensor, device="meta").stride())
            places.append(Place(names, tensor.dtype, tuple(tensor.shape), strides, offset))
            offset += -(-places[-1].size // ALIGNMENT) * ALIGNMENT
        return Layout(tuple(places), offset)

    @cached_property
    def hash(self) -> str:
        """sha256 in hex of everything that decides where which byte is."""
        parts = [[p.names, str(p.dtype), p.shape, p.strides, p.offset] for p in self.places]
        return hashlib.sha256(json.dumps([ALIGNMENT, self.size, parts]).encode()).hexdigest()

    def difference(self, other: Layout) -> str:
        """What `other` has in another way, in one line; "" where the layouts are equal."""
        if self.hash == other.hash:
            return ""
        ours, theirs = ({place.names: place for place in layout.places} for layout in (self, other))
        for names, place in ours.items():
            found = theirs.get(names)
            if found is None:
                return f"the other lacks {place}"
            if str(place) != str(found):
                return f"expected {place}, found {found}"
            if place.strides != found.strides:
                return f"{place}: expected strides {place.strides}, found {found.strides}"
        for names, place in theirs.items():
            if names not in ours:
                return f"the other has an unknown {place}"
        return "the same tensors in another order"


class Flat:
    """One buffer of a layout; and, where it was made by `adopt`, the tensors of a module that are views into it.

    Not for several threads at a time, nor for use while something that reads the module runs on another stream.
    """

    def __init__(self, layout: Layout, data: Tensor) -> None:
        """`data`: uint8 [layout.size], contiguous. Raises FlatError where it is something else."""
        if data.dtype != torch.uint8 or tuple(data.shape) != (layout.size,) or not data.is_contiguous():
            expected = f"expected a buffer uint8 [{layout.size}]"
            raise FlatError(f"{expected}, got {data.dtype} {list(data.shape)}")
        self.layout = layout
        self.data = data
        self._held: list[tuple[str, Tensor, int]] = []

    @staticmethod
    def empty(layout: Layout, device: torch.device | str = "cpu", *, pinned: bool = False) -> Flat:
        """A buffer of that layout with whatever was in memory. `pinned`: page-locked host memory, from which copies
        to a GPU need not wait."""
        return Flat(layout, torch.empty(layout.size, dtype=torch.uint8, device=device, pin_memory=pinned))

    @staticmethod
    def adopt(module: nn.Module, device: torch.device | str | None = None, *, pinned: bool = False) -> Flat:
        """Moves a module's tensors into one new buffer on the device (where they are, if None), and makes them views
        of it. Their values, names, dtypes and identities stay. Raises FlatError; the module is as it was then."""
        found = list(_distinct(module))
        layout = Layout.of(module)
        if device is None:
            device = found[0][1].device if found else "cpu"
        # By way of the host, so that a move to a GPU is one copy; on the GPU, where all is there already.
        there = all(tensor.device == torch.device(device) for _, tensor in found)
        source = Flat.empty(layout, device if there else "cpu", pinned=pinned and not there)
        source.data.zero_()  # the gaps too: equal weights are equal bytes
        with torch.no_grad():
            for place, (_, tensor) in zip(layout.places, found, strict=True):
                place.view(source.data).copy_(tensor)
        made = source if there else Flat(layout, source.data.to(device))
        by_name = dict(_named(module))
        for place in layout.places:
            view = place.view(made.data)
            for name in place.names:
                by_name[name].data = view
                made._held.append((name, by_name[name], view.data_ptr()))
        return made

    def move(self, device: torch.device | str, *, pinned: bool = False) -> None:
        """Moves all of it to a new buffer there, in one copy. The module's tensors become views of that: they are the
        same objects at other addresses, so that whatever knows the addresses, such as a graph, has to go before."""
        data = Flat.empty(self.layout, device, pinned=pinned).data
        data.copy_(self.data)
        self.data = data
        places = {name: place for place in self.layout.places for name in place.names}
        held, self._held = self._held, []
        for name, tensor, _ in held:
            tensor.data = places[name].view(data)
            self._held.append((name, tensor, tensor.data_ptr()))

    def tensors(self) -> dict[str, Tensor]:
        """Views by name."""
        return {name: view for place in self.layout.places for view in [place.view(self.data)] for name in place.names}

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Copies tensors by name, such as those of a state dict, to where they lie; what is not named stays. Raises
        FlatError for unknown names, other shapes or dtypes, or two values for tied weights; nothing has been copied
        then."""
        places = {name: place for place in self.layout.places for name in place.names}
        chosen: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in state.items():
            place = places.get(name)
            if place is None:
                raise FlatError(f"tensor {name!r}: there is none of that name in the layout")
            if tensor.dtype != place.dtype or tuple(tensor.shape) != place.shape:
                found = f"{tensor.dtype} {list(tensor.shape)}"
                raise FlatError(f"tensor {name!r}: expected {place.dtype} {list(place.shape)}, found {found}")
            first, value = chosen.setdefault(id(place), (name, tensor))
            if value is not tensor and not _same_bits(value, tensor):
                raise FlatError(f"tensors {first!r} and {name!r} are tied, and have different values")
        with torch.no_grad():
            for name, tensor in chosen.values():
                places[name].view(self.data).copy_(tensor)
        self.check()

    def copy_from(self, other: Flat, *, non_blocking: bool = False) -> None:
        """Takes over all values of a buffer of the same layout, in one copy on the current stream; with
        `non_blocking`, and one of the two in pinned memory, it returns before the copy is done. Raises FlatError where
        the layouts differ, with the first difference; nothing has been copied then."""
        different = self.layout.difference(other.layout)
        if different:
            raise FlatError(f"weights of another layout: {different}")
        self.data.copy_(other.data, non_blocking=non_blocking)
        self.check()

    def check(self) -> None:
        """Raises FlatError unless every tensor of the module is where it was adopted."""
        for name, tensor, pointer in self._held:
            if tensor.data_ptr() != pointer:
                raise FlatError(f"tensor {name!r} has moved, and graphs may still read where it was")


def flat_on(module: nn.Module, place: torch.device) -> Flat | None:
    """Moves the module there, on a GPU into one buffer where that is possible."""
    if place.type == "cpu":
        return None
    try:
        return Flat.adopt(module, place)
    except FlatError:
        # Weights that overlap, or are sparse, say: they serve, and cannot be swapped in place.
        module.to(place)
        return None


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _distinct(module: nn.Module) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Each tensor once, with all of its names."""
    groups: dict[object, tuple[list[str], Tensor]] = {}
    for name, tensor in _named(module):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise FlatError(f"tensor {name!r} is not dense memory ({tensor.layout} on {tensor.device})")
        names, _ = groups.setdefault(_identity(tensor), ([], tensor))
        names.append(name)
    spans: list[tuple[int, int, str]] = []
    for names, tensor in groups.values():
        if tensor.numel():
            last = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            spans.append((start, start + (last + 1) * tensor.element_size(), names[0]))
    spans.sort()
    for (_, end, before), (start, _, after) in pairwise(spans):
        # Columns of one matrix interleave without sharing a byte; they are refused with the others.
        if start < end:
            raise FlatError(f"tensors {before!r} and {after!r} share a part of their memory")
    for names, tensor in groups.values():
        yield tuple(names), tensor


def _identity(tensor: Tensor) -> object:
    """Equal for tensors that are the same memory in the same way; of no memory, for the same object."""
    if not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    # A flat copy of its own: an empty tensor may have strides that cannot be seen as bytes.
    first, second = (tensor.detach().cpu().reshape(-1).clone().view(torch.uint8) for tensor in (one, other))
    return torch.equal(first, second)
