"""What a version says of itself (manifest.json) and what was decided about it (a line of decisions.jsonl)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["MANIFEST", "WEIGHTS", "Decision", "Manifest", "Verdict"]

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"

# "initial" is version 1's; "undecided": the evidence could not have shown the difference that matters.
Verdict = Literal["initial", "promoted", "refused", "undecided", "abandoned"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class Manifest(_Record):
    """A version's provenance and contents. Written once, never changed: later verdicts go to decisions.jsonl."""

    version: int
    """Its number."""
    parent: int | None = None
    """The version whose weights it started from; none: from scratch."""
    weights: str = ""
    """sha256 of weights.safetensors, hex: what answers name. Filled in when published."""
    files: dict[str, str] = {}
    """sha256 of each file but this one, hex. Filled in when published."""
    task: str = ""
    """"binary", "multiclass" or "regression"."""
    architecture: dict[str, Any] = {}
    """What builds the module: its kind and hyperparameters."""
    program_hash: str = ""
    """Of columns.json, the fitted column program."""
    sketch_hash: str = ""
    """Of the sketch's edges and category lists, which belong to the model."""
    snapshot_hash: str = ""
    """Of the data that it was trained on."""
    code_revision: str = ""
    """Of the code that trained it."""
    seed: int = 0
    """Of the training."""
    threads: int = 1
    """CPU threads of the training."""
    isa: str = ""
    """Instruction set that torch used, or the GPU that the last rows were trained on."""
    torch: str = ""
    """torch's version and build."""
    created_us: int = 0
    """When it was made, µs UTC."""
    rows_trained: int = 0
    """Rows that its weights have seen, its parent's included."""
    recipe: str = ""
    """"refresh" or "search"."""
    verdict: Verdict | Literal[""] = ""
    """What the gate said before it was published; empty: not asked yet."""
    reason: str = ""
    """Why, in one sentence."""
    metrics: dict[str, float] = {}
    """Offline metrics, by name."""


class Decision(_Record):
    """One verdict about one version."""

    version: int
    """The version's number."""
    verdict: Verdict
    """What was decided."""
    reason: str
    """Why, in one sentence."""
    time_us: int = 0
    """When, µs UTC; 0 is replaced by now."""
    metrics: dict[str, Any] = {}
    """The numbers that it rests on."""
    recipe: str = ""
    """"refresh" or "search"."""

    def says(self) -> tuple[Any, ...]:
        """All but the time: what makes a repeated decision the same one."""
        return self.version, self.verdict, self.reason, self.metrics, self.recipe
