"""One model's evidence in the order of data time: what came in, what that let expect, what it turned out to be, and
what was done about it.

  input      a drift window: its rows, features that alarm              drift.jsonl, by the server
  estimated  the loss that a window's predictions let expect            drift.jsonl
  realised   the loss of rows whose labels matured together             timeline.jsonl, by the trainer
  change     a detector saw the realised loss rise                      timeline.jsonl
  decided    a candidate's verdict, with its reason                     timeline.jsonl

The trainer appends a line for each; one that is killed between its work and its notes may write a line twice, and of
equal ones one is read. A line that cannot be read is passed over: it informs, it decides nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from trimtab.store.files import append_line, read_lines

__all__ = ["Evidence", "EvidenceKind", "append_evidence", "read_evidence"]

EvidenceKind = Literal["input", "estimated", "realised", "change", "decided"]
_KINDS = get_args(EvidenceKind)


@dataclass(frozen=True)
class Evidence:
    """One entry. time_us: data time, µs UTC, of its last row. numbers: by kind, finite; a loss is `loss`, with
    `standard_error` where it has one."""

    kind: EvidenceKind
    time_us: int
    version: int
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)


def append_evidence(path: Path, evidence: Evidence) -> None:
    """Adds an entry, durably. Raises StoreError."""
    numbers = {name: value for name, value in evidence.numbers.items() if math.isfinite(value)}
    append_line(path, json.dumps({**asdict(evidence), "numbers": numbers}, sort_keys=True))


def read_evidence(path: Path) -> list[Evidence]:
    """All entries that can be read, in the order of time, each once. Raises StoreError where the file cannot be."""
    if not path.exists():
        return []
    found: dict[bytes, Evidence] = {}
    for line in read_lines(path):
        evidence = _evidence_of(line)
        if evidence is not None:
            found[line] = evidence
    return sorted(found.values(), key=lambda evidence: evidence.time_us)


def _evidence_of(line: bytes) -> Evidence | None:
    try:
        items = json.loads(line)
        kind, message, numbers = items["kind"], items["message"], items["numbers"]
        if kind not in _KINDS or not isinstance(message, str):
            return None
        values = {str(name): float(value) for name, value in numbers.items()}
        return Evidence(kind, int(items["time_us"]), int(items["version"]), message, values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
