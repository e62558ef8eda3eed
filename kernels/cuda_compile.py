"""Compiling generated CUDA sources by NVRTC, and keeping what comes of it.

NVRTC comes by `cuda.bindings` where that is installed, else by CuPy; it needs no GPU. Sources include the headers of
csrc/, which an installed Trimtab has beside its packages.

A cubin is code that will run, so the cache is trusted only where nobody else could have written: a folder of the user's
own with mode 0700, in which every file names the sha256 of its content. It is keyed by the sha256 of all that decides
the result: source, headers, options, compiler version, architecture. Files are written aside and renamed, so that
processes may share it. A folder that does not qualify is not used, and each process then compiles for itself.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from trimtab.kernels.errors import ExecutorError

__all__ = ["CSRC", "Cubin", "Variant", "cache_folder", "compile_cubin", "compiled", "headers", "nvrtc"]

CSRC = Path(__file__).resolve().parent.parent / "csrc"
"""Where the headers lie, in the source tree and in an installed package."""
_HEADERS = (
    "ops.h", "ops_math.h", "ops_builtins.h",
    "cuda/tables.h", "cuda/warp.h", "cuda/sketch.h", "cuda/chains.h", "cuda/kernel.h",
)  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """Which of a source's kernels: for columns or a matrix, with or without the sketch, of 1 or 2 vectors a lane, of
    rows that the launch or a staged batch's header numbers."""

    matrix: bool
    sketch: bool
    vectors: int
    staged: bool = False

    @property
    def defines(self) -> dict[str, int]:
        """The macros that the source is compiled with."""
        flags = {"TRIMTAB_MATRIX": int(self.matrix), "TRIMTAB_SKETCH": int(self.sketch)}
        return {**flags, "TRIMTAB_VECTORS": self.vectors, "TRIMTAB_STAGED": int(self.staged)}


@dataclass(frozen=True)
class Cubin:
    """What NVRTC made. log: its words, with ptxas's account of registers and spills."""

    data: bytes
    log: str


class Nvrtc(Protocol):
    """NVRTC, whichever library brought it."""

    version: str

    def compile(self, source: str, included: Mapping[str, str], options: tuple[str, ...]) -> Cubin:
        """Raises ExecutorError with the compiler's words."""
        ...


@cache
def headers() -> Mapping[str, str]:
    """The headers that sources include, by name."""
    return {name: (CSRC / name).read_text() for name in _HEADERS}


def options_of(variant: Variant, architecture: str) -> tuple[str, ...]:
    """NVRTC's options. No contraction: the exactness contract of column programs."""
    defines = (f"-D{name}={value}" for name, value in variant.defines.items())
    fixed = ("--std=c++20", "--fmad=false", "--ptxas-options=-v", f"--gpu-architecture={architecture}")
    return (*fixed, *defines)


@cache
def nvrtc() -> Nvrtc | None:
    """NVRTC, or None where neither cuda.bindings nor CuPy has one."""
    for make in (_Bindings, _Cupy):
        try:
            return make()
        except Exception as error:  # each library raises errors of its own where libnvrtc is missing
            _log.debug("%s: no NVRTC: %s", make.__name__, error)
    return None


def compile_cubin(source: str, variant: Variant, architecture: str) -> Cubin:
    """Compiles for an architecture such as `sm_90`. Raises ExecutorError where there is no NVRTC, or it refuses."""
    compiler = nvrtc()
    if compiler is None:
        raise ExecutorError("no NVRTC: expected CuPy, or cuda-bindings and nvidia-cuda-nvrtc, to be installed")
    return compiler.compile(source, headers(), options_of(variant, architecture))


