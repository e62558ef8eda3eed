from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.store import files
from trimtab.store.errors import DiskFull, StoreError


def test_replacing_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    files.write_atomic(path, b"one")
    files.write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["live.json"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*gone/x: no such file"):
        files.write_atomic(tmp_path / "gone" / "x", b"")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_keeps_the_old_contents_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "live.json"
    files.write_atomic(path, b"old")

    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("trimtab.store.files.os.write", full)
    with pytest.raises(DiskFull, match=r"cannot write .*live.json: .*free some space"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["live.json"]


@given(
    st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1), max_size=5),
    st.data(),
)
def test_a_torn_last_line_is_passed_over_and_cut_off(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "log.jsonl"
    for line in lines:
        files.append_line(path, line)
    torn = data.draw(st.binary(max_size=8)).replace(b"\n", b"")
    with open(path, "ab") as file:
        file.write(torn)
    assert files.read_lines(path) == [line.encode() for line in lines]
    files.append_line(path, "next")
    assert files.read_lines(path) == [*(line.encode() for line in lines), b"next"]


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert files.read_lines(tmp_path / "none") == []


def test_hashing_follows_no_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert files.sha256_file(tmp_path / "a") == files.sha256_bytes(b"abc")
    with pytest.raises(OSError, match="symbolic links"):
        files.sha256_file(tmp_path / "b")


def test_a_lock_holds_between_threads(tmp_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def other() -> None:
        inside.wait()
        with files.locked(tmp_path / ".lock"):
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with files.locked(tmp_path / ".lock"):
        inside.set()
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
