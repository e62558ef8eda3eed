"""A loaded version of a model that takes tensors as they are: the user's module, and the weights that it serves with.

`TensorSource` is what trimtab.toml says: tensors, and the code that builds the module (an entry, or an exported
program). A version holds weights only. As with columns, nothing of a version's files is trusted: hashes are checked by
the store, every tensor must have the shape and dtype of the module's own, none may be NaN, and the outputs are checked
against trimtab.toml by running the module once when it is loaded.

Whatever a user's code raises becomes VersionUnfit when loading, and is the batch's failure when serving.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from trimtab._native import TensorSchema, TensorSlab
from trimtab.models.code import checked_bytes, read_entry
from trimtab.models.entry import Definition, TensorShape
from trimtab.models.errors import CodeError, ModelError, VersionUnfit
from trimtab.models.faults import first_line
from trimtab.models.flat import Flat, flat_on
from trimtab.models.version import Shared, device_of
from trimtab.store.errors import StoreError
from trimtab.store.manifest import WEIGHTS, Manifest
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore

__all__ = ["DTYPES", "TensorRun", "TensorSource", "TensorVersion", "load_tensor_version", "tensor_files"]

Spec = tuple[str, str, tuple[int, ...]]

# torch's type of each datatype; BYTES reach the module as NumPy arrays of bytes objects.
DTYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_WARM_BYTES = 16 << 20
_REPEATS = 9


@dataclass(frozen=True)
class TensorSource:
    """Where a model's code comes from, and what goes in and out."""

    directory: Path
    model: str
    shape: TensorShape
    entry: str = ""
    program: str = ""
    sha256: str = ""
    weights: str = ""
    seed: int = 0
    schema: TensorSchema = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", TensorSchema(list(self.shape.inputs)))

    @classmethod
    def of(cls, directory: Path, settings: ModelSettings) -> TensorSource:
        """The source of a model of trimtab.toml that takes tensors."""
        inputs = tuple((tensor.name, tensor.datatype, tensor.dims) for tensor in settings.inputs)
        outputs = tuple((tensor.name, tensor.datatype, tensor.dims) for tensor in settings.outputs)
        return cls(
            directory,
            settings.name,
            TensorShape(inputs, outputs),
            settings.entry,
            settings.program,
            settings.sha256,
            settings.weights,
            settings.retrain.seed,
        )

    @property
    def architecture(self) -> dict[str, Any]:
        """What a manifest holds: what the weights are for. Never code."""
        tensors = {"inputs": self.shape.inputs, "outputs": self.shape.outputs}
        return {"kind": "tensors", **{key: [[n, t, list(d)] for n, t, d in specs] for key, specs in tensors.items()}}

    def build(self) -> tuple[nn.Module, Definition]:
        """The module with its initial weights, and its definition. Raises CodeError."""
        if self.entry:
            found, code = read_entry(self.directory, self.entry)
            definition = Definition.of(self.entry, found, "tensors", code)
            return definition.build(self.shape, self.seed), definition
        data = checked_bytes(self.directory, self.program, self.sha256)
        try:
            module = torch.export.load(io.BytesIO(data)).module()
        except Exception as error:
            raise CodeError(f"program {self.program!r} cannot be loaded: {first_line(error)}") from error
        return module, Definition(self.program, lambda: module, code=self.sha256)

    def initial_weights(self) -> bytes | None:
        """The file that `weights` names; None: the module's own. Raises VersionUnfit."""
        if not self.weights:
            return None
        try:
            return (self.directory / self.weights).read_bytes()
        except OSError as error:
            raise VersionUnfit(f"weights {self.weights!r}: {(error.strerror or str(error)).lower()}") from None


class TensorRun(Protocol):
    """The outputs of inputs that are copied into its own buffers; see tensor_graphs.TensorGraphs."""

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

    def call(self, inputs: Mapping[str, torch.Tensor], rows: int) -> list[torch.Tensor]:
        """The outputs, in their order, of inputs in the host's memory; the caller's own."""
        ...