def cache_folder() -> Path:
    """TRIMTAB_CUDA_CACHE, or trimtab/cuda in the user's cache folder."""
    named = os.environ.get("TRIMTAB_CUDA_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "trimtab" / "cuda"


def compiled(source: str, variant: Variant, architecture: str, folder: Path | None = None) -> Path:
    """A file with the cubin: from the cache, or compiled now. Raises ExecutorError."""
    compiler = nvrtc()
    version = compiler.version if compiler else "none"
    folder = _private(folder or cache_folder())
    key = _digest("\0".join([*headers().values(), source, *options_of(variant, architecture), version]).encode())
    for path in folder.glob(f"{key}-*.cubin"):
        if _is_ours(path) and path.stem == f"{key}-{_digest(path.read_bytes())}":
            return path
        _log.warning("%s is damaged or somebody else's, and is not used", path)
    cubin = compile_cubin(source, variant, architecture)
    path = folder / f"{key}-{_digest(cubin.data)}.cubin"
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as file:
        file.write(cubin.data)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)
    return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_ours(path: Path) -> bool:
    """Whether only this user could have written it: no link, nobody else's, not writeable by others."""
    found = path.lstat()
    return found.st_uid == os.getuid() and not stat.S_ISLNK(found.st_mode) and not found.st_mode & 0o022


@cache
def _own_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="trimtab-cuda-"))


def _private(folder: Path) -> Path:
    """The folder, made where it is missing; another, this process's own, where others may write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(folder) and folder.stat().st_mode & 0o777 == 0o700:
            return folder
        _log.warning("%s: expected a folder of this user's with mode 0700; compiled kernels are not kept", folder)
    except OSError as error:
        _log.warning("%s: %s; compiled kernels are not kept", folder, error)
    return _own_folder()


class _Bindings:
    """NVRTC by cuda.bindings."""

    def __init__(self) -> None:
        if importlib.util.find_spec("cuda") is None:
            raise ImportError("cuda.bindings is not installed")
        self._nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
        major, minor = self._do(self._nvrtc.nvrtcVersion())
        self.version = f"{major}.{minor}"

    def compile(self, source: str, included: Mapping[str, str], options: tuple[str, ...]) -> Cubin:
        """See Nvrtc."""
        names, texts = [name.encode() for name in included], [text.encode() for text in included.values()]
        (program,) = self._do(self._nvrtc.nvrtcCreateProgram(source.encode(), b"columns.cu", len(names), texts, names))
        try:
            result = self._nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
            log = self._text(program, "ProgramLog").decode(errors="replace").rstrip("\0")
            if int(result[0]) != 0:
                raise ExecutorError(f"NVRTC refuses the source of a column program: {log[:2000]}")
            return Cubin(self._text(program, "CUBIN"), log)
        finally:
            self._nvrtc.nvrtcDestroyProgram(program)

    def _text(self, program: Any, what: str) -> bytes:
        (size,) = self._do(getattr(self._nvrtc, f"nvrtcGet{what}Size")(program))
        buffer = bytes(size)
        self._do(getattr(self._nvrtc, f"nvrtcGet{what}")(program, buffer))
        return buffer

    @staticmethod
    def _do(result: tuple[Any, ...]) -> tuple[Any, ...]:
        if int(result[0]) != 0:
            raise ExecutorError(f"NVRTC: {result[0]}")
        return result[1:]


class _Cupy:
    """NVRTC by CuPy."""

    def __init__(self) -> None:
        if importlib.util.find_spec("cupy") is None:
            raise ImportError("CuPy is not installed")
        self._nvrtc: Any = importlib.import_module("cupy.cuda").nvrtc
        self.version = ".".join(map(str, self._nvrtc.getVersion()))

    def compile(self, source: str, included: Mapping[str, str], options: tuple[str, ...]) -> Cubin:
        """See Nvrtc."""
        names, texts = [name.encode() for name in included], [text.encode() for text in included.values()]
        program = self._nvrtc.createProgram(source, "columns.cu", texts, names)
        try:
            self._nvrtc.compileProgram(program, options)
            return Cubin(bytes(self._nvrtc.getCUBIN(program)), str(self._nvrtc.getProgramLog(program)))
        except self._nvrtc.NVRTCError as error:
            log = self._nvrtc.getProgramLog(program)
            raise ExecutorError(f"NVRTC refuses the source of a column program: {log[:2000]}") from error
        finally:
            self._nvrtc.destroyProgram(program)
