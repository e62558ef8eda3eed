"""By what a loaded version runs its forward pass. On the CPU: torch's operations one by one, on packed weights, or by a
compiled package. On a GPU: by CUDA graphs (graphs.py), of torch's operations or of what torch.compile makes of them.

`[[model]] run` chooses, and `precision` on a GPU. What was asked for and does not work out is tried with less, to the
eager pass in the end (`ways`), and the reason is told. `graphs` says whether versions share them.

The rest is about the CPU. Measured (docs/serving.md, benchmarks/model_cpu.py): what there is to gain over torch's
operations one by one, once nn.Module's way of calling is out of the way (Network.forward_of), comes from weights laid
out for the processor: half the time from some 256 rows and 64 x 128 weights on. For the networks that Trimtab builds
itself, oneDNN does that in a moment (Network.packed_of): "auto" packs, and times which batches gain. Any other network
needs a compiler for it. torch.compile in the process costs 15-25 µs a call in guards and holds Python's lock while it
compiles; so "compiled" is AOTInductor, in a process of its own (models/compiling.py), while the version is being
staged. It is not the default: a version would wait for half a minute before it can serve. In lockstep "auto" is
eager: what two timings say must not decide the last bit of an answer.

A package is code. It is never kept: it is made anew whenever a version is loaded, in a folder that only this user may
enter, is loaded only if it has the hash that the compiling process printed, and is deleted at once. What inductor
caches goes into the same folder.

Before it is used, either has to agree with the eager pass on made-up rows at several sizes. Both are timed: small
batches stay eager where that is faster. Where compiling fails, for want of a C++ compiler say, or disagrees, the
version runs eagerly, and the reason is told.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from trimtab.kernels.cuda_graph import GraphColumns
from trimtab.kernels.device import graph_columns
from trimtab.kernels.program import ColumnProgram
from trimtab.models.capturing import Known, graph_version, try_ways
from trimtab.models.compiling import example_of
from trimtab.models.errors import ModelError
from trimtab.models.loading import Loader, Version
from trimtab.models.machine import CudaMachine, Machine
from trimtab.models.tensor_graphs import KnownTensors, use_graphs
from trimtab.models.tensors import TensorVersion
from trimtab.models.version import LoadedVersion
from trimtab.store.files import sha256_file
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore

__all__ = ["RunError", "Sized", "compile_version", "pack_version", "running", "ways"]

_log = logging.getLogger(__name__)
Run = Callable[..., Any]
_SECONDS = 600.0
_TOLERANCE = 1e-4
_REPEATS = 15
_PACKED_REPEATS = 5


class RunError(ModelError):
    """A version cannot run compiled; the message says why."""


class Sized:
    """Batches of at least `least` rows by `large`, smaller ones eagerly. One thread at a time."""

    def __init__(self, eager: Run, large: Run, least: int) -> None:
        self.eager, self.large, self.least = eager, large, least

    def __call__(self, *arguments: torch.Tensor) -> Any:
        return (self.large if arguments[0].shape[0] >= self.least else self.eager)(*arguments)


def running(
    load: Loader,
    project: Project,
    settings: ModelSettings,
    store: VersionStore,
    *,
    device: str,
    threads: int,
    lockstep: bool,
    tell: Callable[[int, str], None],
) -> Loader:
    """Loads versions as `load` does, and has them run as the model's settings say. `tell` hears, with a version and a
    message, how a version that was to be compiled runs, and what runs in another way than was asked for."""
    most = settings.batching.max_batch_size
    if settings.run == "eager" or (settings.run == "auto" and lockstep):
        return load
    if device != "cpu":
        return _on_gpu(load, settings, most, tell)
    if settings.precision != "fp32":
        load = _told(load, f"runs in fp32: {settings.precision} is for a GPU", tell)

    def packed(number: int) -> Version:
        version = load(number)
        run = pack_version(version, most)
        if run is not None:
            version.use(run)
        return version

    if settings.run == "auto":
        return packed

    def loaded(number: int) -> Version:
        version = load(number)
        began = time.monotonic()
        try:
            compiled = compile_version(version, project, settings.name, store, threads=threads, most=most)
        except RunError as error:
            tell(number, f"version {number} runs eagerly: {error}")
            return version
        took = f"compiling took {time.monotonic() - began:.0f} s"
        if compiled is None:
            tell(number, f"version {number} runs eagerly, which is as fast on full batches ({took})")
        else:
            version.use(compiled)
            tell(number, f"version {number} runs compiled from {compiled.least} rows on ({took})")
        return version

    return loaded


def ways(run: str, precision: str, columns: str = "cpu") -> list[tuple[str, bool, bool]]:
    """(precision, whether compiled, whether with columns) of the graphs to try on a GPU, what was asked for first, then
    with less."""
    found = [(precision, run == "compiled"), (precision, False), ("fp32", False)]
    places = (True, False) if columns == "gpu" else (False,)
    return list(dict.fromkeys((*one, place) for place in places for one in found))


def _on_gpu(load: Loader, settings: ModelSettings, most: int, tell: Callable[[int, str], None]) -> Loader:
    # Graphs live as long as a version that runs by them.
    sharing = settings.graphs == "shared"
    known: Known | None = WeakValueDictionary() if sharing else None
    of_tensors: KnownTensors | None = WeakValueDictionary() if sharing else None

    def graphed(number: int) -> Version:
        version = load(number)
        if isinstance(version, TensorVersion):
            place = version.device
            tries = [(precision, compiled) for precision, compiled, _ in ways(settings.run, settings.precision)]
            use_graphs(version, most, lambda: _machine(place), tries, tell, of_tensors)
            return version

        def attempt(precision: str, compiled: bool, with_columns: bool) -> tuple[str, str]:
            machine = _machine(version.device)
            columns = partial(_columns, version.device) if with_columns else None
            run = graph_version(
                version, most, machine, precision=precision, compiled=compiled, known=known, columns=columns
            )
            version.use_staged(run)
            return f"{run.graphs.bytes:,} bytes, {'its own' if run.shared is None else 'shared'}", ""

        try_ways(number, ways(settings.run, settings.precision, settings.columns), attempt, tell)
        return version

    return graphed


def _machine(device: torch.device) -> Machine:
    return CudaMachine(device)


def _columns(device: torch.device, program: ColumnProgram) -> GraphColumns | str:
    return graph_columns(program, device.index or 0)


def _told(load: Loader, what: str, tell: Callable[[int, str], None]) -> Loader:
    def told(number: int) -> Version:
        version = load(number)
        tell(number, f"version {number} {what}")
        return version

    return told


def pack_version(version: Version, most: int) -> Sized | None:
    """The version's forward pass on packed weights, checked and timed; None where there is none, where it disagrees, or
    where it is not faster on batches of `most` rows. Takes some tens of milliseconds."""
    run = version.packed() if isinstance(version, LoadedVersion) else None
    if run is None:
        return None
    try:
        return _checked(version, run, most, _PACKED_REPEATS)
    except RunError as error:
        _log.warning("version %d runs on its weights as they are: packed, %s", version.number, error)
        return None


def compile_version(
    version: Version, project: Project, model: str, store: VersionStore, *, threads: int, most: int
) -> Sized | None:
    """The version's forward pass compiled, checked and timed; None where it is not faster on batches of `most` rows.
    Blocks for as long as compiling takes. Raises RunError."""
    try:
        example_of(version, 2)
    except ModelError as error:
        raise RunError(str(error)) from None
    with tempfile.TemporaryDirectory(prefix="trimtab-compile-") as folder:
        path = Path(folder) / "model.pt2"
        arguments = [str(project.directory), model, str(store.directory), str(version.number), str(threads), str(path)]
        digest = _compile(arguments, Path(folder))
        if sha256_file(path) != digest:
            raise RunError("the package is not the one that was compiled")
        try:
            package = _load(path, version)
        except Exception as error:
            raise RunError(f"the package cannot be loaded: {_last_line(str(error))}") from error
    return _checked(version, package, most, _REPEATS)


def _compile(arguments: Sequence[str], folder: Path) -> str:
    """Runs the compiling process; the hash of what it wrote."""
    environment: Mapping[str, str] = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "TMPDIR": str(folder),
    }
    command = [sys.executable, "-m", "trimtab.models.compiling", *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"compiling took longer than {_SECONDS:.0f} s") from None
    except OSError as error:
        raise RunError(f"compiling cannot be started: {error}") from None
    if done.returncode:
        raise RunError(f"it cannot be compiled: {_last_line(done.stderr)}")
    return (done.stdout.split() or [""])[-1]


def _load(path: Path, version: Version) -> Run:
    # What torch._inductor.aoti_load_package wraps, without importing the compiler here.
    loader: Any = getattr(torch._C, "_aoti")  # noqa: B009  (it is in none of torch's stubs)
    package = loader.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    run = package.boxed_run
    if isinstance(version, TensorVersion):
        return lambda *arguments: run(list(arguments))
    return lambda *arguments: run(list(arguments))[0]


def _checked(version: Version, package: Run, most: int, repeats: int) -> Sized | None:
    eager = version.run_eagerly
    least: int | None = None
    winning = True
    with torch.inference_mode():
        for rows in sorted({1, 2, 3, most, *(1 << power for power in range(2, 20) if 1 << power < most)}, reverse=True):
            arguments = example_of(version, rows)
            try:
                expected, found = eager(*arguments), package(*arguments)
            except Exception as error:
                raise RunError(f"it fails on {rows} rows: {_last_line(str(error))}") from error
            _compare(expected, found, rows)
            winning = winning and _faster(package, eager, arguments, repeats)
            least = rows if winning else least
    return None if least is None else Sized(eager, package, least)


def _compare(expected: Any, found: Any, rows: int) -> None:
    pairs = [(expected, found)] if isinstance(expected, torch.Tensor) else list(zip(expected, found, strict=True))
    for ours, theirs in pairs:
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise RunError(f"{rows} rows give {theirs.dtype} {list(theirs.shape)}, not {list(ours.shape)}")
        if not torch.allclose(ours.double(), theirs.double(), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            raise RunError(f"predictions on {rows} made-up rows differ by more than {_TOLERANCE}")


def _faster(one: Run, other: Run, arguments: Sequence[torch.Tensor], repeats: int) -> bool:
    """By the best of interleaved runs, in time of the clock: some of the work may be on other threads."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for position, run in enumerate((one, other)):
            began = time.perf_counter()
            run(*arguments)
            best[position] = min(best[position], time.perf_counter() - began)
    return best[0] < best[1]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason was given"
