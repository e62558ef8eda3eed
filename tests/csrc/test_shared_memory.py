"""Regions of shared memory: which files, which bytes, and what a client may do to them afterwards."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from trimtab._native import SharedMemory, WireError

SHM = Path("/dev/shm")
BIG = 2**64 - 1


class Object:
    """An object in /dev/shm, of random name; gone after the test."""

    def __init__(self, size: int) -> None:
        self.name = f"trimtab-test-{uuid.uuid4().hex}"
        self.key = f"/{self.name}"
        self.path = SHM / self.name
        self.path.write_bytes(bytes(range(256)) * (size // 256) + bytes(range(size % 256)))


@pytest.fixture
def shm() -> Iterator[Object]:
    made = Object(1000)
    yield made
    made.path.unlink(missing_ok=True)


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory(1 << 20)


def test_a_region_is_a_window_of_its_object(memory: SharedMemory, shm: Object) -> None:
    assert memory.register("r", shm.key, 100, 200)
    assert memory.register("s", shm.name, 0, 1000), "a key may come without its slash"
    assert memory.regions() == [("r", shm.key, 100, 200), ("s", shm.name, 0, 1000)]
    assert memory.read("r", 5, 3) == bytes([105, 106, 107])
    assert memory.read("r", 200, 0) == b""
    memory.write("r", 198, b"xy")
    assert shm.path.read_bytes()[298:301] == b"xy" + bytes([44])
    assert memory.read("s", 298, 2) == b"xy"


@pytest.mark.parametrize(("at", "size"), [(0, 201), (200, 1), (201, 0), (1, BIG), (BIG, 1), (BIG, BIG), (BIG, 0)])
def test_bytes_beyond_the_window_are_refused(memory: SharedMemory, shm: Object, at: int, size: int) -> None:
    memory.register("r", shm.key, 100, 200)
    with pytest.raises(WireError, match="within its 200"):
        memory.read("r", at, size)
    with pytest.raises(WireError, match="within its 200"):
        memory.write("r", min(at, BIG), b"x" * min(size, 300) if size and at <= 200 else b"x")
    assert shm.path.stat().st_size == 1000


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1001), (1000, 1), (1001, 0), (1001, 1), (BIG, 1), (1, BIG), (BIG, BIG), (2**63, 2**63), (0, 0)],
)
def test_a_window_beyond_its_object_is_refused(memory: SharedMemory, shm: Object, offset: int, size: int) -> None:
    with pytest.raises(WireError):
        memory.register("r", shm.key, offset, size)
    assert memory.regions() == []


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
def test_a_key_that_leads_elsewhere_is_refused(memory: SharedMemory, key: str) -> None:
    with pytest.raises(WireError, match="key"):
        memory.register("r", key, 0, 1)


def test_an_object_that_does_not_exist_is_named(memory: SharedMemory) -> None:
    with pytest.raises(WireError, match=r"trimtab-none.*No such file"):
        memory.register("r", "/trimtab-none", 0, 1)


def test_a_link_is_not_followed(memory: SharedMemory, shm: Object, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 100)
    shm.path.unlink()
    shm.path.symlink_to(secret)
    with pytest.raises(WireError, match="cannot be opened"):
        memory.register("r", shm.key, 0, 10)


def test_what_is_no_plain_file_is_refused_without_waiting(memory: SharedMemory, shm: Object) -> None:
    shm.path.unlink()
    os.mkfifo(shm.path)
    with pytest.raises(WireError, match="another kind"):
        memory.register("r", shm.key, 0, 1)
    shm.path.unlink()
    shm.path.mkdir()
    with pytest.raises(WireError, match="cannot be opened"):
        memory.register("r", shm.key, 0, 1)
    shm.path.rmdir()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(shm.path))
        with pytest.raises(WireError, match="cannot be opened"):
            memory.register("r", shm.key, 0, 1)


def test_a_name_is_registered_once(memory: SharedMemory, shm: Object) -> None:
    assert memory.register("r", shm.key, 0, 10)
    assert not memory.register("r", shm.key, 5, 10)
    assert memory.regions() == [("r", shm.key, 0, 10)]
    assert memory.unregister("r")
    assert not memory.unregister("r")
    assert memory.register("r", shm.key, 5, 10)
    memory.clear()
    assert memory.regions() == []


@pytest.mark.parametrize("name", ["", "x" * 1025])
def test_a_name_is_bounded(memory: SharedMemory, shm: Object, name: str) -> None:
    with pytest.raises(WireError, match="name"):
        memory.register(name, shm.key, 0, 1)


def test_an_object_cut_off_afterwards_is_an_error_and_not_a_crash(memory: SharedMemory, shm: Object) -> None:
    memory.register("r", shm.key, 0, 1000)
    os.truncate(shm.path, 500)
    assert len(memory.read("r", 0, 500)) == 500
    with pytest.raises(WireError, match="shorter"):
        memory.read("r", 0, 501)
    with pytest.raises(WireError, match="shorter"):
        memory.write("r", 499, b"xy")
    assert shm.path.stat().st_size == 500, "a file that was cut off is not made longer"
    os.truncate(shm.path, 0)
    with pytest.raises(WireError, match="shorter"):
        memory.read("r", 0, 1)


def test_an_object_that_was_unlinked_serves_on(memory: SharedMemory, shm: Object) -> None:
    memory.register("r", shm.key, 0, 10)
    shm.path.unlink()
    assert memory.read("r", 3, 1) == b"\3"


def test_descriptors_are_given_back(memory: SharedMemory, shm: Object) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for number in range(50):
        memory.register(str(number), shm.key, 0, 10)
        with pytest.raises(WireError):
            memory.register(f"bad{number}", shm.key, 0, 10_000)
    assert count() == before + 50
    memory.clear()
    assert count() == before


def test_the_number_of_regions_is_bounded(memory: SharedMemory, shm: Object) -> None:
    for number in range(256):
        assert memory.register(str(number), shm.key, 0, 10)
    with pytest.raises(WireError, match="at most 256"):
        memory.register("one more", shm.key, 0, 10)
