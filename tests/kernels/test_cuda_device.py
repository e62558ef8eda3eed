"""CuPy's side of the CUDA executor as far as it can be tried without a GPU, on a CuPy that is replaced."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from trimtab.kernels import cuda_device
from trimtab.kernels.cuda_compile import Variant
from trimtab.kernels.cuda_device import CupyDevice, Launch

VARIANT = Variant(False, True, 2)


class Function:
    """What a block may have of shared memory belongs to the loaded function, whoever asks."""

    def __init__(self) -> None:
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self.launched: list[tuple[Any, ...]] = []

    def __call__(self, grid: object, block: object, arguments: tuple[Any, ...], *, shared_mem: int) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes, "invalid argument"
        self.launched.append((grid, block, arguments))


class Stream:
    def __init__(self) -> None:
        self.done: list[str] = []

    def synchronize(self) -> None:
        self.done.append("waited")


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Device(contextlib.nullcontext[None]):
        compute_capability = "90"

        @property
        def attributes(self) -> dict[str, int]:
            return {"MultiProcessorCount": 132}

    functions: dict[str, Function] = {}

    class RawModule:
        """Loads each file once, as CuPy does."""

        def __init__(self, path: str) -> None:
            self.function = functions.setdefault(path, Function())

        def get_function(self, name: str) -> Function:
            assert name == "trimtab_columns"
            return self.function

    current = Stream()

    class Memory:
        ptr, mem = 256, SimpleNamespace(size=512)

        def __add__(self, offset: int) -> Any:
            assert offset == 16
            return SimpleNamespace(copy_from_host_async=lambda *_: current.done.append("copied"))

    cuda = SimpleNamespace(
        Device=lambda _: Device(),
        Stream=lambda non_blocking: Stream(),
        get_current_stream=lambda: current,
        alloc=lambda _: Memory(),
    )
    fake = SimpleNamespace(cuda=cuda, RawModule=RawModule, functions=functions, current=current)
    monkeypatch.setattr(cuda_device.importlib, "import_module", lambda _: fake)
    monkeypatch.setattr(cuda_device, "compiled", lambda source, *_: Path(f"/{source}.cubin"))
    return fake


def call(shared_bytes: int) -> Launch:
    return Launch((3, 2), shared_bytes, (1 << 40, 7), (True, False))


def test_programs_of_one_source_do_not_take_shared_memory_from_each_other(cupy: Any) -> None:
    device = CupyDevice()
    large, small = device.kernel("source", VARIANT), device.kernel("source", VARIANT)
    for kernel, size in ((large, 100_000), (small, 60_000), (large, 100_000), (small, 48), (large, 99_999)):
        kernel(call(size))
    (function,) = cupy.functions.values()
    assert len(function.launched) == 5


def test_arguments_have_the_widths_that_the_kernel_takes(cupy: Any) -> None:
    CupyDevice().kernel("source", VARIANT)(call(0))
    (function,) = cupy.functions.values()
    ((grid, block, arguments),) = function.launched
    assert (grid, block) == ((3, 2), (256,))
    assert [(type(value), int(value)) for value in arguments] == [(np.uint64, 1 << 40), (np.uint32, 7)]


def test_what_was_copied_may_be_changed(cupy: Any) -> None:
    device = CupyDevice()
    device.copy_in(device.memory(32), 16, np.ones(4, np.float32))
    assert cupy.current.done == ["copied", "waited"]
