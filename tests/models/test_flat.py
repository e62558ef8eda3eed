"""Networks whose weights lie in one buffer: the same answers, names and identities, whatever tensors they have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from trimtab.models.flat import ALIGNMENT, Flat, FlatError, Layout

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Bag(nn.Module):
    """Tensors without a meaning: those that may be learned as parameters, the others as buffers."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        for position, tensor in enumerate(tensors):
            if tensor.is_floating_point() and position % 2:
                self.register_parameter(f"t{position}", nn.Parameter(tensor))
            else:
                self.register_buffer(f"t{position}", tensor, persistent=position % 3 != 0)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any few dimensions, zero included; transposed, strided with gaps, expanded; every bit pattern of its dtype."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    form = draw(st.sampled_from(["plain", "transposed", "gaps", "expanded"]))
    extents = [2 * extent for extent in shape] if form == "gaps" else shape
    size = dtype.itemsize
    for extent in extents:
        size *= extent
    limit = 2 if dtype == torch.bool else 256
    tensor = torch.randint(0, limit, (size,), generator=generator, dtype=torch.uint8).view(dtype).reshape(extents)
    if form == "transposed":
        tensor = tensor.permute(tuple(reversed(range(tensor.ndim))))
    elif form == "gaps":
        tensor = tensor[tuple(slice(None, None, 2) for _ in shape)]
    elif form == "expanded":
        tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
    return tensor


def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    plain = tensor.detach().cpu().contiguous()
    return (
        tensor.dtype,
        tuple(tensor.shape),
        plain.numpy(force=True).tobytes()
        if plain.dtype != torch.bfloat16
        else (plain.reshape(-1).clone().view(torch.int16).numpy().tobytes()),
    )


def everything(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: bits(tensor) for name, tensor in named}


@given(st.lists(tensors(), max_size=6))
def test_adopted_tensors_are_the_same_to_the_bit(given_tensors: list[torch.Tensor]) -> None:
    module = Bag(given_tensors)
    before, state = everything(module), {name: bits(t) for name, t in module.state_dict().items()}
    held = dict(module.named_parameters())
    dense = {name: t.stride() for name, t in module.named_buffers() if t.is_contiguous()}
    layout = Layout.of(module)
    flat = Flat.adopt(module)
    assert flat.layout == layout == Layout.of(module)
    assert flat.layout.hash == layout.hash
    assert everything(module) == before == {name: bits(t) for name, t in flat.tensors().items()}
    assert {name: bits(t) for name, t in module.state_dict().items()} == state
    assert all(parameter is held[name] for name, parameter in module.named_parameters())
    assert all(t.stride() == dense[name] for name, t in module.named_buffers() if name in dense)
    base = flat.data.data_ptr()
    for place in layout.places:
        assert place.offset % ALIGNMENT == 0
        tensor = flat.tensors()[place.names[0]]
        if tensor.numel():
            assert tensor.data_ptr() == base + place.offset
    ends = [place.offset + place.size for place in layout.places]
    assert all(end <= later.offset for end, later in zip(ends, layout.places[1:], strict=False))
    assert all(end <= layout.size for end in ends)


@given(st.lists(tensors(), max_size=6), st.integers(0, 1 << 30))
def test_one_copy_takes_over_every_value_and_moves_nothing(given_tensors: list[torch.Tensor], seed: int) -> None:
    module = Bag(given_tensors)
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*other.parameters(), *other.buffers()]:
        tensor.data = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.dtype)
    # `other` has other strides now; as a state dict it fits all the same.
    flat, spare = Flat.adopt(module), Flat.empty(Layout.of(module))
    pointers = {name: t.data_ptr() for name, t in flat.tensors().items()}
    spare.fill({**dict(other.named_parameters()), **dict(other.named_buffers())})
    flat.copy_from(spare)
    assert everything(module) == everything(other)
    assert {name: t.data_ptr() for name, t in flat.tensors().items()} == pointers


@pytest.mark.parametrize("device", DEVICES)
def test_outputs_are_the_same_to_the_bit(device: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 17), nn.BatchNorm1d(17), nn.ReLU(), nn.Linear(17, 3)).eval().to(device)
    with torch.no_grad():
        # A product over a transposed weight may run another kernel than one over a plain one.
        module[0].weight.data = torch.randn(5, 17, device=device).t()
    inputs = torch.randn(33, 5, device=device)
    expected = module(inputs)
    Flat.adopt(module)
    assert module[0].weight.stride() == (1, 17)
    assert torch.equal(module(inputs), expected)


