"""A label as it comes, what becomes of it, and how it is stored. Pure."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass

__all__ = ["LabelRow", "Outcome", "StoredLabel", "decode_value", "encode_value", "refusal"]

_ID_BYTES = 16
_INT64 = 1 << 63
_TEXT_BYTES = 4096


class Outcome(enum.IntEnum):
    """What became of a label; the numbers are those of trimtab.proto's LabelOutcome."""

    ACCEPTED = 1
    DUPLICATE = 2
    CONFLICT = 3
    INVALID = 4


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One label: the row, by request id and place in the request or by business key, and what is true of it."""

    request_id: bytes | None
    row: int
    key: str | None
    """The values of the model's key columns, joined by U+001F; None where request_id is given."""
    output: str
    value: float | str
    weight: float
    observed_at_us: int
    """When it became known, µs UTC (data time)."""
    source: str


@dataclass(frozen=True, slots=True)
class StoredLabel:
    """One revision of a label, as stored."""

    sequence: int
    """Grows with every revision stored, never used twice."""
    revision: int
    """1 for the first of its row and output."""
    current: bool
    """Whether it is what holds for its row and output, when it was read."""
    request_id: bytes | None
    row: int
    key: str | None
    output: str
    value: float | str
    weight: float
    observed_at_us: int
    received_at_us: int
    """When the server stored it, µs UTC (wall clock)."""
    source: str


def encode_value(value: float | str) -> str:
    """The value as a JSON scalar; one text for equal values (1, 1.0 and True; 0.0 and -0.0)."""
    return json.dumps(value if isinstance(value, str) else float(value) + 0.0)


def decode_value(text: str) -> float | str:
    """What encode_value was given. Raises ValueError on anything else."""
    value = json.loads(text)
    if not isinstance(value, float | str):
        raise ValueError(f"expected a JSON number or string, got {text[:40]!r}")
    return value


def refusal(label: LabelRow) -> str | None:
    """Why the label is no label, in one line; None if it is one."""
    if (label.request_id is None) == (label.key is None):
        return "expected either a request id or a key"
    if label.request_id is not None and len(label.request_id) != _ID_BYTES:
        return f"request id: expected {_ID_BYTES} bytes, got {len(label.request_id)}"
    if not 0 <= label.row < 1 << 31:
        return f"row: expected 0 to 2147483647, got {label.row}"
    if not isinstance(label.value, str) and not math.isfinite(label.value):
        return f"value: expected a finite number or text, got {label.value}"
    if not (math.isfinite(label.weight) and label.weight > 0):
        return f"weight: expected a number > 0, got {label.weight}"
    if not -_INT64 <= label.observed_at_us < _INT64:
        return f"observed_at: expected µs that fit in 64 bits, got {label.observed_at_us}"
    texts = {"key": label.key, "output": label.output, "value": label.value, "source": label.source}
    for name, text in texts.items():
        if isinstance(text, str) and (why := _text_refusal(text)):
            return f"{name}: {why}"
    return None


def _text_refusal(text: str) -> str | None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "expected text that has a UTF-8 form"
    if size > _TEXT_BYTES:
        return f"expected at most {_TEXT_BYTES} bytes of UTF-8, got {size}"
    return "expected no NUL characters" if "\0" in text else None