@dataclass(frozen=True)
class TensorVersion:
    """A module with its weights, on one device. `run` may be called from one thread at a time."""

    number: int
    weights: str
    """sha256 of weights.safetensors, hex."""
    manifest: Manifest
    source: TensorSource
    definition: Definition
    module: nn.Module
    device: torch.device
    flat: Flat | None = None
    """The buffer that the module's tensors lie in, where they lie in one."""
    asleep: bool = field(init=False, default=False)
    """Its weights are not where it computes (sleeping.py): it cannot run."""

    def __post_init__(self) -> None:
        self.use_module()

    @property
    def schema(self) -> TensorSchema:
        """The tensors of a request."""
        return self.source.schema

    @property
    def outputs(self) -> tuple[Spec, ...]:
        """(name, datatype, dims after the rows) of each output."""
        return self.source.shape.outputs

    @property
    def bytes(self) -> int:
        """Size in memory: of the weights and buffers, and of graphs with theirs; without `shared`. 0 while it is
        asleep."""
        if self.asleep:
            return 0
        tensors = [*self.module.parameters(), *self.module.buffers()]
        staged: TensorRun | None = self._staged  # type: ignore[attr-defined]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return weights + (0 if staged is None else staged.bytes)

    @property
    def shared(self) -> Shared | None:
        """What it serves by together with other versions; None: nothing."""
        staged: TensorRun | None = self._staged  # type: ignore[attr-defined]
        return None if staged is None else staged.shared

    def run(self, slab: TensorSlab, sketch: object = None, start: int = 0, stop: int = -1) -> list[NDArray[Any]]:
        """The outputs [n, dims...] for the slab's rows [start, stop), −1 being its end. Raises CodeError where the
        model gives something else than trimtab.toml says, and whatever the model raises."""
        end = slab.rows if stop == -1 else stop
        inputs = {
            name: _value(slab, position, datatype, start, end)
            for position, (name, datatype, _) in enumerate(self.source.shape.inputs)
        }
        return self.call(inputs, end - start)

    def run_in_parts(self, slab: TensorSlab, most: int) -> list[NDArray[Any]]:
        """As `run` on all rows, at most so many at a time."""
        if slab.rows <= most:
            return self.run(slab)
        parts = [self.run(slab, None, start, min(start + most, slab.rows)) for start in range(0, slab.rows, most)]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def call(self, inputs: Mapping[str, Any], rows: int) -> list[NDArray[Any]]:
        """As `run`, on tensors (BYTES: NumPy arrays of bytes) by name."""
        staged: TensorRun | None = self._staged  # type: ignore[attr-defined]
        if staged is not None and staged.holds(rows):
            outputs = staged.call(inputs, rows)
            return [_checked(spec, value, rows) for spec, value in zip(self.outputs, outputs, strict=True)]
        return self.call_eagerly(inputs, rows)

    def call_eagerly(self, inputs: Mapping[str, Any], rows: int) -> list[NDArray[Any]]:
        """As `call`, by no graph."""
        with torch.inference_mode():
            if self.device.type != "cpu":
                inputs = {
                    name: value.to(self.device) if isinstance(value, torch.Tensor) else value
                    for name, value in inputs.items()
                }
            run: Callable[..., list[Any]] = self._run or self.run_eagerly  # type: ignore[attr-defined]
            given = run(*self.arguments(inputs))
        return [_checked(spec, value, rows) for spec, value in zip(self.outputs, given, strict=True)]

    def arguments(self, inputs: Mapping[str, Any]) -> Sequence[Any]:
        """The module's arguments, from tensors by name."""
        preprocess = self.definition.preprocess
        arguments = tuple(inputs.values()) if preprocess is None else preprocess(dict(inputs))
        return arguments if isinstance(arguments, tuple | list) else (arguments,)

    def run_eagerly(self, *arguments: Any) -> list[Any]:
        """The outputs, in their order, by the module."""
        given = self.module(*arguments)
        if self.definition.predict is not None:
            given = self.definition.predict(given)
        return self._ordered(given)

    def use(self, run: Callable[..., list[Any]]) -> None:
        """Has `run` make the outputs of the module's arguments, in place of the module. Before the version serves."""
        object.__setattr__(self, "_run", run)

    def use_module(self) -> None:
        """Has the module make the outputs again; what did so in its place is let go."""
        # Not `run_eagerly`: what refers to itself is not let go at once, and its weights are large.
        object.__setattr__(self, "_run", None)
        object.__setattr__(self, "_staged", None)

    def use_staged(self, run: TensorRun) -> None:
        """Has `run` make the outputs of as many rows as it takes, in place of the module. Before the version serves."""
        object.__setattr__(self, "_staged", run)

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Runs each of these batch sizes that is a power of two, the smallest and the largest, as long as a batch of
        them stays small in memory. Raises VersionUnfit."""
        for rows in sorted({*batch_sizes[:1], *batch_sizes[-1:], *(n for n in batch_sizes if n & (n - 1) == 0)}):
            with _unfit(f"version {self.number}: a batch of {rows} rows"):
                inputs = self.example(rows)
                self.call(inputs, rows)
            if sum(value.nbytes for value in inputs.values()) > _WARM_BYTES:
                return

    def measure(self, rows: int) -> float:
        """Median time of a batch of so many rows, in µs."""
        inputs, times = self.example(rows), []
        for _ in range(_REPEATS):
            began = time.perf_counter_ns()
            self.call(inputs, rows)
            times.append(time.perf_counter_ns() - began)
        return sorted(times)[_REPEATS // 2] / 1000

    def example(self, rows: int) -> dict[str, Any]:
        """Inputs to try it with: the entry's own `example`, else zeros and empty strings."""
        slab = TensorSlab(self.schema)
        slab.append_zeros(rows)
        zeros = {
            name: _value(slab, position, datatype, 0, rows)
            for position, (name, datatype, _) in enumerate(self.source.shape.inputs)
        }
        return zeros if self.definition.example is None else {**zeros, **self._made_up(rows, zeros)}

    def _made_up(self, rows: int, zeros: Mapping[str, Any]) -> dict[str, Any]:
        assert self.definition.example is not None
        made = self.definition.example(rows)
        if not isinstance(made, Mapping) or set(made) - set(zeros):
            raise CodeError(f"example: expected a dict with some of {list(zeros)}, got {_kind(made)}")
        tensors = {name for name, value in zeros.items() if isinstance(value, torch.Tensor)}
        return {
            name: torch.as_tensor(value) if name in tensors else np.asarray(value, object)
            for name, value in made.items()
        }

    def _ordered(self, given: Any) -> list[Any]:
        names = [name for name, _, _ in self.outputs]
        if isinstance(given, Mapping):
            if set(given) != set(names):
                raise CodeError(f"expected outputs {names}, the model gives {sorted(map(str, given))}")
            return [given[name] for name in names]
        # A list may be the texts of the only output; a tuple is always of outputs.
        several = isinstance(given, tuple) or (isinstance(given, list) and self.outputs[0][1] != "BYTES")
        values = list(given) if several or (isinstance(given, list) and len(names) > 1) else [given]
        if len(values) != len(names):
            raise CodeError(f"expected {len(names)} outputs {names}, the model gives {len(values)}")
        return values


