"""A loaded version: fitted columns and weights as the one unit that is swapped, and the files that it comes from.

`load_version` is the only way from disk to a model that may serve. It trusts nothing: hashes are checked (by the
store), the program and the configuration are parsed, every tensor must have exactly the shape that the configuration
gives, every number must be finite, and the sketch must belong to the program. Weights are safetensors; nothing is
unpickled.

A `LoadedVersion` is immutable once it serves. `predict` may be called from one thread at a time per device (the
engine's compute thread); the executor keeps scratch memory between calls.

On a GPU its weights are one flat buffer (flat.py), and its forward pass is replayed from graphs where it has any
(graphs.py): the columns are then written straight into what is copied to the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from trimtab._native import Slab
from trimtab.kernels.device import Executor, executor_for
from trimtab.kernels.errors import KernelError
from trimtab.kernels.estimate import ScoreTable
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import Sketch
from trimtab.models.architectures import Network, build
from trimtab.models.errors import ModelError, VersionUnfit
from trimtab.models.finite import all_finite
from trimtab.models.flat import Flat, flat_on
from trimtab.models.tasks import Task
from trimtab.store.errors import StoreError
from trimtab.store.manifest import Manifest
from trimtab.store.versions import VersionStore

__all__ = [
    "LoadedVersion",
    "Shared",
    "StagedRun",
    "architecture_of",
    "device_of",
    "load_version",
    "loaded",
    "missing_rows",
    "split_architecture",
    "version_files",
]

Run = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WEIGHTS, COLUMNS, REFERENCE = "weights.safetensors", "columns.json", "reference.arrow"
SCORES = "scores.json"
"""What predictions cost on labelled rows (kernels/estimate.py); a version may lack it."""


class Shared(Protocol):
    """What several versions serve by."""

    bytes: int
    """Of memory on the device."""


class StagedRun(Protocol):
    """What makes predictions of rows that are written where it says: graphs (capturing.py)."""

    @property
    def bytes(self) -> int:
        """Of memory on the device, of its own; without the version's weights."""
        ...

    @property
    def shared(self) -> Shared | None:
        """What other versions serve by, too; None: nothing."""
        ...

    def holds(self, n: int) -> bool:
        """Whether it takes so many rows."""
        ...

    def bucket(self, n: int) -> int:
        """Batches of as many rows as this are run as those of n are."""
        ...

    def run(self, executor: Executor, slab: Slab, sketch: Sketch | None, start: int, stop: int) -> NDArray[np.float32]:
        """float32 [n, K] predictions of the slab's rows [start, stop), counted for the sketch once it is settled."""
        ...

    def settle(self) -> None:
        """Brings what was counted so far into the sketch that it was counted for."""
        ...


