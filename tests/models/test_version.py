"""What may serve, and everything that may not: damaged, mislabelled, misshapen, not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.estimate import ScoreTable
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.models.architectures import build
from trimtab.models.errors import VersionUnfit
from trimtab.models.tasks import Task
from trimtab.models.version import architecture_of, load_version, loaded, missing_rows, version_files
from trimtab.store.versions import Manifest, VersionStore

from .programs import make_program, make_rows

PROGRAM = make_program()
CONFIG: dict[str, Any] = {"kind": "mlp", "seed": 1, "widths": [8], "dropout": 0.1, "embedding": 4}
TASK = Task("multiclass", ("a", "b", "c"))


def make(task: Task = TASK, **changes: Any) -> tuple[Manifest, dict[str, bytes]]:
    reference = Sketch(PROGRAM.sketch)
    CpuExecutor(PROGRAM).run(slab_from_arrow(make_rows(50), PROGRAM.schema), reference)
    files = version_files(build(CONFIG, PROGRAM, task), PROGRAM, reference)
    manifest = Manifest(
        version=1, task=task.kind, architecture=architecture_of(CONFIG, task), program_hash=PROGRAM.hash
    )
    return manifest.model_copy(update=changes), files


def published(directory: Path, manifest: Manifest, files: dict[str, bytes]) -> VersionStore:
    store = VersionStore(directory / "versions")
    assert store.allocate("test") == 1
    store.publish(1, dict(files), manifest)
    return store


def test_a_published_version_predicts_as_its_module(tmp_path: Path) -> None:
    version = load_version(published(tmp_path, *make()), 1)
    slab = slab_from_arrow(make_rows(20, seed=5), PROGRAM.schema)
    sketch = Sketch(PROGRAM.sketch)
    predictions = version.predict(slab, sketch, 3, 15)
    features, ids = CpuExecutor(PROGRAM).run(slab, None, 3, 15)
    module = build(CONFIG, PROGRAM, TASK).eval()
    expected = torch.softmax(module(torch.from_numpy(features), torch.from_numpy(ids)), dim=1).detach().numpy()
    assert predictions.dtype == np.float32
    np.testing.assert_array_equal(predictions, expected)
    assert sketch.rows == 12
    assert version.weights == version.manifest.weights
    version.warm([1, 2, 64])


@pytest.mark.parametrize("task", [TASK, Task("binary", ("n", "y")), Task("regression", (), 100.0, 5.0)])
def test_rows_of_missing_values_are_answered(task: Task) -> None:
    version = loaded(*make(task))
    predictions = version.predict(missing_rows(PROGRAM, 3))
    assert predictions.shape == (3, task.width)
    assert np.isfinite(predictions).all()


def replaced(files: dict[str, bytes], change: Any) -> dict[str, bytes]:
    tensors = load(files["weights.safetensors"])
    change(tensors)
    return {**files, "weights.safetensors": save(tensors)}


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors["table"][0, 0] = float("nan")


def misshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["table"] = torch.zeros(3, 3)


def retype(tensors: dict[str, torch.Tensor]) -> None:
    tensors["table"] = tensors["table"].double()


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["table"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["extra"] = torch.zeros(1)


def overflow(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        tensors[name] = torch.full_like(tensors[name], 3e38)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (poison, "'table' has numbers that are not finite"),
        (misshape, r"'table': expected torch.float32 .* found torch.float32 \(3, 3\)"),
        (retype, "found torch.float64"),
        (drop, "architecture's tensors: table"),
        (add, "architecture's tensors: extra"),
        (overflow, "predicts numbers that are not finite"),
    ],
)
def test_wrong_weights_are_refused(change: Any, reason: str, tmp_path: Path) -> None:
    manifest, files = make()
    store = published(tmp_path, manifest, replaced(files, change))
    with pytest.raises(VersionUnfit, match=f"version 1: .*{reason}"):
        load_version(store, 1)


def test_no_pickle_is_read_as_weights(tmp_path: Path) -> None:
    planted = b"\x80\x04cos\nsystem\n(S'touch planted'\ntR."
    manifest, files = make()
    store = published(tmp_path, manifest, {**files, "weights.safetensors": planted})
    with pytest.raises(VersionUnfit, match="cannot be read"):
        load_version(store, 1)


def test_a_flipped_bit_is_found_by_its_hash(tmp_path: Path) -> None:
    store = published(tmp_path, *make())
    path = store.path(1) / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    with pytest.raises(VersionUnfit, match="sha256"):
        load_version(store, 1)


def test_unknown_version(tmp_path: Path) -> None:
    with pytest.raises(VersionUnfit, match="no version 7"):
        load_version(VersionStore(tmp_path / "versions"), 7)


def test_a_manifest_of_other_columns_is_refused() -> None:
    with pytest.raises(VersionUnfit, match="not the program that the manifest names"):
        loaded(*make(program_hash="0" * 64))


def test_damaged_columns_and_reference_are_refused() -> None:
    manifest, files = make()
    columns = json.loads(files["columns.json"])
    columns["chains"] = "no"
    with pytest.raises(VersionUnfit):
        loaded(manifest, {**files, "columns.json": json.dumps(columns).encode()})
    with pytest.raises(VersionUnfit, match="version 1"):
        loaded(manifest, {**files, "reference.arrow": b"damaged"})
    with pytest.raises(VersionUnfit, match="score table"):
        loaded(manifest, {**files, "scores.json": b"{}"})
    other = ScoreTable((0.125,), (1, 1), (0.0, 0.0), (0.0, 0.0), (0, 0), False)
    with pytest.raises(VersionUnfit, match="other buckets"):
        loaded(manifest, {**files, "scores.json": other.to_json().encode()})


@pytest.mark.parametrize("architecture", [{}, {"kind": "mlp"}, {"kind": "tree", "task": TASK.to_json()}])
def test_manifests_without_a_meaning_are_refused(architecture: dict[str, Any]) -> None:
    with pytest.raises(VersionUnfit, match="version 1"):
        loaded(*make(architecture=architecture))


def test_a_missing_gpu_is_said_plainly() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    manifest, files = make()
    with pytest.raises(VersionUnfit, match="device cuda"):
        loaded(manifest, files, "cuda")
