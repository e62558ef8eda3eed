"""Compiles a version's forward pass to native code (AOTInductor), as a process of its own: `python -m
trimtab.models.compiling DIRECTORY MODEL VERSIONS NUMBER THREADS PACKAGE`, which models/runner.py starts.

Compiling takes seconds to a minute, and most of it holds Python's lock: in the serving process every batch would wait
for it. So it happens here, at low priority. On stdout goes the sha256 of the package that was written; whatever goes
wrong is a message on stderr and a non-zero exit code.

The rows of a batch are the only size that may vary. Weights are frozen into the package, which lets the compiler lay
them out for the processor.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from trimtab.models.errors import CodeError
from trimtab.models.loading import Version, loader
from trimtab.models.tensors import TensorVersion
from trimtab.models.version import LoadedVersion
from trimtab.store.files import sha256_file
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore

__all__ = ["example_of", "package"]

_NICE = 10
_ROWS = 7  # torch takes 0 and 1 for sizes that never change


class _Columns(nn.Module):
    """Features and ids to predictions."""

    def __init__(self, version: LoadedVersion) -> None:
        super().__init__()
        self.module, self.task = version.module, version.task

    def forward(self, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.task.predict(self.module(features, ids))


class _Tensors(nn.Module):
    """The module's arguments to the outputs, in their order."""

    def __init__(self, version: TensorVersion) -> None:
        super().__init__()
        self.module = version.module
        self._held = [version]  # not a submodule

    def forward(self, *arguments: Any) -> list[Any]:
        outputs: list[Any] = self._held[0].run_eagerly(*arguments)
        return outputs


def example_of(version: Version, rows: int) -> tuple[torch.Tensor, ...]:
    """Arguments of a forward pass to compile and compare with. Raises CodeError where it takes more than tensors of
    fixed size."""
    if isinstance(version, TensorVersion):
        if version.schema.variable:
            raise CodeError("inputs of variable dimensions cannot be compiled")
        arguments = version.arguments(version.example(rows))
        if not all(isinstance(value, torch.Tensor) and value.shape[:1] == (rows,) for value in arguments):
            raise CodeError("only tensors with one entry a row can be compiled")
        return tuple(arguments)
    program = version.program
    generator = torch.Generator().manual_seed(rows)
    features = torch.randn(rows, program.n_features, generator=generator)
    ids = [torch.randint(0, size, (rows,), generator=generator) for size in program.id_sizes]
    return features, torch.stack(ids, dim=1) if ids else torch.empty(rows, 0, dtype=torch.int64)


def package(version: Version, path: Path) -> None:
    """Writes the version's forward pass, compiled for this machine and torch's number of threads. Raises whatever torch
    raises."""
    whole = _Tensors(version) if isinstance(version, TensorVersion) else _Columns(version)
    arguments = example_of(version, _ROWS)
    import torch._inductor
    from torch.export import Dim

    with torch.no_grad():
        if isinstance(version, TensorVersion):
            shapes: Any = (tuple({0: Dim.AUTO} for _ in arguments),)
        else:
            shapes = tuple({0: Dim.AUTO} for _ in arguments)
        exported = torch.export.export(whole.eval(), arguments, dynamic_shapes=shapes)
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(path), inductor_configs={"freezing": True, "compile_threads": 1}
        )


def _main(directory: str, model: str, versions: str, number: str, threads: str, path: str) -> None:
    os.nice(_NICE)
    torch.set_num_threads(int(threads))
    project = Project.load(Path(directory))
    version = loader(project, project.model(model), VersionStore(Path(versions)), "cpu")(int(number))
    package(version, Path(path))
    print(sha256_file(Path(path)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
