"""Says in one line each what is wrong with settings: section, key, what was expected, what came.

Works from pydantic's list of errors and the settings' own annotations; `expectation` also feeds the generated
reference.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from trimtab.kernels.schema import Transform
from trimtab.store.durations import parse_duration
from trimtab.store.settings_base import Settings, scalar_text

__all__ = ["expectation", "explain", "is_duration", "known_fields", "section_of"]

_DURATION = 'a duration such as "30d", "1h", "90s" (or whole seconds)'


def explain(error: ValidationError, root: type[Settings], data: Mapping[str, Any]) -> list[str]:
    """One line for each problem, in the order of the settings."""
    items = error.errors(include_url=False)
    # A list whose only entry is wrong is also reported as too short.
    places = [item["loc"] for item in items]
    nested = [any(len(other) > len(place) and other[: len(place)] == place for other in places) for place in places]
    return [_line(item, root, data) for item, inner in zip(items, nested, strict=True) if not inner]


def known_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The settings' fields by the key that the file uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def expectation(field: FieldInfo) -> str:
    """What a field takes, in words: `an integer ≥ 1`, `one of "auto", "cpu", "cuda"`, `a list of strings`."""
    return _expected(field.annotation, field.metadata)


def is_duration(field: FieldInfo) -> bool:
    """Whether the field holds µs that the file writes as a duration."""
    return _has_duration(field.metadata)


def section_of(field: FieldInfo) -> tuple[type[BaseModel], bool] | None:
    """The settings class of a field that is a section, and whether it is a list of them."""
    nested = _nested(field)
    return None if nested is None else (nested, _is_list(field))


def _line(item: Any, root: type[Settings], data: Mapping[str, Any]) -> str:
    model, field, section, key, value = _locate(item["loc"], root, data)
    kind = item["type"]
    if field is not None and _is_list(field) and _nested(field) is not None and kind in ("tuple_type", "too_short"):
        return f"expected at least one section {_header((*_dotted(section), key), True)}, got {_shown(value)}"
    if kind == "extra_forbidden":
        return _unknown(section, key, known_fields(model))
    if kind == "missing":
        what = repr(key)
        if field is not None and _nested(field) is not None:
            what = f"section {_header((*_dotted(section), key), _is_list(field))}"
        where = f"{section} " if section else ""
        return f"{where}{what} is missing" + (f": {_summary(field)}" if field is not None else "")
    prefix = " ".join(part for part in (section, f"{key}:" if key else "") if part)
    if kind == "value_error":
        message = str(item["ctx"]["error"])
        if field is not None and message.startswith("expected a duration"):
            message = f"expected {expectation(field)}, got {_shown(value)}"
        return f"{prefix} {message}".strip()
    expected = expectation(field) if field is not None else item["msg"].lower()
    return f"{prefix} expected {expected}, got {_shown(value)}".strip()


def _locate(
    loc: Sequence[str | int], root: type[BaseModel], data: Any
) -> tuple[type[BaseModel], FieldInfo | None, str, str, Any]:
    """The innermost settings class of an error's place, the field in it, `[section]`, the key, and the value there."""
    model, field, value = root, None, data
    path: list[str] = []
    key, entry, listed = "", "", False
    for part in loc:
        value = _child(value, part)
        if isinstance(part, int):
            if field is not None and _nested(field) is not None and not key.count("["):
                entry = value.get("name", "") if isinstance(value, Mapping) else ""
            continue
        nested = _nested(field) if field is not None else None
        if nested is not None:
            model, listed = nested, _is_list(field)
            path.append(key)
        key, field = part, known_fields(model).get(part)
    nested = _nested(field) if field is not None else None
    if nested is not None and isinstance(value, Mapping) and (isinstance(loc[-1], int) or not _is_list(field)):
        # The problem is with the section as a whole.
        path.append(key)
        listed, key, field = _is_list(field), "", None
    section = _header(tuple(path), listed) if path else ""
    if listed and isinstance(entry, str) and entry and path:
        section += f" {entry!r}"
    return model, field, section, key, value


def _child(value: Any, part: str | int) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return None


def _header(path: Sequence[str], listed: bool) -> str:
    name = ".".join(path)
    return f"[[{name}]]" if listed else f"[{name}]"


def _dotted(section: str) -> tuple[str, ...]:
    name = section.partition("]")[0].strip("[")
    return tuple(name.split(".")) if name else ()


def _unknown(section: str, key: str, known: Mapping[str, FieldInfo]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not section:
        hint = f"did you mean [{near[0]}]?" if near else "expected one of " + ", ".join(f"[{name}]" for name in known)
        return f"unknown section [{key}]; {hint}"
    hint = f"did you mean {near[0]!r}?" if near else "expected one of " + ", ".join(known)
    return f"{section} unknown key {key!r}; {hint}"


def _summary(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).rstrip(".")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = f'"{value}"'
    elif isinstance(value, Mapping):
        text = "a table"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(_shown(item) for item in value) + "]"
    else:
        text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    """The settings class of a field that is a section or a list of sections."""
    annotation: Any = field.annotation
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Annotated:
        return None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _is_list(field: FieldInfo | None) -> bool:
    return field is not None and get_origin(field.annotation) is tuple


def _expected(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _expected(inner, [*_flat(more), *metadata])
    if origin is Literal:
        values = ", ".join(_shown(value) for value in get_args(annotation))
        return f"one of {values}" if len(get_args(annotation)) > 1 else values
    if origin is tuple:
        return f"a list of {_plural(_expected(get_args(annotation)[0]))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(part) for part in get_args(annotation))
    if _has_duration(metadata):
        return _DURATION + (", more than 0" if _bounds(metadata) else "")
    if any(isinstance(item, BeforeValidator) and item.func is scalar_text for item in metadata):
        return "a value"
    if annotation is Transform:
        return "a name or table"
    if annotation is int:
        return " ".join(["an integer", *_bounds(metadata)])
    if annotation is float:
        return " ".join(["a number", *_bounds(metadata)])
    if annotation is bool:
        return "true or false"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a table"
    return "a string"


def _has_duration(metadata: Sequence[Any]) -> bool:
    return any(isinstance(item, BeforeValidator) and item.func is parse_duration for item in metadata)


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """Field(...) inside Annotated carries its bounds in a list of its own."""
    return [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _bounds(metadata: Sequence[Any]) -> list[str]:
    parts = []
    for item in metadata:
        if isinstance(item, annotated_types.Ge):
            parts.append(f"≥ {item.ge}")
        elif isinstance(item, annotated_types.Gt):
            parts.append(f"> {item.gt}")
        elif isinstance(item, annotated_types.Le):
            parts.append(f"≤ {item.le}")
        elif isinstance(item, annotated_types.Lt):
            parts.append(f"< {item.lt}")
    return [" and ".join(parts)] if parts else []


def _plural(expected: str) -> str:
    words = {
        "a string": "strings",
        "a name or table": "names or tables",
        "a value": "values",
        "a number": "numbers",
        "an integer": "integers",
    }
    for singular, plural in words.items():
        if expected.startswith(singular):
            return plural + expected[len(singular) :]
    return expected
