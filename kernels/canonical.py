"""Canonical JSON: one text for one value, so that a hash of the text is a hash of the value.

Keys are sorted, nothing is indented, numbers are the shortest that read back as the same float64, and NaN and
infinities do not exist. Reading is strict: duplicate keys, NaN, infinities and absurd nesting are errors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NoReturn

from trimtab.kernels.errors import ProgramError

type_names: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def dumps(value: object) -> str:
    """Canonical text of a value made of dict, list, str, int, finite float, bool and None."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(text: str) -> str:
    """Lower-case hex sha256 of a canonical text."""
    return hashlib.sha256(text.encode()).hexdigest()


def loads(text: str, what: str) -> dict[str, object]:
    """The JSON object in `text`. Raises ProgramError, which names `what`, on anything else."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ProgramError(f"{what}: the JSON is nested too deeply") from None
    except (ValueError, TypeError) as error:
        raise ProgramError(f"{what}: not valid JSON: {error}") from None
    return as_object(value, what)


def as_object(value: object, what: str, keys: frozenset[str] | None = None) -> dict[str, object]:
    """`value` as an object with exactly `keys` (any, when None). Raises ProgramError."""
    if not isinstance(value, dict):
        raise ProgramError(f"{what}: expected an object, got {name_of(value)}")
    if keys is not None and value.keys() != keys:
        missing, unknown = sorted(keys - value.keys()), sorted(map(str, value.keys() - keys))
        raise ProgramError(f"{what}: missing keys {missing}, unknown keys {unknown}")
    return value


def as_list(value: object, what: str) -> list[object]:
    """`value` as a list. Raises ProgramError."""
    if not isinstance(value, list):
        raise ProgramError(f"{what}: expected a list, got {name_of(value)}")
    return value


def as_text(value: object, what: str) -> str:
    """`value` as a string that UTF-8 can hold. Raises ProgramError."""
    if not isinstance(value, str):
        raise ProgramError(f"{what}: expected a string, got {name_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ProgramError(f"{what}: the string is not valid Unicode") from None
    return value


def as_integer(value: object, what: str, low: int, high: int) -> int:
    """`value` as an integer in [low, high]. Raises ProgramError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProgramError(f"{what}: expected an integer, got {name_of(value)}")
    if not low <= value <= high:
        raise ProgramError(f"{what}: expected an integer in [{low}, {high}], got {str(value)[:40]}")
    return value


def name_of(value: object) -> str:
    """What a value is, in the words of JSON."""
    return type_names.get(type(value), type(value).__name__)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number here")