@pytest.mark.gpu
def test_a_module_moves_to_a_gpu_and_takes_weights_from_pinned_memory() -> None:
    module, other = nn.Linear(1000, 100), nn.Linear(1000, 100)
    flat = Flat.adopt(module, "cuda", pinned=True)
    assert module.weight.is_cuda
    spare = Flat.empty(flat.layout, pinned=True)
    spare.fill(dict(other.state_dict()))
    flat.copy_from(spare, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    assert everything(module) == everything(other)


class Tied(nn.Module):
    """One parameter under two names, and another that is the same memory without being the same object."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.c.weight = nn.Parameter(self.a.weight.data)


def test_tied_weights_stay_tied() -> None:
    module = Tied()
    flat = Flat.adopt(module)
    assert flat.layout.places[0].names == ("a.weight", "b.weight", "c.weight")
    assert module.b.weight is module.a.weight
    with torch.no_grad():
        module.c.weight.fill_(7.0)
    assert (module.a.weight == 7.0).all()
    flat.fill(copy.deepcopy(module).state_dict())
    wrong = {**module.state_dict(), "b.weight": torch.zeros(4, 4)}
    with pytest.raises(FlatError, match=r"'a.weight' and 'b.weight' are tied, and have different values"):
        flat.fill(wrong)
    assert (module.a.weight == 7.0).all()


def test_values_that_are_not_numbers_do_not_untie_weights() -> None:
    module = Tied()
    with torch.no_grad():
        module.a.weight.fill_(float("nan"))
    flat = Flat.adopt(module)
    flat.fill({name: tensor.clone() for name, tensor in module.state_dict().items()})


def test_memory_that_is_shared_in_part_is_refused() -> None:
    whole = torch.zeros(10)
    module = Bag([whole[:6], whole[4:].clone(), whole[5:]])
    before = everything(module)
    with pytest.raises(FlatError, match="'t0' and 't2' share a part of their memory"):
        Flat.adopt(module)
    assert everything(module) == before


@pytest.mark.filterwarnings("ignore:Sparse")
def test_tensors_that_are_no_dense_memory_are_refused() -> None:
    module = Bag([torch.eye(3).to_sparse()])
    with pytest.raises(FlatError, match="'t0' is not dense memory"):
        Layout.of(module)
    with pytest.raises(FlatError, match="meta"):
        Layout.of(nn.Linear(2, 2, device="meta"))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ([torch.zeros(2, 3), torch.zeros(4)], r"expected 't1' torch.float32 \[3\], found 't1' torch.float32 \[4\]"),
        ([torch.zeros(2, 3), torch.zeros(3).double()], r"found 't1' torch.float64 \[3\]"),
        ([torch.zeros(2, 3)], r"lacks 't1' torch.float32 \[3\]"),
        ([], r"lacks 't1' torch.float32 \[3\]"),
        ([torch.zeros(2, 3), torch.zeros(3), torch.zeros(1)], r"has an unknown 't2' torch.float32 \[1\]"),
        ([torch.zeros(3, 2).t(), torch.zeros(3)], r"'t0' .*: expected strides \(3, 1\), found \(1, 2\)"),
    ],
)
def test_layouts_that_differ_are_refused_with_the_first_difference(other: list[torch.Tensor], reason: str) -> None:
    mine, theirs = Flat.adopt(Bag([torch.zeros(2, 3), torch.zeros(3)])), Flat.adopt(Bag(other))
    assert mine.layout.hash != theirs.layout.hash
    with pytest.raises(FlatError, match=reason):
        mine.copy_from(theirs)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("weight", torch.zeros(2, 3), r"'weight': expected torch.float32 \[3, 2\], found torch.float32 \[2, 3\]"),
        ("weight", torch.zeros(3, 2).half(), r"found torch.float16 \[3, 2\]"),
        ("extra", torch.zeros(1), "'extra': there is none"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(name: str, value: torch.Tensor, reason: str) -> None:
    module = nn.Linear(2, 3)
    flat, before = Flat.adopt(module), everything(module)
    with pytest.raises(FlatError, match=reason):
        flat.fill({"bias": torch.ones(3), name: value})
    assert everything(module) == before


def test_a_tensor_that_was_moved_is_noticed() -> None:
    module = nn.Linear(2, 3)
    flat = Flat.adopt(module)
    module.bias.data = torch.zeros(3)
    with pytest.raises(FlatError, match="'bias' has moved"):
        flat.copy_from(Flat.empty(flat.layout))


def test_a_buffer_of_another_size_is_refused() -> None:
    layout = Layout.of(nn.Linear(2, 3))
    for data in (torch.zeros(layout.size - 1, dtype=torch.uint8), torch.zeros(layout.size)):
        with pytest.raises(FlatError, match=rf"expected a buffer uint8 \[{layout.size}\]"):
            Flat(layout, data)
