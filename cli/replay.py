"""`trimtab replay`: history through a real server, with the labels as late as they were – would retraining have paid?

The command reads its options, finds or makes the project, and says what came of it; the parts are in replay_*.py.
Everything that is written on the way is in a temporary folder that is gone in the end, whatever the end is.
"""

from __future__ import annotations

import signal
import tempfile
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from trimtab.cli.options import Directory, Json, Model, names

if TYPE_CHECKING:
    from trimtab.cli.init import InitOptions
    from trimtab.cli.output import Output
    from trimtab.cli.replay_data import Source
    from trimtab.cli.replay_plan import Span
    from trimtab.cli.replay_run import Pace
    from trimtab.store.project import Project

__all__ = ["Replay", "replay", "run_replay"]


@dataclass(frozen=True)
class Replay:
    """What is asked for."""

    data: Path
    options: InitOptions
    """Of the project that is made where there is none."""
    directory: Path = Path(".")
    model: str = ""
    tick: Span | None = None
    delay: Span | None = None
    pace: Pace | None = None
    """None: lockstep."""
    cron: bool = True
    schedule: str = ""
    attach: str = ""


def replay(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="CSV or Parquet file.", show_default=False)],
    label: Annotated[str, typer.Option(metavar="COL", help="Column to predict.", show_default="the project's")] = "",
    time: Annotated[
        str, typer.Option(metavar="COL", help="Column with each row's time; without it, the file's order.")
    ] = "",
    key: Annotated[list[str] | None, typer.Option(metavar="COLS", help="As for init.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="COLS", help="As for init.")] = None,
    include: Annotated[list[str] | None, typer.Option(metavar="COLS", help="As for init.")] = None,
    label_time: Annotated[str, typer.Option(metavar="COL", help="Column with the time its label became known.")] = "",
    task: Annotated[
        str, typer.Option(metavar="T", help="binary, multiclass or regression.", show_default="found")
    ] = "",
    positive: Annotated[str, typer.Option(metavar="V", help="As for init.")] = "",
    train_rows: Annotated[
        int, typer.Option(metavar="N", help="Train on the N oldest rows.", show_default="the oldest 30 %")
    ] = 0,
    until: Annotated[str, typer.Option(metavar="VALUE", help="Train on rows before this value of --time.")] = "",
    label_delay: Annotated[
        str, typer.Option(metavar="ROWS|DURATION", help='How late labels are: 500, or "6h".', show_default="at once")
    ] = "",
    tick: Annotated[
        str,
        typer.Option(
            metavar="ROWS|DURATION",
            help="Data time moves in steps of this.",
            show_default="1h with a time column, else 64 rows",
        ),
    ] = "",
    pace: Annotated[
        str,
        typer.Option(metavar="P", help="lockstep: rows wait for the trainer; max, or ROWS_PER_S: they do not."),
    ] = "lockstep",
    compare: Annotated[
        str, typer.Option(metavar="LIST", help="Baselines: frozen (always there), cron.")
    ] = "frozen,cron",
    schedule: Annotated[
        str,
        typer.Option(metavar="CRON", help="When the cron baseline retrains.", show_default="by the data's length"),
    ] = "",
    attach: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Only shadow a server that runs: no labels, no promotions.", show_default="none"
        ),
    ] = "",
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the report; FILE.html and FILE.png beside it.")
    ] = None,
    model: Model = "",
    directory: Directory = Path("."),
    as_json: Json = False,
) -> None:
    """Replay DATA through a server and a trainer of its own, and compare what was served with what would have been.

    Uses the project of -C if there is one, else makes one for the occasion as init and train would. Rows that were
    trained on are skipped. Before each tick of data time the labels that were known by then are sent and the trainer
    finishes; then the tick's rows are served. The project itself is not changed.

    \b
    Examples:
      trimtab replay flights.parquet --label late --time time --label-time label_time
      trimtab replay flights.parquet -C flights --report report.json
      trimtab replay clicks.csv --label clicked --label-delay 1000 --compare frozen
    """
    from trimtab.cli.init import InitOptions
    from trimtab.cli.output import Output
    from trimtab.cli.replay_plan import Span

    output = Output(as_json)
    delay = Span.parse(label_delay, "--label-delay") if label_delay else None
    options = InitOptions(
        label, time, names(key), names(exclude), names(include), label_time, task, positive, train_rows, until
    )
    asked = Replay(
        data,
        options,
        directory,
        model,
        Span.parse(tick, "--tick") if tick else None,
        delay,
        _pace(pace),
        _compare(compare),
        schedule,
        attach,
    )
    if report is not None:
        _check_report(report)
    with _terminated_as_interrupt():
        found = run_replay(asked, output)
    from trimtab.cli.replay_say import say, write_files

    written = write_files(found, report) if report is not None else []
    say(output, found, written)


