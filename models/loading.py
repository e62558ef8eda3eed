"""From a model's settings to its versions: whichever kind it is, columns or tensors, one call loads one."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.models import tensors, version
from trimtab.models.code import allow_project
from trimtab.models.errors import VersionUnfit
from trimtab.models.tasks import Task
from trimtab.models.tensors import TensorSource, TensorVersion, load_tensor_version
from trimtab.models.version import LoadedVersion, load_version
from trimtab.store.errors import StoreError
from trimtab.store.manifest import WEIGHTS
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore

__all__ = ["Loader", "Tensor", "Version", "inputs_of", "labels_of", "loader", "outputs_of", "read_weights"]

Version = LoadedVersion | TensorVersion
Loader = Callable[[int], Version]
"""Loads a version by number. Raises VersionUnfit."""
Tensor = tuple[str, str, tuple[int, ...]]
"""Name, datatype and dimensions after the rows."""

_DATATYPES = {"real": "FP32", "boolean": "BOOL", "integer": "INT64", "string": "BYTES"}


def loader(project: Project, settings: ModelSettings, store: VersionStore, device: str) -> Loader:
    """What loads the model's versions onto the device. Lets the process run the entries that trimtab.toml names."""
    if settings.takes_tensors:
        source = TensorSource.of(project.directory, settings)
        return lambda number: load_tensor_version(store, number, source, device)
    allow_project(project)
    return lambda number: load_version(store, number, device)


def read_weights(store: VersionStore, loaded: Version) -> None:
    """Fills the module of a version with the weights of its files, with the checks of loading. Raises VersionUnfit."""
    where = f"version {loaded.number}"
    try:
        store.verify(loaded.number)
        if store.manifest(loaded.number).weights != loaded.weights:
            raise VersionUnfit(f"{where}: its files have other weights than when it was loaded")
        data = (store.path(loaded.number) / WEIGHTS).read_bytes()
    except (StoreError, OSError) as error:
        raise VersionUnfit(str(error) if where in str(error) else f"{where}: {error}") from error
    if isinstance(loaded, TensorVersion):
        tensors.fill(loaded.module, data, where)
    else:
        version.fill(loaded.module, data, where)


def inputs_of(settings: ModelSettings) -> list[Tensor]:
    """The input tensors of a model's requests, as its metadata names them."""
    if settings.takes_tensors:
        return [(tensor.name, tensor.datatype, tensor.dims) for tensor in settings.inputs]
    schema = settings.request_schema()
    return [(name, _DATATYPES[kind], (1,)) for name, kind in zip(schema.names, schema.types, strict=True)]


def outputs_of(settings: ModelSettings) -> list[Tensor]:
    """The output tensors of a model's answers."""
    if settings.takes_tensors:
        return [(tensor.name, tensor.datatype, tensor.dims) for tensor in settings.outputs]
    outputs = Task.of(settings.task, settings.classes, settings.positive).outputs()
    return [(name, datatype, (width,)) for name, datatype, width in outputs]


def labels_of(settings: ModelSettings) -> dict[str, list[str]]:
    """What the elements of an output stand for, by output; of those that stand for something."""
    if not settings.classes:
        return {}
    labels = [settings.positive] if settings.task == "binary" else list(settings.classes)
    return {name: labels for name, _, _ in outputs_of(settings)}
