"""Models that take tensors: an entry or an exported program, with weights as versions."""

import hashlib
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from trimtab._native import TensorSlab
from trimtab.models.errors import CodeError, VersionUnfit
from trimtab.models.publishing import publish_first, publish_weights
from trimtab.models.tensors import TensorSource, TensorVersion, load_tensor_version
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore

ENTRY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x, ids):
        return {"score": self.layer(x), "total": ids.sum(1)}

class Model:
    def build(self, shape):
        assert shape.inputs[0] == ("x", "FP32", (3,))
        return Net()
"""
TENSORS = """
[[model.input]]
name = "x"
datatype = "FP32"
dims = [3]
[[model.input]]
name = "ids"
datatype = "INT64"
dims = [-1]
[[model.output]]
name = "score"
datatype = "FP32"
dims = [2]
[[model.output]]
name = "total"
datatype = "INT64"
dims = []
"""


def project(
    folder: Path, code: str = ENTRY, source: str = 'entry = "own_net:Model"', tensors: str = TENSORS
) -> Project:
    folder.mkdir(exist_ok=True)
    (folder / "own_net.py").write_text(textwrap.dedent(code))
    (folder / "trimtab.toml").write_text(f'[[model]]\nname = "own"\n{source}\n{tensors}')
    return Project.load(folder)


def first(given: Project, number: int = 0) -> TensorVersion:
    settings = given.model()
    store = VersionStore(given.model_state().versions)
    if not number:
        number = publish_first(given, settings, store).version
    return load_tensor_version(store, number, TensorSource.of(given.directory, settings))


def slab_of(version: TensorVersion, rows: int, variable: int = 2) -> TensorSlab:
    slab = TensorSlab(version.schema)
    slab.append_zeros(rows, variable)
    for position, (_, datatype, _) in enumerate(version.source.shape.inputs):
        if datatype != "BYTES":
            array = slab.array(position)
            array[...] = np.arange(array.size).reshape(array.shape) % 7
    return slab


def test_an_entry_answers_with_its_own_weights(tmp_path: Path) -> None:
    version = first(project(tmp_path))
    assert version.number == 1
    assert version.bytes == (3 * 2 + 2) * 4 + 8
    slab = slab_of(version, 5, 4)
    score, total = version.run(slab)
    layer = version.module.get_submodule("layer")
    with torch.inference_mode():
        assert np.array_equal(score, layer(torch.from_numpy(slab.array(0))).numpy())
    assert total.tolist() == slab.array(1).sum(1).tolist()
    part = version.run(slab, None, 1, 3)
    assert [array.shape for array in part] == [(2, 2), (2,)]
    assert part[1].tolist() == total[1:3].tolist()


def test_initial_weights_follow_from_the_seed_alone(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        torch.manual_seed(len(weights))
        state = torch.get_rng_state()
        weights.append(first(project(tmp_path / name, tensors=f"{TENSORS}\n[model.retrain]\nseed = {seed}")).weights)
        assert torch.equal(torch.get_rng_state(), state)
    assert weights[0] == weights[1] != weights[2]


def test_weights_from_a_file_and_further_versions(tmp_path: Path) -> None:
    ones = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.zeros(2), "count": torch.tensor(7)}
    save_file(ones, tmp_path / "ones.safetensors")
    made = project(tmp_path, source='entry = "own_net:Model"\nweights = "ones.safetensors"')
    version = first(made)
    assert version.manifest.reason == "imported from ones.safetensors"
    slab = slab_of(version, 2)
    assert version.run(slab)[0].tolist() == [[3.0, 3.0], [12.0, 12.0]]
    store = VersionStore(made.model_state().versions)
    second = publish_weights(made, made.model(), store, save({**ones, "layer.bias": torch.ones(2)}), "by hand")
    assert (second.version, second.reason, second.verdict) == (2, "by hand", "")
    assert first(made, 2).run(slab)[0].tolist() == [[4.0, 4.0], [13.0, 13.0]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"layer.bias": None}, "they lack layer.bias"),
        ({"other": torch.zeros(1)}, "they have unknown other"),
        ({"layer.bias": torch.zeros(3)}, r"'layer.bias': expected torch.float32 \(2,\), found torch.float32 \(3,\)"),
        ({"layer.bias": torch.zeros(2, dtype=torch.float64)}, "found torch.float64"),
        ({"layer.bias": torch.tensor([0.0, np.nan])}, "'layer.bias' has numbers that are NaN"),
    ],
)
def test_weights_that_are_not_the_modules(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    good = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.zeros(2), "count": torch.tensor(7)}
    made = project(tmp_path)
    store = VersionStore(made.model_state().versions)
    bad = {name: tensor for name, tensor in (good | change).items() if tensor is not None}
    with pytest.raises(VersionUnfit, match=expected):
        publish_weights(made, made.model(), store, save(bad), "")
    with pytest.raises(VersionUnfit, match="cannot be read"):
        publish_weights(made, made.model(), store, b"\x80\x04pickle", "")
    assert store.numbers() == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("Model = 3", "expected a class or a function, found int"),
        ("def Model(): return 3", "expected an nn.Module, got int"),
        ("def Model(): raise OSError('no disk')", "build: OSError: no disk"),
        ("class Model: pass", "expected a class with a method `build`, found none"),
        ("class Model:\n    def __init__(self): 1 / 0", "ZeroDivisionError"),
        ("class Model:\n    def build(self): pass\n    def loss(self): pass", "loss: not used for a model of tensors"),
    ],
)
def test_an_entry_that_is_no_model(tmp_path: Path, code: str, expected: str) -> None:
    with pytest.raises(CodeError, match=expected):
        first(project(tmp_path, code))


FORWARDS = """
from torch import nn
import torch
class Net(nn.Module):
    def forward(self, x, ids):
        {}