def run_replay(asked: Replay, output: Output) -> dict[str, Any]:
    """Replays, and returns the report. Raises UserError and what its parts raise."""
    from trimtab.cli.replay_session import Session

    began = clock.monotonic()
    with tempfile.TemporaryDirectory(prefix="trimtab-replay-") as name:
        folder = Path(name)
        project, source = _project(asked, folder, output)
        return Session(asked, project, source, folder, output, began).run()


def _project(asked: Replay, folder: Path, output: Output) -> tuple[Project, Source]:
    """The project to replay with, its first version trained; and where the rows come from."""
    from trimtab.cli.errors import UsageError
    from trimtab.cli.history import data_path
    from trimtab.cli.replay_data import Source
    from trimtab.cli.replay_server import first_version
    from trimtab.store.project import PROJECT_FILE, Project

    data, options = str(asked.data.resolve()), asked.options
    if (asked.directory / PROJECT_FILE).exists():
        project = Project.load(asked.directory)
        settings = project.model(asked.model or None)
        if settings.takes_tensors:
            raise UsageError(f"model {settings.name!r} takes tensors, and cannot be retrained; replay needs columns")
        for flag, given, own in (
            ("--label", options.label, settings.label.column),
            ("--time", options.time, project.data.time),
            ("--task", options.task, settings.task),
        ):
            if given and given != own:
                raise UsageError(
                    f"{flag} {given!r}: the project in {asked.directory} has {own!r}; give another -C, or leave it out"
                )
        same = bool(project.data.path) and data_path(project).resolve() == Path(data)
        if first_version(project, settings.name) is None:
            raise UsageError(
                f"the project in {asked.directory} has no version yet; "
                f"`trimtab train -C {asked.directory}` makes the first"
            )
        return project, Source(data, same, asked.delay, options.label_time)
    if asked.directory != Path("."):
        raise UsageError(
            f"no {PROJECT_FILE} in {asked.directory}; `trimtab init` makes one, and without -C replay does so for the "
            "occasion"
        )
    if not options.label:
        raise UsageError("no trimtab.toml here, so --label is needed: the column to predict")
    source = Source(data, True, asked.delay, options.label_time)
    return _made(asked, source, folder / "project", output), source


def _made(asked: Replay, source: Source, directory: Path, output: Output) -> Project:
    """A project for the occasion, as init and train make one."""
    from dataclasses import replace

    from trimtab.cli.init import make_project
    from trimtab.cli.train import train_project

    delay_us = _delay_us(asked, source)
    project = make_project(asked.data, replace(asked.options, label_delay_us=delay_us), directory)
    output.note("no project here: made one for the occasion; training version 1")
    with output.progress("training version 1") as bar:

        def show(progress: Any) -> None:
            total = progress.trials * progress.epochs or None
            done = (progress.trial - 1) * progress.epochs + progress.epoch if progress.stage == "trial" else None
            bar.update(completed=done, total=total, text=progress.stage)

        train_project(project, show, label_delay_us=delay_us)
    return project


def _delay_us(asked: Replay, source: Source) -> int:
    """The label delay as time, for training: in rows, the time that so many rows before the cut took."""
    from trimtab.cli.history import cut_of
    from trimtab.cli.replay_plan import ROW_US
    from trimtab.cli.tables import open_table
    from trimtab.store.settings import DataSettings

    if asked.delay is None:
        return 0
    if not asked.delay.rows or not asked.options.time:
        return asked.delay.us or asked.delay.rows * ROW_US
    options = asked.options
    with open_table(source.path, time=options.time) as table:
        cut = cut_of(table, DataSettings(time=options.time, train_rows=options.train_rows, until=options.until))
        last = min(cut, table.rows - 1)
        return int(table.time_us[last] - table.time_us[max(last - asked.delay.rows, 0)])


def _pace(text: str) -> Pace:
    from trimtab.cli.errors import UsageError
    from trimtab.cli.replay_run import Pace

    if text in ("lockstep", "max"):
        return Pace(text == "lockstep")
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise UsageError(f"--pace: expected lockstep, max or a number of rows a second, got {text!r}")
    return Pace(False, speed)


def _compare(text: str) -> bool:
    """Whether the scheduled baseline is wanted."""
    from trimtab.cli.errors import UsageError

    wanted = [part for part in (part.strip() for part in text.split(",")) if part]
    for part in wanted:
        if part not in ("frozen", "cron"):
            raise UsageError(f"--compare: expected frozen, cron or both, got {part!r}")
    return "cron" in wanted


def _check_report(path: Path) -> None:
    """Says that the report cannot be written before the replay, not after it."""
    from trimtab.cli.errors import UsageError

    if path.suffix != ".json":
        raise UsageError(f"--report: expected a name that ends in .json, got {path}")
    if path.is_dir():
        raise UsageError(f"--report: {path} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the replay as Ctrl-C does: in order, with nothing left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