@dataclass(frozen=True)
class LoadedVersion:
    """Columns, weights and what they mean, on one device."""

    number: int
    weights: str
    """sha256 of weights.safetensors, hex."""
    program: ColumnProgram
    task: Task
    manifest: Manifest
    reference: Sketch
    """Sketch of the training data."""
    module: Network
    device: torch.device
    scores: ScoreTable | None = None
    """What its predictions cost on rows that it had not seen; a refreshed version has its parent's."""
    flat: Flat | None = None
    """The buffer that the module's tensors lie in, where they lie in one."""
    asleep: bool = field(init=False, default=False)
    """Its weights are not where it computes (sleeping.py): it cannot predict."""
    run_eagerly: Run = field(init=False)
    """Predictions [n, K] of features and ids, by the module."""
    executor: Executor = field(init=False)
    """Of its columns, on the host."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "executor", executor_for(self.program, self.device.type))
        forward, predict = self.module.forward_of(), self.task.predict
        object.__setattr__(self, "run_eagerly", lambda features, ids: predict(forward(features, ids)))
        self.use_module()

    def use(self, run: Run) -> None:
        """Has `run`, which has weights of its own, make predictions [n, K] of features f32[n, F] and ids i64[n, C], in
        place of the module. Before the version serves."""
        object.__setattr__(self, "_run", run)
        object.__setattr__(self, "_copies", 2)

    def use_staged(self, run: StagedRun) -> None:
        """Has `run` make predictions of as many rows as it takes, in place of the module. Before the version serves."""
        object.__setattr__(self, "_staged", run)

    def use_module(self) -> None:
        """Has the module make predictions again; what did so in its place is let go."""
        object.__setattr__(self, "_run", self.run_eagerly)
        object.__setattr__(self, "_copies", 1)
        object.__setattr__(self, "_staged", None)

    def packed(self) -> Run | None:
        """A run by weights that are laid out for this processor (Network.packed_of); None where there is none."""
        forward, predict = self.module.packed_of(), self.task.predict
        if forward is None or self.device.type != "cpu":
            return None
        return lambda features, ids: predict(forward(features, ids))

    def predict(self, slab: Slab, sketch: Sketch | None = None, start: int = 0, stop: int = -1) -> NDArray[np.float32]:
        """float32 [n, K] predictions of the slab's rows [start, stop), −1 being its end.

        With a sketch (of the program's spec), the rows' raw values and predictions are counted in it; the former at
        `settle`, at the latest.
        """
        executor = self.executor
        staged: StagedRun | None = self._staged  # type: ignore[attr-defined]
        rows = (slab.rows if stop == -1 else stop) - start
        if staged is not None and staged.holds(rows):
            predictions = staged.run(executor, slab, sketch, start, start + rows)
        else:
            features, ids = executor.run(slab, sketch, start, stop)
            with torch.inference_mode():
                x, i = torch.from_numpy(features), torch.from_numpy(ids)
                if self.device.type != "cpu":
                    x, i = x.to(self.device), i.to(self.device)
                predictions = self._run(x, i).cpu().numpy()  # type: ignore[attr-defined]
        if sketch is not None:
            sketch.add_predictions(predictions)
        return predictions

    def settle(self) -> None:
        """Brings into their sketch what `predict` has counted so far: columns that run on a GPU count there."""
        staged: StagedRun | None = self._staged  # type: ignore[attr-defined]
        if staged is not None:
            staged.settle()

    def count(self, slab: Slab, predictions: NDArray[np.float32], sketch: Sketch, start: int, stop: int) -> None:
        """Counts the slab's rows [start, stop) and their predictions [stop - start, K] as `predict` would have."""
        self.executor.run(slab, sketch, start, stop)
        sketch.add_predictions(predictions)

    def sum_jointly(self, slab: Slab, taken: NDArray[np.int64], sketch: Sketch) -> None:
        """Adds the slab's rows at the positions `taken` to the joint part of a sketch of the program's spec."""
        self.executor.sum_jointly(slab, taken, sketch)

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Runs each batch size once, or one of those that are run alike, on rows of missing values. Raises VersionUnfit
        where a prediction is not finite."""
        if self.program.sketch.joint is not None:
            _ = self.program.sketch.phases  # made once, and not on the compute thread
        staged: StagedRun | None = self._staged  # type: ignore[attr-defined]
        if staged is not None:
            batch_sizes = sorted({staged.bucket(rows) if staged.holds(rows) else rows for rows in batch_sizes})
        for rows in batch_sizes:
            predictions = self.predict(missing_rows(self.program, rows))
            if not np.isfinite(predictions).all():
                raise VersionUnfit(f"version {self.number}: predicts numbers that are not finite")

    @property
    def bytes(self) -> int:
        """Size in memory: of the weights, and of graphs with their buffers; without `shared`. 0 while it is asleep."""
        if self.asleep:
            return 0
        copies: int = self._copies  # type: ignore[attr-defined]
        staged: StagedRun | None = self._staged  # type: ignore[attr-defined]
        weights = self.module.size() if self.flat is None else self.flat.layout.size
        return weights * copies + (0 if staged is None else staged.bytes)

    @property
    def shared(self) -> Shared | None:
        """What it serves by together with other versions; None: nothing."""
        staged: StagedRun | None = self._staged  # type: ignore[attr-defined]
        return None if staged is None else staged.shared


def missing_rows(program: ColumnProgram, rows: int) -> Slab:
    """A slab of rows in which every value is missing: what any model must answer."""
    columns: list[Any] = []
    for kind in program.schema.types:
        if kind in ("real", "boolean"):
            columns.append(np.full(rows, np.nan, dtype=np.float32))
        elif kind == "integer":
            columns.append(np.full(rows, np.iinfo(np.int64).min, dtype=np.int64))
        else:
            columns.append((np.zeros(rows + 1, dtype=np.int32), np.zeros(0, dtype=np.uint8)))
    slab = Slab(program.schema)
    slab.append_columns(columns)
    return slab


def load_version(store: VersionStore, number: int, device: str = "cpu", verify: bool = True) -> LoadedVersion:
    """The version, ready to serve. Raises VersionUnfit with the reason: unknown, damaged, wrong shapes, not finite."""
    try:
        if verify:
            store.verify(number)
        manifest = store.manifest(number)
        folder = store.path(number)
        names = (WEIGHTS, COLUMNS, REFERENCE, *({SCORES} & manifest.files.keys()))
        files = {name: _read(folder / name) for name in names}
        return loaded(manifest, files, device)
    except VersionUnfit:
        raise
    except (StoreError, OSError) as error:
        raise VersionUnfit(
            f"version {number}: {error}" if f"version {number}" not in str(error) else str(error)
        ) from error


def loaded(manifest: Manifest, files: Mapping[str, bytes], device: str = "cpu") -> LoadedVersion:
    """The version of a manifest and its files' contents, before or after it was published. Raises VersionUnfit."""
    where = f"version {manifest.version}"
    try:
        program = ColumnProgram.from_json(files[COLUMNS].decode("utf-8"))
        if program.hash != manifest.program_hash:
            raise VersionUnfit(f"{where}: {COLUMNS} is not the program that the manifest names")
        reference = Sketch.from_bytes(files[REFERENCE])
        if reference.spec.hash != program.sketch.hash:
            raise VersionUnfit(f"{where}: {REFERENCE} is a sketch of other columns")
        scores = ScoreTable.from_json(files[SCORES].decode("utf-8")) if SCORES in files else None
        if scores is not None and scores.edges != program.sketch.prediction_edges:
            raise VersionUnfit(f"{where}: {SCORES} is of other buckets than the sketch's")
        config, task = split_architecture(manifest.architecture)
        module = build(config, program, task)
        fill(module, files[WEIGHTS], where)
    except VersionUnfit:
        raise
    except (KernelError, ModelError, UnicodeDecodeError, KeyError) as error:
        raise VersionUnfit(f"{where}: {error}") from error
    place = device_of(device, where)
    module.eval().requires_grad_(False)
    flat = flat_on(module, place)
    version = LoadedVersion(
        manifest.version, manifest.weights, program, task, manifest, reference, module, place, scores, flat
    )
    version.warm([1])
    return version


def fill(module: Network, data: bytes, where: str = "weights") -> None:
    """Loads safetensors bytes into a module. Raises VersionUnfit unless names, shapes and dtypes match and all is
    finite."""
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise VersionUnfit(f"{where}: {WEIGHTS} cannot be read: {error}") from error
    expected = module.state_dict()
    if set(tensors) != set(expected):
        wrong = ", ".join(sorted(set(tensors) ^ set(expected))[:4])
        raise VersionUnfit(f"{where}: {WEIGHTS} does not have the architecture's tensors: {wrong}")
    for name, tensor in tensors.items():
        like = expected[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise VersionUnfit(f"{where}: tensor {name!r}: expected {like.dtype} {tuple(like.shape)}, found {found}")
        if not all_finite(tensor):
            raise VersionUnfit(f"{where}: tensor {name!r} has numbers that are not finite")
    module.load_state_dict(tensors)


def version_files(
    module: Network,
    program: ColumnProgram,
    reference: Sketch,
    optimizer: bytes | None = None,
    scores: ScoreTable | None = None,
) -> dict[str, bytes]:
    """The files of a version by name; `optimizer`: the challenger's moments as safetensors, if it is to go on from
    them; `scores`: what its predictions cost."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    files = {
        WEIGHTS: save_tensors(weights),
        COLUMNS: program.to_json().encode("utf-8"),
        REFERENCE: reference.to_bytes(),
    }
    if scores is not None:
        files[SCORES] = scores.to_json().encode("utf-8")
    return files if optimizer is None else {**files, "optimizer.safetensors": optimizer}


def architecture_of(config: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """What a manifest's `architecture` holds: the module's configuration, and the task with its classes and scale."""
    return {**config, "task": task.to_json()}


def split_architecture(architecture: Mapping[str, Any]) -> tuple[dict[str, Any], Task]:
    """The configuration and the task of a manifest's `architecture`. Raises LabelError."""
    config = dict(architecture)
    task = config.pop("task", None)
    return config, Task.from_json(task if isinstance(task, Mapping) else {})


def device_of(name: str, where: str) -> torch.device:
    """The device of that name. Raises VersionUnfit where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise VersionUnfit(f"{where}: device cuda was asked for, and torch sees none")
    return torch.device(name)


def _read(path: Path) -> bytes:
    return path.read_bytes()