Model = Net
"""


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        ("return x", "expected 2 outputs ['score', 'total'], the model gives 1"),
        ("return {'score': x}", "expected outputs ['score', 'total'], the model gives ['score']"),
        ("return x, ids[:, 0]", "output 'score': expected FP32 [n, 2], the model gives FP32 [1, 3] for 1 row"),
        ("return x[:, :2].double(), ids[:, 0]", "the model gives FP64 [1, 2]"),
        ("return x[:, :2], 'text'", "output 'total': expected INT64 [n], the model gives str"),
        ("return x[:1, :2], ids[:1, 0] + 0 * (1 // (len(x) - 1))", "ZeroDivisionError"),
        ("raise RuntimeError('shapes\\ndiffer')", "version 1: a batch of 1 rows: RuntimeError: shapes"),
    ],
)
def test_a_mismatch_is_found_when_loading(tmp_path: Path, forward: str, expected: str) -> None:
    with pytest.raises(VersionUnfit) as caught:
        first(project(tmp_path, FORWARDS.format(forward)))
    assert expected in str(caught.value)


def test_a_batch_size_that_is_fixed_in_the_model_is_found_when_warming(tmp_path: Path) -> None:
    version = first(project(tmp_path, FORWARDS.format("return x[:1, :2], ids[:1, 0]")))
    with pytest.raises(VersionUnfit, match=r"a batch of 2 rows: output 'score': .* gives FP32 \[1, 2\] for 2 rows"):
        version.warm([1, 2, 3])


STRINGS = """
import torch
from torch import nn
class Model:
    def build(self): return nn.Identity()
    def preprocess(self, inputs):
        return torch.tensor([[float(len(part)) for part in row] for row in inputs["text"]])
    def predict(self, lengths): return lengths.sum(1), lengths.to(torch.float16)
    def example(self, rows):
        return {"text": [[b"abc", b"d"]] * rows}
