"""Options that commands share, and how their values are read. Light: imported for every `--help`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Directory", "Json", "Model", "names"]

Directory = Annotated[
    Path, typer.Option("-C", metavar="DIR", help="Folder of trimtab.toml.", show_default="here", file_okay=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for programs.")]
Model = Annotated[str, typer.Option("--model", metavar="NAME", help="Which model, where the project has several.")]


def names(values: Sequence[str] | None) -> tuple[str, ...]:
    """Column names given as `a,b` or by repeating the option, each once, in order."""
    parts = [part.strip() for value in values or () for part in value.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part))
