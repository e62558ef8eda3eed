"""What a command says: for a person on the terminal, or one JSON object for a program.

Results go to stdout. Progress, notes and warnings go to stderr, progress only where that is a terminal, so stdout can
be piped. With `--json`, stdout has exactly one JSON object and nothing else."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Output", "Task", "number", "p_value", "when"]


class Task(Protocol):
    """One line of progress. Calls are cheap and may come from any thread."""

    def advance(self, steps: float = 1) -> None:
        """More is done."""

    def update(self, *, completed: float | None = None, total: float | None = None, text: str | None = None) -> None:
        """How much is done, out of how much, and a remark."""


class Output:
    """Where a command writes. `as_json`: for a program."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def out(self) -> Console:
        """stdout for people; prints nothing under --json."""
        from rich.console import Console

        width = None if sys.stdout.isatty() else 120
        return Console(file=sys.stdout, quiet=self.as_json, highlight=False, soft_wrap=False, width=width)

    @property
    def err(self) -> Console:
        """stderr, for notes."""
        from rich.console import Console

        return Console(file=sys.stderr, highlight=False, stderr=True)

    def say(self, text: str = "") -> None:
        """A line for a person, as it is (no markup)."""
        if not self.as_json:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """A line on stderr, in both modes."""
        print(text, file=sys.stderr, flush=True)

    def result(self, data: Mapping[str, Any]) -> None:
        """The JSON object; nothing for a person. NaN and infinities become null."""
        if self.as_json:
            print(json.dumps(_plain(data), indent=2, ensure_ascii=False), flush=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        title: str | None = None,
        right: Iterable[str] = (),
    ) -> None:
        """A table for a person; the columns named in `right` are right-aligned."""
        if self.as_json:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        if title is not None:
            print(title)
        for row in rows:
            table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
        console = self.out
        with console.capture() as drawn:
            console.print(table)
        # Without the padding that Rich leaves at the ends of lines.
        print("\n".join(line.rstrip() for line in drawn.get().rstrip().split("\n")), flush=True)

    @contextmanager
    def progress(self, text: str, total: float | None = None) -> Iterator[Task]:
        """A progress bar on stderr if that is a terminal, else nothing."""
        if self.as_json or not sys.stderr.isatty():
            yield _Silent()
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        # The remark takes what is left of the line, and loses its end first.
        remark = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[remark]}", markup=False, table_column=remark),
            console=self.err,
            transient=True,
            expand=True,
        )
        with bar:
            yield _Bar(bar, bar.add_task(text, total=total, remark=""))


class _Silent:
    def advance(self, steps: float = 1) -> None: ...

    def update(
        self, *, completed: float | None = None, total: float | None = None, text: str | None = None
    ) -> None: ...


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task

    def advance(self, steps: float = 1) -> None:
        self._bar.advance(self._task, steps)

    def update(self, *, completed: float | None = None, total: float | None = None, text: str | None = None) -> None:
        more = {} if text is None else {"remark": text}
        self._bar.update(self._task, completed=completed, total=total, **more)


def number(value: object, digits: int = 4) -> str:
    """A number for a person: thousands separated, at most `digits` decimals; "–" for what is missing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}g}"
    return f"{value:,.{digits}f}"


def p_value(value: float) -> str:
    """A p-value for a person."""
    return "<1e-12" if value < 1e-12 else number(value, 3)


def when(time_us: int) -> str:
    """µs since the epoch as a person reads it, UTC; "–" for 0."""
    if not time_us:
        return "–"
    try:
        return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return f"{time_us} µs"


def _plain(value: Any) -> Any:
    """Only what JSON has: arrays as lists, paths and dates as text, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
