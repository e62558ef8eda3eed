"""Writes docs/project-file.md, the reference of trimtab.toml, from the settings' own docstrings, types and defaults.

`python tools/reference.py` writes it; `--check` only says whether it is current (exit 1 if not), as a test does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from trimtab.kernels.schema import parameters
from trimtab.store.explain import expectation, known_fields, section_of
from trimtab.store.render import default_of, toml_value
from trimtab.store.settings import ProjectFile

TARGET = Path(__file__).resolve().parent.parent / "docs" / "project-file.md"

OPS = (
    "impute",
    "clip",
    "log1p",
    "signed_log",
    "standardise",
    "min_max",
    "robust",
    "quantile_normal",
    "bucketise",
    "piecewise_linear",
    "cyclic",
    "vocabulary",
    "hash_bucket",
    "cross",
    "embedding",
    "one_hot",
)

HEAD = """\
<!-- Written by tools/reference.py from store/settings.py. Change it there. -->

# The project file: trimtab.toml

`trimtab init DATA --label COLUMN` writes one, with every setting and its default in it. All commands read it from the
folder that `-C` names (default: the current one). What it lacks takes the default; an unknown key or a wrong value is
an error of one line that names the section and the key, what was expected and what came, and the nearest known key:

    trimtab.toml: [model.capture] unknown key 'max_byte'; did you mean 'max_bytes'?

Durations are written `"30d"`, `"1h"`, `"90s"`, `"250ms"`, `"1d 12h"`, or as whole seconds. Data without a time column
has one row a second, so there whole seconds count rows.

A small one, complete:

```toml
[[model]]
name = "flights"
task = "binary"
classes = ["0", "1"]
positive = "1"

[model.label]
column = "delayed"
horizon = "3d"

[[model.feature]]
name = "distance"
type = "real"
transforms = ["impute", { op = "clip", low = 0.0 }, "piecewise_linear"]

[[model.feature]]
name = "carrier"
type = "string"
transforms = ["vocabulary"]
```
"""


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_section((), ProjectFile, False), *_ops()]).rstrip("\n") + "\n"


def _section(path: tuple[str, ...], model: type[BaseModel], listed: bool) -> Iterator[str]:
    fields = known_fields(model)
    if path:
        name = ".".join(path)
        yield f"## `[[{name}]]`" if listed else f"## `[{name}]`"
        yield ""
        yield _text(model.__doc__) + (" One such section for each." if listed else "")
        yield ""
        yield "| setting | takes | default | |"
        yield "|---|---|---|---|"
        for key, field in fields.items():
            if section_of(field) is None:
                default = default_of(key, model)
                shown = "must be given" if default is None else f"`{default}`"
                yield f"| `{key}` | {_cell(expectation(field))} | {_cell(shown)} | {_cell(_text(field.description))} |"
        yield ""
    for key, field in fields.items():
        inner = section_of(field)
        if inner is not None:
            yield from _section((*path, key), *inner)


def _ops() -> Iterator[str]:
    yield "## Transforms"
    yield ""
    yield "The ops of a chain (`transforms` of `[[model.feature]]`) and their parameters with defaults; what has none"
    yield "is fitted to the training data or must be given. A chain ends in real features or in an embedding index."
    yield ""
    yield "| op | parameters |"
    yield "|---|---|"
    for op in OPS:
        known = ", ".join(
            f"`{name}`" if default is None else f"`{name} = {toml_value(default)}`"
            for name, default in parameters(op).items()
        )
        yield f"| `{op}` | {known or '-'} |"


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Writes or checks the page; the exit code."""
    text = reference()
    if "--check" in sys.argv[1:]:
        current = TARGET.is_file() and TARGET.read_text() == text
        print(
            "docs/project-file.md is current"
            if current
            else "docs/project-file.md is old: run python tools/reference.py"
        )
        return 0 if current else 1
    TARGET.write_text(text)
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
