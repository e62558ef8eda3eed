"""Versions whose weights were made elsewhere: the first of a model that takes tensors, and any that a person brings.

Weights are safetensors. They become a version only if the model that trimtab.toml describes takes them: names, shapes
and dtypes are checked against a module that was just built. Nothing goes live here; `Swap` alone changes what serves.
"""

from __future__ import annotations

import platform
import time
import uuid
from importlib.metadata import version as installed

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from trimtab.models.architectures import Own, build
from trimtab.models.code import allow_project
from trimtab.models.errors import VersionUnfit
from trimtab.models.tensors import TensorSource, tensor_files
from trimtab.models.version import WEIGHTS, fill, load_version, split_architecture
from trimtab.store.errors import StoreError
from trimtab.store.live import LiveStore
from trimtab.store.manifest import Decision, Manifest
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore

__all__ = ["publish_first", "publish_weights"]


def publish_first(project: Project, settings: ModelSettings, store: VersionStore) -> Manifest:
    """Publishes the first version of a model that takes tensors: the file that `weights` names, or the module's own
    initial weights. Raises CodeError, VersionUnfit, StoreError."""
    source = TensorSource.of(project.directory, settings)
    files = tensor_files(source, source.initial_weights())
    own = "the program's own weights" if settings.program else f"initial weights of seed {source.seed}"
    reason = f"imported from {settings.weights}" if settings.weights else own
    manifest = Manifest(version=0, architecture=source.architecture, verdict="initial", reason=reason, seed=source.seed)
    return _publish(store, settings, files, manifest)


def publish_weights(
    project: Project, settings: ModelSettings, store: VersionStore, data: bytes, reason: str
) -> Manifest:
    """Publishes weights (safetensors) as a new version. Of a model of columns they are for the columns, the task and
    the architecture of the version that is live. Raises CodeError, VersionUnfit, StoreError."""
    if settings.takes_tensors:
        source = TensorSource.of(project.directory, settings)
        manifest = Manifest(version=0, architecture=source.architecture, reason=reason, seed=source.seed)
        return _publish(store, settings, tensor_files(source, data), manifest)
    allow_project(project)
    live = LiveStore(project.model_state(settings.name).live).read()
    parent = live.live if live is not None else max(store.numbers(), default=0)
    if not parent:
        raise VersionUnfit(f"model {settings.name!r} has no version whose columns the weights are for; `trimtab train`")
    like = load_version(store, parent)
    config, task = split_architecture(like.manifest.architecture)
    module = build(config, like.program, task)
    fill(module, _renamed(data) if isinstance(module, Own) else data, "weights")
    folder = store.path(parent)
    files = {name: (folder / name).read_bytes() for name in ("columns.json", "reference.arrow")}
    weights = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    manifest = like.manifest.model_copy(
        update={"version": 0, "parent": None, "verdict": "", "reason": reason, "metrics": {}, "rows_trained": 0}
    )
    return _publish(store, settings, {**files, WEIGHTS: save_tensors(weights)}, manifest)


def _publish(store: VersionStore, settings: ModelSettings, files: dict[str, bytes], manifest: Manifest) -> Manifest:
    number = store.allocate(f"publish-{uuid.uuid4()}")
    full = manifest.model_copy(
        update={
            "version": number,
            "task": settings.task,
            "weights": "",
            "files": {},
            "code_revision": f"trimtab {installed('trimtab')}",
            "isa": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "torch": torch.__version__,
            "created_us": time.time_ns() // 1000,
        }
    )
    try:
        published = store.publish(number, files, full)
    except StoreError:
        store.abandon(number, "publishing ended early")
        raise
    if full.verdict == "initial":
        store.decide(Decision(version=number, verdict="initial", reason=full.reason))
    return published


def _renamed(data: bytes) -> bytes:
    """Weights as the user's network names them, under the names that a version has for them."""
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError):
        return data  # whoever fills the module from it says what is wrong
    if all(name.startswith("net.") for name in tensors):
        return data
    return save_tensors({f"net.{name}": tensor for name, tensor in tensors.items()})
