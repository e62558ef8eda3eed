"""Regions of shared memory of either kind: which bytes, which names, and what a client may do to them afterwards."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from trimtab._native import SharedMemory, WireError

from ..shared_memory.places import KINDS, Place, Places, SystemPlace, places_of

BIG = 2**64 - 1
CONTENT = bytes(range(256)) * 3 + bytes(range(232))


@pytest.fixture(params=KINDS)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    with places_of(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def memory(places: Places) -> SharedMemory:
    return places.memory(1 << 20)


@pytest.fixture
def place(places: Places) -> Place:
    made = places.make(1000)
    made.write(0, CONTENT)
    return made


def regions(memory: SharedMemory) -> list[tuple[str, int]]:
    """(name, bytes) of every region of either kind."""
    return sorted((name, size) for name, *_, size in [*memory.regions(), *memory.cuda_regions()])


# --- every kind


def test_a_region_is_the_memory_itself(memory: SharedMemory, place: Place) -> None:
    assert place.register(memory, "r", 200)
    assert place.register(memory, "s", 1000)
    assert regions(memory) == [("r", 200), ("s", 1000)]
    assert memory.read("r", 105, 3) == bytes([105, 106, 107])
    assert memory.read("r", 200, 0) == b""
    memory.write("r", 198, b"xy")
    memory.write("r", 7, b"")
    assert place.read(197, 4) == bytes([197]) + b"xy" + bytes([200])
    assert memory.read("s", 198, 2) == b"xy"
    place.write(0, b"later")
    assert memory.read("r", 0, 5) == b"later"
    assert memory.read("s", 0, 1000) == place.read(0, 1000)


@pytest.mark.parametrize(("at", "size"), [(0, 201), (200, 1), (201, 0), (1, BIG), (BIG, 1), (BIG, BIG), (BIG, 0)])
def test_bytes_beyond_the_region_are_refused(memory: SharedMemory, place: Place, at: int, size: int) -> None:
    place.register(memory, "r", 200)
    with pytest.raises(WireError, match="within its 200"):
        memory.read("r", at, size)
    with pytest.raises(WireError, match="within its 200"):
        memory.write("r", min(at, BIG), b"x" * min(size, 300) if size and at <= 200 else b"x")
    assert place.read(0, 1000) == CONTENT


@pytest.mark.parametrize("size", [0, 1 << 22, 2**63, BIG])
def test_a_size_beyond_the_memory_is_refused(memory: SharedMemory, place: Place, size: int) -> None:
    with pytest.raises(WireError, match="expected"):
        place.register(memory, "r", size)
    assert regions(memory) == []
    assert place.register(memory, "r", 1000), "what was refused is not in the way"


def test_a_name_is_registered_once(memory: SharedMemory, place: Place) -> None:
    assert place.register(memory, "r", 10)
    assert not place.register(memory, "r", 20)
    assert regions(memory) == [("r", 10)]
    assert place.unregister(memory, "r")
    assert not place.unregister(memory, "r")
    assert place.register(memory, "r", 20)
    memory.clear()
    memory.clear_cuda()
    assert regions(memory) == []


@pytest.mark.parametrize("name", ["", "x" * 1025])
def test_a_name_is_bounded(memory: SharedMemory, place: Place, name: str) -> None:
    with pytest.raises(WireError, match="name"):
        place.register(memory, name, 1)


def test_the_number_of_regions_is_bounded(memory: SharedMemory, place: Place) -> None:
    for number in range(256):
        assert place.register(memory, str(number), 10)
    with pytest.raises(WireError, match="at most 256"):
        place.register(memory, "one more", 10)
    assert not place.register(memory, "7", 10)
    assert place.unregister(memory, "7")
    assert place.register(memory, "one more", 10)


def test_a_region_that_is_not_there_is_named(memory: SharedMemory) -> None:
    with pytest.raises(WireError, match=r'"nope": expected a registered one'):
        memory.read("nope", 0, 1)


# --- both kinds at once


def test_a_name_is_of_one_region_of_either_kind(tmp_path: Path) -> None:
    with places_of("pretended", tmp_path) as places:
        memory, cuda, system = places.memory(1 << 20), places.make(100), SystemPlace(100)
        assert cuda.register(memory, "c", 100)
        assert system.register(memory, "s", 100)
        assert not system.register(memory, "c", 100)
        assert not cuda.register(memory, "s", 100)
        assert not cuda.unregister(memory, "s"), "the calls of one kind leave the other alone"
        assert not system.unregister(memory, "c")
        memory.clear()
        assert memory.cuda_regions() == [("c", 0, 100)]
        assert system.register(memory, "s", 100)
        memory.clear_cuda()
        assert memory.regions() == [("s", system.key, 0, 100)]
        system.free()


# --- system shared memory: which files


@pytest.fixture
def shm() -> Iterator[SystemPlace]:
    made = SystemPlace(1000)
    made.write(0, CONTENT)
    yield made
    made.path.unlink(missing_ok=True)


@pytest.fixture
def registry() -> SharedMemory:
    return SharedMemory(1 << 20)


def test_a_region_is_a_window_of_its_object(registry: SharedMemory, shm: SystemPlace) -> None:
    assert registry.register("r", shm.key, 100, 200)
    assert registry.register("s", shm.name, 0, 1000), "a key may come without its slash"
    assert registry.regions() == [("r", shm.key, 100, 200), ("s", shm.name, 0, 1000)]
    assert registry.read("r", 5, 3) == bytes([105, 106, 107])
    registry.write("r", 198, b"xy")
    assert shm.read(298, 3) == b"xy" + bytes([44])
    assert registry.read("s", 298, 2) == b"xy"


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1001), (1000, 1), (1001, 0), (1001, 1), (BIG, 1), (1, BIG), (BIG, BIG), (2**63, 2**63), (0, 0)],
)
def test_a_window_beyond_its_object_is_refused(
    registry: SharedMemory, shm: SystemPlace, offset: int, size: int
) -> None:
    with pytest.raises(WireError):
        registry.register("r", shm.key, offset, size)
    assert registry.regions() == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "//x",
        ".",
        "..",
        "/..",
        "/../tmp/x",
        "../etc/passwd",
        "/etc/passwd",
        "a/b",
        "a\0b",
        "\0",
        "x" * 256,
        "/x/",
    ],
)
def test_a_key_that_leads_elsewhere_is_refused(registry: SharedMemory, key: str) -> None:
    with pytest.raises(WireError, match="key"):
        registry.register("r", key, 0, 1)


def test_an_object_that_does_not_exist_is_named(registry: SharedMemory) -> None:
    with pytest.raises(WireError, match=r"trimtab-none.*No such file"):
        registry.register("r", "/trimtab-none", 0, 1)


def test_a_link_is_not_followed(registry: SharedMemory, shm: SystemPlace, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 100)
    shm.path.unlink()
    shm.path.symlink_to(secret)
    with pytest.raises(WireError, match="cannot be opened"):
        registry.register("r", shm.key, 0, 10)


def test_what_is_no_plain_file_is_refused_without_waiting(registry: SharedMemory, shm: SystemPlace) -> None:
    shm.path.unlink()
    os.mkfifo(shm.path)
    with pytest.raises(WireError, match="another kind"):
        registry.register("r", shm.key, 0, 1)
    shm.path.unlink()
    shm.path.mkdir()
    with pytest.raises(WireError, match="cannot be opened"):
        registry.register("r", shm.key, 0, 1)
    shm.path.rmdir()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(shm.path))
        with pytest.raises(WireError, match="cannot be opened"):
            registry.register("r", shm.key, 0, 1)


def test_an_object_cut_off_afterwards_is_an_error_and_not_a_crash(registry: SharedMemory, shm: SystemPlace) -> None:
    registry.register("r", shm.key, 0, 1000)
    os.truncate(shm.path, 500)
    assert len(registry.read("r", 0, 500)) == 500
    with pytest.raises(WireError, match="shorter"):
        registry.read("r", 0, 501)
    with pytest.raises(WireError, match="shorter"):
        registry.write("r", 499, b"xy")
    assert shm.path.stat().st_size == 500, "a file that was cut off is not made longer"
    os.truncate(shm.path, 0)
    with pytest.raises(WireError, match="shorter"):
        registry.read("r", 0, 1)


def test_an_object_that_was_unlinked_serves_on(registry: SharedMemory, shm: SystemPlace) -> None:
    registry.register("r", shm.key, 0, 10)
    shm.path.unlink()
    assert registry.read("r", 3, 1) == b"\3"


def test_descriptors_are_given_back(registry: SharedMemory, shm: SystemPlace) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for number in range(50):
        registry.register(str(number), shm.key, 0, 10)
        with pytest.raises(WireError):
            registry.register(f"bad{number}", shm.key, 0, 10_000)
    assert count() == before + 50
    registry.clear()
    assert count() == before
