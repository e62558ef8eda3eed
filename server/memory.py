"""How much memory the loaded versions of all models take, and the bound on it ([server] max_model_bytes).

Counted are weights and buffers, by the size of their file before they are loaded and by the module afterwards; what a
forward pass needs for a moment is not. What several versions of a model share is counted with the first of them. A
version is reserved before it is loaded, so that versions which load at the same time cannot exceed the bound together.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from trimtab.models.loading import Version
from trimtab.models.version import Shared
from trimtab.server.errors import NoRoom

__all__ = ["ModelMemory", "freed", "sizes_of"]


class ModelMemory:
    """Any thread."""

    def __init__(self, limit: int) -> None:
        """At most so many bytes; 0: any number."""
        self.limit = limit
        self._lock = threading.Lock()
        self._sizes: dict[str, dict[int, int]] = {}
        self._loading: dict[str, set[int]] = {}
        """What was reserved and has not been counted with a size of its own, or released, since."""

    def reserve(self, model: str, number: int, size: int) -> None:
        """Counts a version from now on, or with another size than before. Raises NoRoom, and counts it as before."""
        with self._lock:
            sizes = self._sizes.setdefault(model, {})
            used = self._used() - sizes.get(number, 0)
            if self.limit and used + size > self.limit:
                raise NoRoom(
                    f"model {model!r} version {number} needs {size:,} bytes: {used:,} of [server] max_model_bytes = "
                    f"{self.limit:,} are taken by {self._described(model, number)}"
                )
            sizes[number] = size
            self._loading.setdefault(model, set()).add(number)

    def lacking(self, model: str, number: int, size: int) -> int:
        """How many bytes too many are taken for the version to be reserved with that size; 0: it fits."""
        with self._lock:
            used = self._used() - self._sizes.get(model, {}).get(number, 0)
            return max(0, used + size - self.limit) if self.limit else 0

    def keep(self, model: str, sizes: Mapping[int, int]) -> None:
        """Counts these versions of the model only, of which all were reserved, with so many bytes. One that is being
        loaded or woken meanwhile, which is not there or takes none yet, stays reserved."""
        with self._lock:
            loading, before = self._loading.get(model, set()), self._sizes.get(model, {})
            loading -= {number for number, size in sizes.items() if size}
            self._sizes[model] = {**sizes, **{number: before[number] for number in loading}}

    def count(self, model: str, sizes: Mapping[int, int]) -> None:
        """Counts these versions of the model with so many bytes, and its others as before. One that is being loaded or
        woken meanwhile, which takes none yet, stays reserved."""
        with self._lock:
            loading = self._loading.get(model, set())
            loading -= {number for number, size in sizes.items() if size}
            counted = {number: size for number, size in sizes.items() if number not in loading}
            self._sizes.setdefault(model, {}).update(counted)

    def forget(self, model: str) -> None:
        """Counts none of the model's versions any more. When none is being loaded."""
        with self._lock:
            self._sizes.pop(model, None)
            self._loading.pop(model, None)

    def release(self, model: str, number: int) -> None:
        """Counts the version no more."""
        with self._lock:
            self._sizes.get(model, {}).pop(number, None)
            self._loading.get(model, set()).discard(number)

    @property
    def used(self) -> int:
        """Bytes of all that is counted."""
        with self._lock:
            return self._used()

    def of(self, model: str) -> dict[int, int]:
        """Bytes of each of the model's versions."""
        with self._lock:
            return dict(self._sizes.get(model, {}))

    def _used(self) -> int:
        return sum(sum(sizes.values()) for sizes in self._sizes.values())

    def _described(self, model: str, number: int) -> str:
        others = {
            name: sorted(other for other, size in sizes.items() if size and (name, other) != (model, number))
            for name, sizes in self._sizes.items()
        }
        found = [f"{name!r} {numbers}" for name, numbers in others.items() if numbers]
        return "versions of " + ", ".join(found) if found else "nothing"


def sizes_of(versions: Mapping[int, Version]) -> dict[int, int]:
    """Bytes of each of a model's versions, by number: its own, and those of what it is the first to share."""
    seen: list[Shared] = []
    sizes: dict[int, int] = {}
    for number, version in sorted(versions.items()):
        sizes[number] = version.bytes
        shared = version.shared
        if shared is not None and not any(shared is one for one in seen):
            seen.append(shared)
            sizes[number] += shared.bytes
    return sizes


def freed(versions: Mapping[int, Version], number: int) -> int:
    """Bytes that would not be taken without this version: what others share with it would be."""
    others = {other: version for other, version in versions.items() if other != number}
    return sum(sizes_of(versions).values()) - sum(sizes_of(others).values())
