"""The cache of compiled kernels: what is trusted, and what is compiled anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trimtab.kernels import cuda_compile
from trimtab.kernels.cuda_compile import CSRC, Cubin, Variant, cache_folder, compile_cubin, compiled, headers, nvrtc
from trimtab.kernels.errors import ExecutorError

VARIANT = Variant(False, True, 2)


class Compiler:
    """Counts what it is asked to compile."""

    version = "1.2"

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def compile(self, source: str, included: object, options: tuple[str, ...]) -> Cubin:
        self.asked.append((source, options))
        return Cubin(f"{source} {options} {self.version}".encode(), "")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(cuda_compile, "nvrtc", lambda: made)
    return made


def test_compiled_once(compiler: Compiler, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "cuda"
    first = compiled("source", VARIANT, "sm_90", folder)
    assert compiled("source", VARIANT, "sm_90", folder) == first
    assert len(compiler.asked) == 1
    assert first.read_bytes().startswith(b"source")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not [path for path in folder.iterdir() if path.suffix != ".cubin"]


def test_whatever_decides_the_result_is_in_the_key(compiler: Compiler, tmp_path: Path) -> None:
    folder = tmp_path / "cuda"
    paths = {compiled("source", VARIANT, "sm_90", folder), compiled("other", VARIANT, "sm_90", folder)}
    paths |= {
        compiled("source", VARIANT, "sm_100", folder),
        compiled("source", Variant(True, True, 2), "sm_90", folder),
    }
    compiler.version = "1.3"
    paths.add(compiled("source", VARIANT, "sm_90", folder))
    assert len(paths) == len(compiler.asked) == 5


def test_a_damaged_file_is_compiled_anew(compiler: Compiler, tmp_path: Path) -> None:
    folder = tmp_path / "cuda"
    path = compiled("source", VARIANT, "sm_90", folder)
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    assert compiled("source", VARIANT, "sm_90", folder).read_bytes() == good
    assert len(compiler.asked) == 2


def test_a_link_is_not_followed(compiler: Compiler, tmp_path: Path) -> None:
    folder = tmp_path / "cuda"
    path = compiled("source", VARIANT, "sm_90", folder)
    moved = tmp_path / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)
    assert not compiled("source", VARIANT, "sm_90", folder).is_symlink()
    assert len(compiler.asked) == 2


def test_a_file_that_others_may_write_is_not_used(compiler: Compiler, tmp_path: Path) -> None:
    folder = tmp_path / "cuda"
    compiled("source", VARIANT, "sm_90", folder).chmod(0o666)
    compiled("source", VARIANT, "sm_90", folder)
    assert len(compiler.asked) == 2


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o770])
def test_a_folder_that_is_not_private_is_not_used(compiler: Compiler, tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cuda"
    folder.mkdir()
    folder.chmod(mode)
    path = compiled("source", VARIANT, "sm_90", folder)
    assert path.parent != folder
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not list(folder.iterdir())


def test_a_folder_that_is_a_link_is_not_used(compiler: Compiler, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    (tmp_path / "cuda").symlink_to(real)
    assert compiled("source", VARIANT, "sm_90", tmp_path / "cuda").parent != real
    assert not list(real.iterdir())


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_CUDA_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("TRIMTAB_CUDA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trimtab" / "cuda"


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_compile, "nvrtc", lambda: None)
    with pytest.raises(ExecutorError, match="no NVRTC"):
        compiled("source", VARIANT, "sm_90", tmp_path / "cuda")


def test_headers_are_complete() -> None:
    """Whatever a header includes is among them, and nothing of the standard library where NVRTC reads it."""
    for text in headers().values():
        for line in text.splitlines():
            if line.startswith('#include "'):
                assert line.split('"')[1] in headers()
    assert {path.name for path in (CSRC / "cuda").iterdir()} == {
        name.split("/")[1] for name in headers() if name.startswith("cuda/")
    }


@pytest.mark.skipif(nvrtc() is None, reason="no NVRTC: cuda-bindings and nvidia-cuda-nvrtc are not installed")
def test_what_nvrtc_refuses_is_said() -> None:
    with pytest.raises(ExecutorError, match="expected a"):
        compile_cubin("int x = ;", VARIANT, "sm_90")


def test_files_are_this_users(compiler: Compiler, tmp_path: Path) -> None:
    assert compiled("source", VARIANT, "sm_90", tmp_path / "cuda").stat().st_uid == os.getuid()
