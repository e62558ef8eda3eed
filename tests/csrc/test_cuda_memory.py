"""Memory of another process on a GPU: what is opened and closed and when, what fails and how, and the driver's ABI.

The driver is played by tests/shared_memory/pretend_driver.cpp, whose log and orders these tests read and write; what a
GPU can take part in runs there, too.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import os
import re
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab._native import CudaDriver, DeviceError, SharedMemory, WireError

from ..shared_memory import exporter
from ..shared_memory.places import CUDA_KINDS, NVIDIA, CudaPlace, Places, places_of, pretended_driver
from ..shared_memory.pretended import Pretended

ROOT = Path(__file__).parents[2]
MOST = 1 << 20
OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700


class Bench(Pretended):
    """A registry over the driver that pretends."""

    def __init__(self, folder: Path, environment: Callable[[str, str], None]) -> None:
        super().__init__(folder, environment)
        self.driver = CudaDriver(self.library)
        self.memory = SharedMemory(MOST, self.driver)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path / "driver", monkeypatch.setenv)
    yield made
    made.close()


@pytest.fixture(params=CUDA_KINDS)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    with places_of(request.param, tmp_path) as made:
        yield made


# --- the driver


def test_where_there_is_no_driver_it_is_named(tmp_path: Path) -> None:
    driver = CudaDriver(str(tmp_path / NVIDIA))
    assert driver.devices == 0
    assert NVIDIA in driver.missing
    assert "No such file" in driver.missing
    memory = SharedMemory(MOST, driver)
    with pytest.raises(WireError, match="no CUDA memory here"):
        memory.register_cuda("r", bytes(64), 0, 1)


def test_a_library_that_is_no_driver_is_not_used() -> None:
    driver = CudaDriver("libm.so.6")
    assert (driver.devices, driver.missing) == (0, "libm.so.6 has no cuInit: it is too old")


def test_a_driver_without_a_gpu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETEND_CUDA_DEVICES", "0")
    driver = CudaDriver(str(pretended_driver(tmp_path)))
    assert driver.devices == 0
    assert driver.missing == "cuInit: no CUDA-capable device is detected (CUDA_ERROR_NO_DEVICE)"


def test_nothing_is_made_on_a_device_before_something_is_registered(bench: Bench) -> None:
    assert bench.driver.devices == 2
    assert bench.driver.missing == bench.driver.fault == ""
    assert bench.log() == []


# --- what is refused


@pytest.mark.parametrize("handle", [b"", bytes(63), bytes(65), base64.b64encode(bytes(64))])
def test_a_handle_of_another_length_is_refused(places: Places, handle: bytes) -> None:
    with pytest.raises(WireError, match=f"raw_handle: expected the 64 bytes of a CUDA IPC handle, came {len(handle)}"):
        places.memory(MOST).register_cuda("r", handle, 0, 1)


@pytest.mark.parametrize("device", [-1, 1000, 2**31, 2**63 - 1, -(2**63)])
def test_a_device_that_is_not_there_is_refused(places: Places, device: int) -> None:
    made = places.make(10)
    assert isinstance(made, CudaPlace)
    with pytest.raises(WireError, match=rf'"r": expected a device_id of this server, 0 to \d+, came {device}$'):
        places.memory(MOST).register_cuda("r", made.handle, device, 1)


def test_a_handle_of_another_device_is_refused(bench: Bench) -> None:
    made = bench.allocate(device=1)
    with pytest.raises(WireError, match=r'"r": expected the handle of memory .* on device 0 .*PEER_ACCESS'):
        bench.memory.register_cuda("r", made.handle, 0, 10)
    assert bench.memory.register_cuda("r", made.handle, 1, 10)
    assert bench.memory.cuda_regions() == [("r", 1, 10)]


def test_a_handle_of_this_very_process_is_refused(bench: Bench) -> None:
    own = exporter.Exporter(bench.library).allocate(100, 0)
    with pytest.raises(WireError, match=r"another process has on device 0.*INVALID_CONTEXT"):
        bench.memory.register_cuda("r", base64.b64decode(own["handle"]), 0, 100)


def test_a_handle_of_a_process_that_is_gone_is_refused(bench: Bench) -> None:
    made = bench.allocate()
    bench.exporter.process.kill()
    bench.exporter.process.wait()
    with pytest.raises(WireError, match="INVALID_VALUE"):
        bench.memory.register_cuda("r", made.handle, 0, 100)


def test_a_handle_of_memory_that_was_freed_is_refused(bench: Bench) -> None:
    made = bench.allocate()
    made.free()
    with pytest.raises(WireError, match="INVALID_VALUE"):
        bench.memory.register_cuda("r", made.handle, 0, 100)


def test_any_bytes_may_come_as_a_handle(tmp_path: Path) -> None:
    with places_of("pretended", tmp_path) as places:
        memory, good = places.memory(MOST), places.make(100)
        assert isinstance(good, CudaPlace)
        changed = st.integers(0, 63).flatmap(
            lambda at: st.binary(min_size=1, max_size=64 - at).map(
                lambda new: good.handle[:at] + new + good.handle[at + len(new) :]
            )
        )

        @given(handle=st.binary(max_size=80) | changed, device=st.integers(-3, 3), size=st.integers(0, 200))
        def attempt(handle: bytes, device: int, size: int) -> None:
            try:
                made = memory.register_cuda("r", handle, device, size)
            except WireError:
                assert memory.cuda_regions() == []
            else:
                assert made
                assert 0 < size <= 100
                memory.read("r", 0, size)
                memory.clear_cuda()

        attempt()
        assert good.register(memory, "r", 100)


# --- what is opened is closed


def test_a_handle_is_opened_once_and_closed_last(bench: Bench) -> None:
    made = bench.allocate()
    assert made.register(bench.memory, "one", 1000)
    assert made.register(bench.memory, "two", 10)
    assert bench.log() == ["retain 0", "open"]
    assert bench.memory.read("two", 3, 2) == bytes([3, 4])
    assert made.unregister(bench.memory, "one")
    assert bench.memory.read("two", 3, 2) == bytes([3, 4])
    assert bench.log() == ["retain 0", "open", "stream"]
    assert made.unregister(bench.memory, "two")
    assert bench.log() == ["retain 0", "open", "stream", "close", "release 0"]
    assert made.register(bench.memory, "one", 1000), "and may be opened again"
    assert bench.log()[5:] == ["retain 0", "open"]


def test_a_context_goes_with_the_last_region_on_its_device(bench: Bench) -> None:
    first, second, third = bench.allocate(), bench.allocate(), bench.allocate(device=1)
    for name, made in (("a", first), ("b", second), ("c", third)):
        assert made.register(bench.memory, name, 10)
    assert bench.log() == ["retain 0", "open", "open", "retain 1", "open"]
    assert [device for _, device, _ in bench.memory.cuda_regions()] == [0, 0, 1]
    assert first.unregister(bench.memory, "a")
    assert third.unregister(bench.memory, "c")
    assert bench.log()[5:] == ["close", "close", "release 1"]
    bench.memory.clear_cuda()
    assert bench.log()[8:] == ["close", "release 0"]


def test_a_region_that_is_refused_leaves_nothing_open(bench: Bench) -> None:
    made = bench.allocate(1000)
    with pytest.raises(WireError, match=r"at most the 1000 bytes that lie there, came 1001"):
        made.register(bench.memory, "r", 1001)
    assert bench.log() == ["retain 0", "open", "close", "release 0"]
    bench.order("cuMemGetAddressRange_v2", 1)
    with pytest.raises(WireError, match=r'region "r": cuMemGetAddressRange: invalid argument'):
        made.register(bench.memory, "r", 1000)
    assert bench.log()[4:] == ["retain 0", "open", "close", "release 0"]


def test_the_registry_takes_its_regions_with_it(bench: Bench) -> None:
    bench.allocate().register(bench.memory, "r", 10)
    del bench.memory
    assert bench.log() == ["retain 0", "open", "close", "release 0"]


def test_what_was_registered_outlives_what_exported_it(bench: Bench) -> None:
    """As memory on a GPU does, which goes with the last process that has it open."""
    bench.allocate().register(bench.memory, "r", 10)
    bench.exporter.process.kill()
    bench.exporter.process.wait()
    assert bench.memory.read("r", 0, 3) == bytes([0, 1, 2])
    bench.memory.write("r", 0, b"abc")
    assert bench.memory.unregister_cuda("r")


def test_a_region_is_not_closed_under_a_copy(bench: Bench) -> None:
    """Which also shows that a copy holds neither the interpreter's lock nor the registry's."""
    made = bench.allocate()
    made.register(bench.memory, "r", 1000)
    reached, go = bench.wait_in("cuMemcpyDtoHAsync_v2")
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append(bench.memory.read("r", 100, 3)))
    reading.start()
    reached.read_bytes()
    assert made.unregister(bench.memory, "r")
    assert bench.memory.cuda_regions() == []
    assert "close" not in bench.log()
    bench.no_order()
    go.write_bytes(b"")
    reading.join()
    assert found == [bytes([100, 101, 102])]
    assert bench.log()[-2:] == ["close", "release 0"]


def test_a_callers_context_and_capture_mode_stay_as_they_were(bench: Bench) -> None:
    made = bench.allocate()
    made.register(bench.memory, "r", 1000)
    bench.memory.write("r", 0, bench.memory.read("r", 10, 10))
    for call in ("cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"):
        bench.order(call, 400)
        with pytest.raises(WireError):
            bench.memory.read("r", 0, 10)
    bench.no_order()
    assert made.unregister(bench.memory, "r")
    library = ctypes.CDLL(bench.library)
    popped, mode = ctypes.c_void_p(), ctypes.c_int(0)
    assert library.cuCtxPopCurrent_v2(ctypes.byref(popped)) == 201, "there was none"
    assert library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)) == 0
    assert mode.value == 0, "global, as it was"


def test_many_threads_copy_register_and_unregister(bench: Bench) -> None:
    made = [bench.allocate(4096, device) for device in (0, 1, 0, 1)]
    shared = bench.allocate(64)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(100):
                assert made[number].register(bench.memory, f"own {number}", 4096)
                assert shared.register(bench.memory, f"shared {number}", 64)
                text = f"{number} {turn}".encode()
                bench.memory.write(f"own {number}", turn, text)
                assert bench.memory.read(f"own {number}", turn, len(text)) == text
                assert bench.memory.read(f"shared {number}", 0, 64) == bytes(range(64))
                bench.memory.unregister_cuda(f"shared {number}")
                bench.memory.unregister_cuda(f"own {number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    log = bench.log()
    assert log.count("open") == log.count("close") >= 400
    assert [line for line in log if line.startswith(("left", "lost"))] == []
    for number in range(4):
        assert made[number].read(99, 4) == f"{number} 99".encode()


# --- what fails later


def test_a_device_without_room_for_a_context_is_no_fault_of_the_request(bench: Bench) -> None:
    made = bench.allocate()
    bench.order("cuDevicePrimaryCtxRetain", OUT_OF_MEMORY)
    with pytest.raises(DeviceError, match=r"device 0 cannot be used: out of memory \(CUDA_ERROR_OUT_OF_MEMORY\)"):
        made.register(bench.memory, "r", 10)
    assert DeviceError.code == "UNAVAILABLE"
    bench.no_order()
    assert made.register(bench.memory, "r", 10)
    assert bench.driver.fault == ""


@pytest.mark.parametrize(
    "call", ["cuCtxPushCurrent_v2", "cuStreamCreate", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"]
)
def test_a_copy_that_fails_is_an_error_and_nothing_more(bench: Bench, call: str) -> None:
    bench.allocate().register(bench.memory, "r", 1000)
    bench.order(call, 400)
    with pytest.raises(WireError, match=r"invalid resource handle \(CUDA_ERROR_INVALID_HANDLE\)"):
        bench.memory.read("r", 0, 10)
    bench.no_order()
    assert bench.memory.read("r", 0, 3) == bytes([0, 1, 2])
    assert bench.driver.fault == ""
    bench.memory.clear_cuda()
    assert bench.log()[-2:] == ["close", "release 0"]


@pytest.mark.parametrize("call", ["cuMemcpyHtoDAsync_v2", "cuStreamSynchronize", "cuCtxPushCurrent_v2"])
def test_a_gpu_that_is_lost_is_lost_to_whatever_comes_after(bench: Bench, call: str) -> None:
    made, other = bench.allocate(), bench.allocate(device=1)
    made.register(bench.memory, "r", 1000)
    assert select.select([bench.driver], [], [], 0)[0] == []
    bench.order(call, ILLEGAL_ADDRESS)
    lost = "the GPU is lost to this server, which restarts: .*an illegal memory access"
    with pytest.raises(DeviceError, match=lost):
        bench.memory.write("r", 0, b"x")
    bench.no_order()
    assert select.select([bench.driver], [], [], 0)[0] == [bench.driver]
    assert call.removesuffix("_v2") in bench.driver.fault
    for attempt in (lambda: bench.memory.read("r", 0, 1), lambda: other.register(bench.memory, "s", 10)):
        with pytest.raises(DeviceError, match=lost):
            attempt()
    assert made.unregister(bench.memory, "r")


@pytest.mark.parametrize("passes", [True, False])
def test_a_driver_that_says_unknown_of_a_handle_loses_no_gpu_that_works(bench: Bench, passes: bool) -> None:
    made = bench.allocate()
    bench.order("cuIpcOpenMemHandle_v2", 999, passes=passes)
    with pytest.raises(WireError if passes else DeviceError, match="refuses" if passes else "the GPU is lost"):
        made.register(bench.memory, "r", 1000)
    bench.no_order()
    if passes:
        assert bench.driver.fault == ""
        assert made.register(bench.memory, "r", 1000)
        assert bench.memory.read("r", 0, 3) == bytes([0, 1, 2])


# --- the ABI


def nvidia_headers() -> Path | None:
    """The folder of a cuda.h: Triton (the compiler) brings one."""
    found = importlib.util.find_spec("triton")
    folders = [
        Path(path) / "backends" / "nvidia" / "include" for path in (found and found.submodule_search_locations) or ()
    ]
    folders += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    return next((folder for folder in folders if (folder / "cuda.h").exists()), None)


def test_declarations_are_those_of_cuda_h(tmp_path: Path) -> None:
    headers = nvidia_headers()
    if headers is None:
        pytest.skip("needs a cuda.h: that of the triton package, or CUDA_HOME")
    sources = [ROOT / "tests/shared_memory/abi.cpp", ROOT / "csrc/cuda_driver.cpp", ROOT / "csrc/errors.cpp"]
    program = tmp_path / "abi"
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-isystem", str(headers), f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, *map(str, sources), "-ldl", "-o", str(program)], check=True)
    text = (headers / "cuda.h").read_text()
    results = text[text.index("typedef enum cudaError_enum") : text.index("} CUresult;")]
    errors = re.findall(r"/\*\*((?:(?!\*/).)*)\*/\s*(CUDA_\w+)\s*=\s*(\d+)", results, re.DOTALL)
    assert len(errors) > 80
    done = subprocess.run([str(program), *(code for *_, code in errors)], capture_output=True, text=True, check=True)
    lost = {name for _, name, code in errors if code in done.stdout.split()}
    # Those of which cuda.h says that only another process helps; and these.
    assert lost == {
        name for text, name, _ in errors if "must be terminated" in " ".join(text.replace("*", " ").split())
    } | {
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        "CUDA_ERROR_CONTEXT_IS_DESTROYED",
        "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_MPS_CLIENT_TERMINATED",
        "CUDA_ERROR_UNKNOWN",
    }
