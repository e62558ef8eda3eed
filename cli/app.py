"""The command line: which commands there are, and what becomes of errors.

Commands are loaded when they are called, so that `trimtab --help` does not wait for torch: the table below has each
one's module, function and line of help. Whatever goes wrong in a command ends here as one line on stderr and an exit
code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from trimtab.cli.errors import line_of, one_line
from typer.core import TyperCommand, TyperGroup

__all__ = ["COMMANDS", "command_of", "main"]

COMMANDS: dict[str, tuple[str, str, str]] = {
    "init": ("trimtab.cli.init", "init", "Profile a data file; write trimtab.toml and a report."),
    "train": ("trimtab.cli.train", "train", "Search for a model and publish it as version 1."),
    "serve": ("trimtab.cli.serve", "serve", "Serve the project's models, with the trainer beside them."),
    "replay": ("trimtab.cli.replay", "replay", "Replay history through a server: would retraining have paid?"),
    "status": ("trimtab.cli.status", "status", "How the running server, its models and its trainer are."),
    "versions": ("trimtab.cli.versions", "versions", "Every version of the model, with verdicts and reasons."),
    "drift": ("trimtab.cli.drift", "drift", "How what is served differs from what was trained on."),
    "timeline": (
        "trimtab.cli.timeline",
        "timeline",
        "What came in, what it let expect, what labels said.",
    ),
    "promote": ("trimtab.cli.promote", "promote", "Make a version live."),
    "rollback": ("trimtab.cli.promote", "rollback", "Make the previous version live again."),
    "publish": ("trimtab.cli.publish", "publish", "Publish weights that were made elsewhere as a version."),
    "alias": ("trimtab.cli.alias", "alias", "Make a name stand for a version."),
    "load": ("trimtab.cli.repository", "load", "Load a model into the running server."),
    "unload": ("trimtab.cli.repository", "unload", "Unload a model from the running server."),
    "retrain": ("trimtab.cli.retrain", "retrain", "Train a challenger now."),
}

_HELP = """Serve a model, watch it, retrain it on late labels, swap better weights in.

\b
Would retraining have paid?   trimtab replay flights.parquet --label late --time time
Make a project:               trimtab init flights.parquet --label late --time time -C flights
Fit version 1:                trimtab train -C flights
Serve it:                     trimtab serve -C flights

Every command takes -C DIR (the folder of trimtab.toml, default: here) and --json, and exits with 0 only on success.
"""


_INTERRUPTED = 130


class _Commands(TyperGroup):
    """Commands by name; only the one that is called is imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # For listings: the line of help without the module.
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][2])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command_of(str(name)) if command is not None else None, rest


def command_of(name: str) -> Any:
    """The command itself, for calling it or showing its help."""
    module, function, _ = COMMANDS[name]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(getattr(importlib.import_module(module), function))
    return typer.main.get_command(app)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"trimtab {version('trimtab')}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    help=_HELP,
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    invoke_without_command=False,
)


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code. Nothing but SystemExit leaves this function as an exception."""
    command = typer.main.get_command(app)
    try:
        result = command.main(
            args=None if arguments is None else list(arguments), prog_name="trimtab", standalone_mode=False
        )
        sys.stdout.flush()
        if result == _INTERRUPTED:
            # Typer turns Ctrl-C into this exit code, without a word.
            print("trimtab: interrupted", file=sys.stderr)
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit:
        raise
    except BaseException as error:
        if os.environ.get("TRIMTAB_TRACEBACK"):
            raise
        line, code = _explained(error)
        print(f"trimtab: {line}", file=sys.stderr)
        return code


def _explained(error: BaseException) -> tuple[str, int]:
    known = line_of(error)
    if known is not None:
        return known
    # Typer's own errors; its classes are click's or a copy of them, depending on its version.
    if type(error).__name__ == "Abort":
        return "interrupted", _INTERRUPTED
    message = getattr(error, "format_message", None)
    if message is not None:
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context is not None else ""
        return one_line(str(message())).rstrip(".") + hint, int(getattr(error, "exit_code", 2))
    text = one_line(str(error))[:300]
    return f"internal error: {type(error).__name__}: {text} (TRIMTAB_TRACEBACK=1 shows where)", 70


if __name__ == "__main__":
    sys.exit(main())
