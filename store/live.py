"""live.json: which version serves. The only truth about it, written by the server alone, read by everybody.

Each write replaces the file as one step (fsync + rename) and compares-and-sets its epoch under a lock, so a promotion
that was decided on an older state is refused instead of undoing a newer one.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict
from trimtab.store.errors import LiveDamaged, StaleEpoch
from trimtab.store.files import locked, make_dir, now_us, os_errors, write_atomic

__all__ = ["Live", "LiveStore"]


class Live(BaseModel):
    """What serves."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    live: int
    """The version that answers."""
    previous: int | None = None
    """The one before it, kept warm for a rollback."""
    canary: int | None = None
    """A version that answers a share of the requests."""
    canary_share: float = 0.0
    """That share, 0 to 1."""
    aliases: dict[str, int] = {}
    """Versions by names that a person gave them; `champion` and `challenger` are not among them."""
    epoch: int = 0
    """Grows by one with every change; set by LiveStore."""
    changed_us: int = 0
    """When it changed, µs UTC; set by LiveStore."""
    reason: str = ""
    """Why it changed; set by LiveStore."""


class LiveStore:
    """The live.json at `path` (ModelPaths.live)."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def read(self) -> Live | None:
        """What serves; None before the first version went live. Raises LiveDamaged, StoreError."""
        with os_errors("read", self.path):
            try:
                data = self.path.read_bytes()
            except FileNotFoundError:
                return None
        try:
            return Live.model_validate_json(data)
        except ValueError as error:
            raise LiveDamaged(
                f"{self.path} cannot be read; put back a copy, or delete it and promote one of `trimtab versions`"
            ) from error

    def swap(self, live: Live, *, expected_epoch: int, reason: str) -> Live:
        """Makes `live` the truth and returns it with its new epoch; durable when it returns.

        `expected_epoch` is the epoch that the caller saw (0: no file), or -1 for whatever it is. Raises StaleEpoch,
        LiveDamaged, StoreError; nothing changed then.
        """
        make_dir(self.path.parent)
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            current = self.read()
            epoch = current.epoch if current else 0
            if expected_epoch not in (-1, epoch):
                raise StaleEpoch(
                    f"live.json is at epoch {epoch}, the change was decided at {expected_epoch}: read it again"
                )
            new = live.model_copy(update={"epoch": epoch + 1, "changed_us": now_us(), "reason": reason})
            write_atomic(self.path, new.model_dump_json(indent=2).encode() + b"\n")
            return new
