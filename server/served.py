"""The models of this server, each with what belongs to it, and whether the server takes requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.drift import DriftWatch
from trimtab.server.engine import Engine
from trimtab.server.errors import NotFound
from trimtab.server.swap import Swap
from trimtab.store.captures import CaptureWriter
from trimtab.store.labels import LabelStore
from trimtab.store.settings import ModelSettings

__all__ = ["LabelCounts", "Model", "Registry"]


@dataclass(slots=True)
class LabelCounts:
    """Labels that came, by outcome. Written on the loop."""

    accepted: int = 0
    duplicate: int = 0
    conflict: int = 0
    invalid: int = 0


@dataclass(slots=True)
class Model:
    """One model and all that serves it."""

    settings: ModelSettings
    engine: Engine
    swap: Swap
    captures: CaptureWriter | None
    """None where [model.capture] is switched off."""
    labels: LabelStore
    drift: DriftWatch | None
    """None where [model.drift] is switched off."""
    label_counts: LabelCounts = field(default_factory=LabelCounts)
    quality: dict[int, pb.QualityReport] = field(default_factory=dict)
    """Realised quality by version, as the trainer reported it last."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set on the loop when segments were sealed or labels came, which the trainer has not been told of."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.settings.name


class Registry:
    """All models by name."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.engines: dict[str, Engine] = {}
        self.absent: dict[str, str] = {}
        """Models of trimtab.toml that are not loaded, and why."""
        self.changed = asyncio.Event()
        """Set when models came or went."""
        self.started = False
        self.draining = False

    def add(self, model: Model) -> None:
        """Adds a model."""
        self.models[model.name] = model
        self.engines[model.name] = model.engine
        self.absent.pop(model.name, None)
        self.changed.set()

    def remove(self, name: str, why: str) -> None:
        """Takes a model away; it is listed as absent from now on."""
        model = self.models.pop(name, None)
        self.engines.pop(name, None)
        self.absent[name] = why
        if model is not None:
            model.news.set()
        self.changed.set()

    @property
    def ready(self) -> bool:
        """Whether requests are taken and every model has a version."""
        return self.started and not self.draining and all(engine.ready for engine in self.engines.values())

    def model(self, name: str) -> Model:
        """The model of that name; without a name, the only one. Raises NotFound."""
        if not name and len(self.models) == 1:
            return next(iter(self.models.values()))
        model = self.models.get(name)
        if model is None:
            if name in self.absent:
                raise NotFound(f"model {name!r} is not loaded: {self.absent[name]}")
            known = ", ".join(map(repr, self.models))
            raise NotFound(f"no model {name!r}; this server has {known}" if name else f"name a model: one of {known}")
        return model

    def chosen(self, name: str) -> list[Model]:
        """The model of that name; without a name, all. Raises NotFound."""
        return [self.model(name)] if name else list(self.models.values())
