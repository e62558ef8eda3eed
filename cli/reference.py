"""Writes docs/cli.md from the commands' own --help: `python -m trimtab.cli.reference > docs/cli.md`."""

from __future__ import annotations

import os
from typing import Any

import typer
from trimtab.cli.app import COMMANDS, app, command_of

__all__ = ["reference"]

_HEAD = """# Commands

Made from `trimtab COMMAND --help` by `python -m trimtab.cli.reference`; do not edit.

Exit codes: 0 success; 1 something that you can put right, said in one line on stderr; 2 flags or arguments that do
not fit; 130 interrupted. Results go to stdout, notes and progress to stderr. With `--json`, stdout has exactly one JSON
object.
"""


def reference() -> str:
    """The text of docs/cli.md."""
    parts = [_HEAD, "## trimtab\n", _block(_help(typer.main.get_command(app), "trimtab"))]
    for name in COMMANDS:
        parts += [f"## trimtab {name}\n", _block(_help(command_of(name), f"trimtab {name}"))]
    return "\n".join(parts)


def _help(command: Any, path: str) -> str:
    os.environ["COLUMNS"] = "100"  # as in a terminal of this width, wherever this runs
    context = command.context_class(command, info_name=path, terminal_width=100, max_content_width=100)
    return str(command.get_help(context))


def _block(text: str) -> str:
    return "```text\n" + "\n".join(line.rstrip() for line in text.strip().split("\n")) + "\n```\n"


if __name__ == "__main__":
    print(reference(), end="")