"""
STRING_TENSORS = """
[[model.input]]
name = "text"
datatype = "BYTES"
dims = [2]
[[model.output]]
name = "total"
datatype = "FP32"
dims = []
[[model.output]]
name = "lengths"
datatype = "FP16"
dims = [2]
"""


def test_strings_own_preprocessing_and_several_outputs(tmp_path: Path) -> None:
    version = first(project(tmp_path, STRINGS, tensors=STRING_TENSORS))
    inputs = {"text": np.array([[b"\xff\xfe", b""], [b"abc", b"d"]], object)}
    total, lengths = version.call(inputs, 2)
    assert total.tolist() == [2.0, 4.0]
    assert lengths.dtype == np.float16
    assert version.example(3)["text"].tolist() == [[b"abc", b"d"]] * 3
    slab = slab_of(version, 3)
    assert version.run(slab, None, 1, 3)[0].tolist() == [0.0, 0.0]
    assert version.measure(2) > 0


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "UINT16", "UINT32", "INT8", "INT64", "FP16", "BF16", "FP64"])
def test_every_datatype_reaches_the_module(tmp_path: Path, datatype: str) -> None:
    code = "from torch import nn\nimport torch\nclass Model(nn.Module):\n    def forward(self, x): return x.double()"
    tensors = f"""
        [[model.input]]
        name = "x"
        datatype = "{datatype}"
        dims = [2]
        [[model.output]]
        name = "y"
        datatype = "FP64"
        dims = [2]
    """
    version = first(project(tmp_path, code, tensors=tensors))
    slab = TensorSlab(version.schema)
    slab.append_zeros(2)
    slab.array(0)[1, 0] = 0x3F80 if datatype == "BF16" else 1  # the bits of 1.0
    assert version.run(slab)[0].tolist() == [[0.0, 0.0], [1.0, 0.0]]


class Double(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * self.scale, x.sum(1)


PROGRAM_TENSORS = """
[[model.input]]
name = "x"
datatype = "FP32"
dims = [2]
[[model.output]]
name = "scaled"
datatype = "FP32"
dims = [2]
[[model.output]]
name = "total"
datatype = "FP32"
dims = []
"""


def exported(folder: Path) -> str:
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    program = torch.export.export(Double(), (torch.ones(3, 2),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, folder / "double.pt2")
    return hashlib.sha256((folder / "double.pt2").read_bytes()).hexdigest()


def test_an_exported_program_and_other_weights_for_it(tmp_path: Path) -> None:
    digest = exported(tmp_path)
    made = project(tmp_path, "", f'program = "double.pt2"\nsha256 = "{digest}"', PROGRAM_TENSORS)
    version = first(made)
    version.warm([1, 2, 64])
    slab = slab_of(version, 2)
    assert version.run(slab)[0].tolist() == [[0.0, 3.0], [4.0, 9.0]]
    store = VersionStore(made.model_state().versions)
    assert set(load_file(store.path(1) / "weights.safetensors")) == {"scale"}
    publish_weights(made, made.model(), store, save({"scale": torch.tensor([10.0, 0.0])}), "")
    assert first(made, 2).run(slab)[0].tolist() == [[0.0, 0.0], [20.0, 0.0]]


def test_a_program_that_changed_does_not_run(tmp_path: Path) -> None:
    exported(tmp_path)
    made = project(tmp_path, "", f'program = "double.pt2"\nsha256 = "{"0" * 64}"', PROGRAM_TENSORS)
    with pytest.raises(CodeError, match="not the file that was pinned"):
        first(made)


def test_a_program_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "bad.pt2").write_bytes(b"PK nothing")
    digest = hashlib.sha256(b"PK nothing").hexdigest()
    made = project(tmp_path, "", f'program = "bad.pt2"\nsha256 = "{digest}"', PROGRAM_TENSORS)
    with pytest.raises(CodeError, match=r"program 'bad\.pt2' cannot be loaded"):
        first(made)


def test_a_version_of_other_tensors_is_unfit(tmp_path: Path) -> None:
    first(project(tmp_path))
    changed = project(tmp_path, tensors=TENSORS.replace('name = "total"', 'name = "sum"'))
    with pytest.raises(VersionUnfit, match="published for other tensors"):
        first(changed, 1)


def test_a_module_without_weights(tmp_path: Path) -> None:
    version = first(project(tmp_path, FORWARDS.format("return x[:, :2], ids.sum(1)")))
    assert version.bytes == 0
    assert version.run(slab_of(version, 3))[1].shape == (3,)
