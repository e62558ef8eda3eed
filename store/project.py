"""A project: the folder of trimtab.toml, its settings, and where under state/ everything of it lies.

`Project.load` is the only reader of the file. Whatever is wrong with it becomes a ProjectError of one line per
problem, which names the section and the key, says what was expected and what came, and for an unknown key names the
nearest known one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from trimtab.store.errors import ProjectError
from trimtab.store.explain import explain
from trimtab.store.render import render
from trimtab.store.settings import (
    DataSettings,
    MlflowSettings,
    ModelSettings,
    ProjectFile,
    SecuritySettings,
    ServerSettings,
)

__all__ = ["PROJECT_FILE", "ModelPaths", "Project", "render"]

PROJECT_FILE = "trimtab.toml"


@dataclass(frozen=True)
class ModelPaths:
    """Where what lasts of one model lies; see docs/state.md."""

    root: Path

    @property
    def captures(self) -> Path:
        """Folder of capture segments, written by the server."""
        return self.root / "captures"

    @property
    def labels(self) -> Path:
        """The label database, written by the server."""
        return self.root / "labels.sqlite"

    @property
    def versions(self) -> Path:
        """Folder of versions, written by the trainer and `trimtab train`."""
        return self.root / "versions"

    @property
    def live(self) -> Path:
        """Which version serves, written by the server."""
        return self.root / "live.json"

    @property
    def decisions(self) -> Path:
        """Every verdict, with its reason; append-only."""
        return self.root / "decisions.jsonl"

    @property
    def drift(self) -> Path:
        """Every closed drift window, written by the server; append-only."""
        return self.root / "drift.jsonl"

    @property
    def windows(self) -> Path:
        """Folder of the sketches of closed drift windows, written by the server."""
        return self.root / "drift"

    @property
    def timeline(self) -> Path:
        """What labels said over time, written by the trainer; append-only."""
        return self.root / "timeline.jsonl"

    @property
    def trainer(self) -> Path:
        """Folder of the trainer's own: workflow database, checkpoints, triggers."""
        return self.root / "trainer"

    @property
    def outbox(self) -> Path:
        """What MLflow has yet to be told."""
        return self.root / "outbox.sqlite"


@dataclass(frozen=True)
class Project:
    """A loaded trimtab.toml. `directory` is absolute."""

    directory: Path
    server: ServerSettings
    security: SecuritySettings
    mlflow: MlflowSettings
    data: DataSettings
    models: tuple[ModelSettings, ...]

    @classmethod
    def load(cls, directory: Path | str) -> Project:
        """Reads DIRECTORY/trimtab.toml. Raises ProjectError."""
        path = Path(directory) / PROJECT_FILE
        try:
            text = path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            raise ProjectError(
                f"no {PROJECT_FILE} in {Path(directory).resolve()}; `trimtab init DATA --label COL` makes one"
            ) from None
        except UnicodeDecodeError as error:
            raise ProjectError(f"{PROJECT_FILE}: expected UTF-8 text; byte {error.start} is not") from None
        except OSError as error:
            raise ProjectError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
        return cls.loads(text, directory)

    @classmethod
    def loads(cls, text: str, directory: Path | str) -> Project:
        """The project that trimtab.toml with this text in this folder would be. Raises ProjectError."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ProjectError(f"{PROJECT_FILE}: not valid TOML: {_one_line(str(error))}") from None
        return cls.from_dict(data, directory)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], directory: Path | str) -> Project:
        """The project of what a TOML parser gave. Raises ProjectError."""
        try:
            file = ProjectFile.model_validate(_tuples(data))
        except ValidationError as error:
            raise ProjectError(*(f"{PROJECT_FILE}: {line}" for line in explain(error, ProjectFile, data))) from None
        return cls(Path(directory).resolve(), file.server, file.security, file.mlflow, file.data, file.models)

    @property
    def state(self) -> Path:
        """Where everything that lasts lies."""
        return self.directory / "state"

    @property
    def mlflow_uri(self) -> str:
        """MLflow's tracking URI: the one given, or a database of our own."""
        return self.mlflow.tracking_uri or f"sqlite:///{self.state / 'mlflow.db'}"

    def model(self, name: str | None = None) -> ModelSettings:
        """The model of that name; without a name, the only one. Raises ProjectError."""
        known = ", ".join(repr(model.name) for model in self.models)
        if not name:
            if len(self.models) == 1:
                return self.models[0]
            raise ProjectError(f"{PROJECT_FILE} has several models; name one of {known}")
        for model in self.models:
            if model.name == name:
                return model
        raise ProjectError(f"no model {name!r} in {PROJECT_FILE}; it has {known}")

    def model_state(self, name: str | None = None) -> ModelPaths:
        """Where the model's part of the state lies. Raises ProjectError."""
        return ModelPaths(self.state / self.model(name).name)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _tuples(value: Any) -> Any:
    """Lists as tuples, all the way down: what frozen settings hold, and what strict validation takes."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
