"""Models that come and go while the server runs: what RepositoryModelLoad and RepositoryModelUnload do.

Loading reads trimtab.toml anew, takes the named model's settings from it, opens the model and loads its versions, all
beside serving; only then can requests find it. Loading a model that is loaded follows its version policy again (newly
published versions come in). Where its settings changed, it has to be unloaded first: two of one name cannot share what
lasts. Unloading answers what was accepted, then closes the model.

Whatever is wrong with one model (its settings, its code, its files) is that call's error and leaves the others alone.
So at the start: a model that cannot be opened is listed as absent, with the reason, and the others are served; only
where none can be served, the server does not start.

One load or unload at a time for each model; different models do not wait for each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

from trimtab.kernels.errors import KernelError
from trimtab.models.errors import ModelError
from trimtab.server.errors import NotFound, ServerError, StartError, Unfit
from trimtab.server.events import EventBus
from trimtab.server.opening import close_model
from trimtab.server.served import Model, Registry
from trimtab.store.errors import ProjectError, StoreError
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings

__all__ = ["Repository"]

_log = logging.getLogger(__name__)
_NOT_LOADED = "load = false; it is loaded when it is asked for"


class Repository:
    """Lives on the loop."""

    def __init__(
        self,
        project: Project,
        registry: Registry,
        events: EventBus,
        *,
        open_model: Callable[[Project, ModelSettings], Model],
        on_change: Callable[[Model], None],
        unload_seconds: float,
    ) -> None:
        """`open_model` makes a model without versions; `on_change` is called when one came or went after the start;
        `unload_seconds` is how long unloading waits for accepted requests."""
        self._project = project
        self._registry = registry
        self._events = events
        self._open_model = open_model
        self._on_change = on_change
        self._unload_seconds = unload_seconds
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def startup(self) -> None:
        """Opens the models that are to be loaded from the start. Raises StartError where none of them can serve."""
        failures: dict[str, Exception] = {}
        for settings in self._project.models:
            if not settings.load:
                self._registry.absent[settings.name] = _NOT_LOADED
                continue
            try:
                await self._open(self._project, settings)
            except (ServerError, StoreError, ModelError, KernelError) as error:
                failures[settings.name] = error
                self._registry.remove(settings.name, str(error))
        if failures and not self._registry.models:
            raise next(iter(failures.values()))
        for name, failure in failures.items():
            self._events.publish("refused", name, f"the model is not served: {failure}")

    async def load(self, name: str) -> Model:
        """Loads a model, or what is new of it. Raises NotFound, Unfit, ProjectError, StoreError, ModelError."""
        async with self._locks[name]:
            project = await asyncio.to_thread(Project.load, self._project.directory)
            try:
                settings = project.model(name)
            except ProjectError as error:
                raise NotFound(str(error)) from None
            loaded = self._registry.models.get(name)
            if loaded is not None:
                if loaded.settings != settings:
                    raise Unfit(
                        f"model {name!r} is loaded with other settings than trimtab.toml has now; unload it first"
                    )
                await loaded.swap.refresh()
                return loaded
            try:
                model = await self._open(project, settings)
            except Exception as error:
                self._registry.absent[name] = str(error)
                if isinstance(error, StartError):
                    raise Unfit(str(error)) from error
                raise
            self._events.publish("loaded", name, f"model {name!r} is loaded, version {model.swap.current.live} live")
            self._on_change(model)
            return model

    async def unload(self, name: str) -> None:
        """Takes a model away, when what it has accepted is answered. Raises NotFound where it is not loaded."""
        async with self._locks[name]:
            model = self._registry.model(name) if name else None
            if model is None:
                raise NotFound("name the model to unload")
            if not await model.engine.leave(self._unload_seconds):
                _log.error("model %s: unloaded before all that it had accepted was answered", name)
            self._registry.remove(name, "unloaded")
            model.engine.close()
            await asyncio.to_thread(close_model, model)
            self._events.publish("unloaded", name, f"model {name!r} was unloaded")
            self._on_change(model)

    async def _open(self, project: Project, settings: ModelSettings) -> Model:
        """Opens a model and puts it among those that serve, once it can."""
        model = self._open_model(project, settings)
        try:
            await asyncio.to_thread(model.swap.startup)
        except BaseException:
            model.engine.close()
            await asyncio.to_thread(close_model, model)
            raise
        self._registry.add(model)
        return model
