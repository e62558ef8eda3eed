"""Writes a trimtab.toml for people: every setting with its comment, those not given commented out at their defaults.

The comments are the settings' own docstrings. What is written parses back to what was given.
"""

from __future__ import annotations

import datetime
import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from trimtab.store.durations import format_duration
from trimtab.store.explain import is_duration, known_fields, section_of
from trimtab.store.settings import FeatureSettings, ProjectFile

__all__ = ["default_of", "render", "toml_value"]

_WIDTH = 118
_HEAD = """\
# The project file of Trimtab. Settings that are commented out have the values shown.
# docs/project-file.md has the same, as a reference. Durations: "30d", "1h", "90s", or whole seconds.
"""


def render(project: Mapping[str, Any]) -> str:
    """The text of a commented trimtab.toml for what a TOML parser would read from it (`model` a list of tables).

    Unknown keys are an error (KeyError): what is written must be loadable.
    """
    return _HEAD + "\n".join(_section((), ProjectFile, project))


def default_of(name: str, model: type[BaseModel]) -> str | None:
    """A setting's default as TOML, or None where it must be given."""
    field = known_fields(model)[name]
    if field.default_factory is not None:
        return toml_value(field.get_default(call_default_factory=True, validated_data={}))
    if field.default is PydanticUndefined:
        return None
    return toml_value(format_duration(field.default) if is_duration(field) else field.default)


def toml_value(value: Any) -> str:
    """One value as TOML, on one line. Raises TypeError for what TOML has no form for."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    raise TypeError(f"no TOML form for {type(value).__name__}")


def _section(path: tuple[str, ...], model: type[BaseModel], given: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a section's own settings, then of the sections inside it."""
    fields = known_fields(model)
    for key in given:
        fields[key]  # an unknown key: KeyError
    inner = {key: found for key, field in fields.items() if (found := section_of(field)) is not None}
    for key in fields:
        if key not in inner:
            yield from _setting(key, model, given)
    for key, (section, listed) in inner.items():
        place = (*path, key)
        if section is FeatureSettings:
            yield from _features(place, given.get(key, ()))
        elif listed:
            for entry in given.get(key, ()):
                yield from ["", *_comment(section.__doc__), f"[[{'.'.join(place)}]]", *_section(place, section, entry)]
        else:
            yield from ["", *_comment(section.__doc__), f"[{'.'.join(place)}]"]
            yield from _section(place, section, given.get(key, {}))


def _setting(key: str, model: type[BaseModel], given: Mapping[str, Any]) -> Iterator[str]:
    yield from _comment(known_fields(model)[key].description)
    if key in given:
        yield f"{key} = {toml_value(given[key])}"
    else:
        yield f"# {key} = {default_of(key, model) or '...'}"


def _features(place: tuple[str, ...], features: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Many and alike: commented once, then only what is given."""
    yield ""
    yield from _comment(FeatureSettings.__doc__)
    for name, field in known_fields(FeatureSettings).items():
        yield from _comment(f"{name}: {field.description}")
    for feature in features:
        yield f"[[{'.'.join(place)}]]"
        yield from (
            f"{key} = {toml_value(value)}" for key, value in feature.items() if known_fields(FeatureSettings)[key]
        )
        yield ""


def _comment(text: str | None) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join((text or "").split()), _WIDTH, break_on_hyphens=False)]


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else toml_value(key)