def load_tensor_version(
    store: VersionStore, number: int, source: TensorSource, device: str = "cpu", verify: bool = True
) -> TensorVersion:
    """The version, ready to serve, having answered one row. Raises VersionUnfit with the reason."""
    try:
        if verify:
            store.verify(number)
        manifest = store.manifest(number)
        data = (store.path(number) / WEIGHTS).read_bytes()
    except (StoreError, OSError) as error:
        text = str(error)
        raise VersionUnfit(text if f"version {number}" in text else f"version {number}: {text}") from error
    where = f"version {number}"
    if manifest.architecture != source.architecture:
        raise VersionUnfit(f"{where}: was published for other tensors than trimtab.toml names now")
    try:
        module, definition = source.build()
    except ModelError as error:
        raise VersionUnfit(f"{where}: {error}") from error
    fill(module, data, where)
    place = device_of(device, where)
    with contextlib.suppress(NotImplementedError):  # exported programs have no modes
        module.eval()
    module.requires_grad_(False).to(place)  # the user's module may have more to move than parameters and buffers
    flat = flat_on(module, place)
    version = TensorVersion(number, manifest.weights, manifest, source, definition, module, place, flat)
    version.warm([1])
    return version


def fill(module: nn.Module, data: bytes, where: str) -> None:
    """Loads safetensors bytes into a module. Raises VersionUnfit unless names, shapes and dtypes match and none is
    NaN."""
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise VersionUnfit(f"{where}: {WEIGHTS} cannot be read: {first_line(error)}") from error
    expected = module.state_dict()
    if set(tensors) != set(expected):
        missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
        sides = (("lack", missing), ("have unknown", extra))
        what = " and ".join(f"{verb} {', '.join(names[:3])}" for verb, names in sides if names)
        raise VersionUnfit(f"{where}: the weights are not the module's: they {what}")
    for name, tensor in tensors.items():
        like = expected[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise VersionUnfit(f"{where}: tensor {name!r}: expected {like.dtype} {tuple(like.shape)}, found {found}")
        if torch.isnan(tensor).any():
            raise VersionUnfit(f"{where}: tensor {name!r} has numbers that are NaN")
    module.load_state_dict(tensors)


def tensor_files(source: TensorSource, data: bytes | None) -> dict[str, bytes]:
    """The files of a version with these weights (safetensors), or with the module's own. Raises CodeError,
    VersionUnfit."""
    module, _ = source.build()
    if data is not None:
        fill(module, data, "weights")
    # A copy of each: tensors that share memory cannot be stored as they are.
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    return {WEIGHTS: save_tensors(weights)}


def _value(slab: TensorSlab, position: int, datatype: str, start: int, stop: int) -> Any:
    if datatype == "BYTES":
        shape = slab.shape(position)
        offsets, text = slab.strings(position)
        width = int(np.prod(shape[1:], dtype=np.int64))
        data, ends = text.tobytes(), offsets[start * width : stop * width + 1].tolist()
        values = np.empty(len(ends) - 1, object)
        for i in range(len(values)):
            values[i] = data[ends[i] : ends[i + 1]]
        return values.reshape((stop - start, *shape[1:]))
    tensor = torch.from_numpy(slab.array(position)[start:stop])
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def _checked(spec: Spec, value: Any, rows: int) -> NDArray[Any]:
    name, datatype, dims = spec
    expected = f"output {name!r}: expected {datatype} [{', '.join(map(str, ('n', *dims)))}]"
    if datatype == "BYTES":
        texts = np.array(value, object) if isinstance(value, list | tuple | np.ndarray) else np.empty((), object)
        if not _fits(texts.shape, rows, dims) or not all(isinstance(text, bytes | str) for text in texts.flat):
            raise CodeError(f"{expected} of bytes or text, the model gives {_kind(value)} {list(texts.shape)}")
        return texts
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, torch.Tensor):
        raise CodeError(f"{expected}, the model gives {_kind(value)}")
    shape = tuple(value.shape)
    if value.dtype != DTYPES[datatype] or not _fits(shape, rows, dims):
        gives = f"{_NAMES.get(value.dtype, str(value.dtype))} {list(shape)}"
        raise CodeError(f"{expected}, the model gives {gives} for {rows} row{'s' * (rows != 1)}")
    value = value.detach().cpu().contiguous()
    array: NDArray[Any] = (value.view(torch.uint16) if datatype == "BF16" else value).numpy()
    return array


def _fits(shape: tuple[int, ...], rows: int, dims: tuple[int, ...]) -> bool:
    return len(shape) == len(dims) + 1 and all(d in (-1, s) for d, s in zip((rows, *dims), shape, strict=True))


@contextlib.contextmanager
def _unfit(where: str) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise VersionUnfit(f"{where}: {error}") from error
    except Exception as error:
        raise VersionUnfit(f"{where}: {type(error).__name__}: {first_line(error)}") from error


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {sorted(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
