"""`trimtab init`: profiles a data file and writes the project made of it – trimtab.toml, and report.html beside it.

`make_project` is what the command and `trimtab replay` share. Everything that was assumed is in the returned project
file, and listed by `assumptions`, each with the flag that changes it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from trimtab.cli.options import Json, names

if TYPE_CHECKING:
    from trimtab.cli.history import History
    from trimtab.cli.profile import Profile
    from trimtab.cli.roles import Role
    from trimtab.cli.target import Target
    from trimtab.store.project import Project

__all__ = ["InitOptions", "Made", "assumptions", "init", "make_project", "prepare_project"]

REPORT_FILE = "report.html"
_HORIZON_QUANTILE = 0.999
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class InitOptions:
    """What `init` and `replay` can be told about a data file."""

    label: str
    time: str = ""
    key: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    label_time: str = ""
    task: str = ""
    positive: str = ""
    train_rows: int = 0
    until: str = ""
    name: str = ""
    """Name of the model; empty: the file's."""
    label_delay_us: int = 0
    """How late labels are, where no column says so: what the label horizon must cover."""


@dataclass(frozen=True)
class Made:
    """A project that was made, and what it was made from."""

    project: Project
    target: Target
    roles: list[Role]
    profile: Profile
    rows: int
    cut: int
    was_sorted: bool
    assumptions: list[tuple[str, str, str]] = field(default_factory=list)
    """(what, what was assumed, how to change it)"""


def make_project(data: Path | str, options: InitOptions, directory: Path | str) -> Project:
    """Makes DIRECTORY with a trimtab.toml for this data and returns the project. Raises UserError, StoreError."""
    return prepare_project(data, options, directory).project


def prepare_project(
    data: Path | str,
    options: InitOptions,
    directory: Path | str,
    *,
    force: bool = False,
    report: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """As make_project, with all that was found; `report` writes report.html too. `progress` is told (rows done, of
    how many).

    Raises UserError, StoreError, OSError.
    """
    from trimtab.cli.errors import DataError, UsageError
    from trimtab.cli.history import History, cut_of, label_times
    from trimtab.cli.profile import profile
    from trimtab.cli.roles import assign
    from trimtab.cli.tables import open_table
    from trimtab.cli.target import detect
    from trimtab.store.files import write_atomic
    from trimtab.store.project import PROJECT_FILE, Project, render
    from trimtab.store.settings import DataSettings

    data, directory = Path(data), Path(directory)
    if (directory / PROJECT_FILE).exists() and not force:
        raise UsageError(f"{directory / PROJECT_FILE} is there already; --force replaces it")
    if options.train_rows and options.until:
        raise UsageError("--train-rows and --until exclude each other; give one")
    if options.train_rows < 0:
        raise UsageError(f"--train-rows: expected a number of rows, got {options.train_rows}")
    if options.until and not options.time:
        raise UsageError("--until needs --time")
    with open_table(data, time=options.time or None) as table:
        wanted = [options.label, options.time, options.label_time, *options.key, *options.exclude, *options.include]
        table.require(*filter(None, wanted))
        _check_roles(options)
        target = detect(table, options.label, options.task, options.positive)
        settings = DataSettings(time=options.time, train_rows=options.train_rows, until=options.until)
        cut = cut_of(table, settings)
        _check_cut(cut, table.rows, options)
        done = 0

        def tell(rows: int) -> None:
            nonlocal done
            done += rows
            if progress is not None:
                progress(done, 2 * table.rows)

        found = profile(table, target, cut, tell=tell)
        roles = assign(
            found,
            target,
            time=options.time,
            label_time=options.label_time,
            key=options.key,
            exclude=options.exclude,
            include=options.include,
        )
        if not any(role.use == "feature" for role in roles):
            raise DataError(f"no column of {data} is left to be a feature; bring some back with --include")
        history = History(table, cut, label_times(table, options.label_time, options.label_delay_us))
        text = render(_file(data, directory, options, target, roles, history))
        made = Made(Project.loads(text, directory), target, roles, found, table.rows, cut, table.was_sorted)
        made.assumptions.extend(assumptions(made, options, data))
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / PROJECT_FILE, text.encode())
        if report:
            from trimtab.cli.profile_report import render_report

            write_atomic(directory / REPORT_FILE, render_report(made, data).encode())
    return made


def _check_roles(options: InitOptions) -> None:
    from trimtab.cli.errors import UsageError

    label = options.label
    for flag, columns in (
        ("--time", (options.time,)),
        ("--label-time", (options.label_time,)),
        ("--key", options.key),
        ("--include", options.include),
        ("--exclude", options.exclude),
    ):
        if label in columns:
            raise UsageError(f"{flag}: {label!r} is the label")
    both = sorted(set(options.include) & set(options.exclude))
    if both:
        raise UsageError(f"{both[0]!r} is in --include and in --exclude")
    if options.label_time and options.label_time in options.include:
        raise UsageError(f"--include: {options.label_time!r} is when the label became known: after the event")


def _check_cut(cut: int, rows: int, options: InitOptions) -> None:
    from trimtab.cli.errors import DataError

    if cut < 1:
        raise DataError(
            f"no row lies before {options.until!r}; there is nothing to train on"
            if options.until
            else f"{rows} rows: too few to train on 30 % of them; give --train-rows"
        )


def _file(
    data: Path, directory: Path, options: InitOptions, target: Target, roles: list[Role], history: History
) -> dict[str, Any]:
    """The project file as a TOML parser would read it."""
    source: dict[str, Any] = {"path": _path_from(directory, data)}
    for key in ("time", "label_time", "train_rows", "until"):
        if getattr(options, key):
            source[key] = getattr(options, key)
    if not (options.train_rows or options.until):
        source["train_rows"] = history.cut
    horizon = _horizon(history, options)
    label: dict[str, Any] = {"column": target.column, "horizon": _duration(horizon)}
    if options.key:
        label["key"] = list(options.key)
    if not options.time:
        label["cohort"] = "64s"
    model: dict[str, Any] = {"name": options.name or model_name(data), "task": target.task}
    if target.classes:
        model["classes"] = list(target.classes)
    if target.task == "binary":
        model["positive"] = target.positive
    model["feature"] = [_feature(role) for role in roles if role.use == "feature"]
    model["label"] = label
    if 2 * horizon > 90 * _DAY_US:
        # Rows must outlive the wait for their labels.
        model["capture"] = {"max_age": _duration(2 * horizon)}
    every = _every_labels(history.table.rows - history.cut)
    if every is not None:
        model["retrain"] = {"every_labels": every}
    return {"data": source, "model": [model]}


def _feature(role: Role) -> dict[str, Any]:
    from trimtab.kernels.fit import default_transforms

    chain = default_transforms(role.type, role.distinct)  # type: ignore[arg-type]  # roles give field types only
    return {"name": role.column, "type": role.type, "transforms": [transform.to_toml() for transform in chain]}


def model_name(data: Path) -> str:
    """A model's name from a file's: what a request can carry and a folder be called."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", data.name.partition(".")[0]).strip("-.")[:64]
    return name if name and name[0].isalnum() else f"model-{name}".rstrip("-")


def _path_from(directory: Path, data: Path) -> str:
    """Relative to the project where both lie in one folder tree, so that the tree can be moved; else absolute."""
    here, there = directory.resolve(), data.resolve()
    near = there.is_relative_to(here.parent) and here.parent != Path(here.anchor)
    return os.path.relpath(there, here) if near else str(there)


def _horizon(history: History, options: InitOptions) -> int:
    """How long after its row a label may come: what 99.9 % of them needed, rounded up to a duration people use."""
    import numpy as np

    if not options.label_time:
        return max(_round_up(options.label_delay_us), 30 * _DAY_US)
    delays = history.label_us - history.table.time_us
    known = delays[history.label_us != np.iinfo(np.int64).max]
    if len(known) == 0:
        return 30 * _DAY_US
    return _round_up(int(np.quantile(known, _HORIZON_QUANTILE)))


def _every_labels(rows: int) -> int | None:
    """Labels between two refreshes where the default would give the `rows` after training few or none; else None.

    About twenty refreshes, and none on fewer than 50 labels.
    """
    from trimtab.store.settings import RetrainSettings

    every = max(rows // 20, 50)
    return every if every < RetrainSettings().every_labels else None


def _round_up(us: int) -> int:
    minute, hour = 60_000_000, 3_600_000_000
    unit = 5 * minute if us < hour else hour if us < 2 * _DAY_US else _DAY_US
    return max(-(-us // unit), 1) * unit


def _duration(us: int) -> str:
    from trimtab.store.durations import format_duration

    return format_duration(us)


def assumptions(made: Made, options: InitOptions, data: Path) -> list[tuple[str, str, str]]:
    """(what, what was assumed, how to change it), for people."""
    from trimtab.store.durations import format_duration

    project, target = made.project, made.target
    model = project.model()
    order = f"sorted by {options.time!r}" if options.time else "the file's own order: no --time was given"
    if options.time and made.was_sorted:
        order = f"by {options.time!r}; the file is in that order"
    task = f"{target.task} ({target.why})"
    rows = [("order", order, "--time COL"), ("task", task, "--task T")]
    if target.task == "binary":
        rows.append(("positive class", f"{target.positive!r}; the other is {target.classes[0]!r}", "--positive V"))
    if target.missing:
        rows.append(("rows without a label", f"{target.missing:,} left out", "model.label absent_means"))
    until = f" (before {options.until})" if options.until else ""
    share = made.cut / made.rows
    rows.append(
        (
            "training rows",
            f"the oldest {made.cut:,} of {made.rows:,}, {share:.0%}{until}",
            "--train-rows N, --until VALUE",
        )
    )
    of_type: dict[str, int] = {}
    for role in made.roles:
        if role.use == "feature":
            of_type[role.type] = of_type.get(role.type, 0) + 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in of_type.items())
    rows.append(("features", f"{len(model.features)}: {kinds}", "--exclude COLS"))
    for role in made.roles:
        if role.use == "excluded" and role.kind != "asked":
            rows.append(
                (f"excluded {role.column}", role.reason, f"--include {role.column}" if role.kind != "type" else "")
            )
    for role in made.roles:
        if role.hint:
            rows.append((f"check {role.column}", f"a feature, but {role.hint}", f"--exclude {role.column}"))
    rows.append(("key", ", ".join(options.key) or "none: labels come by request id", "--key COLS"))
    known = f"column {options.label_time!r}" if options.label_time else "at once"
    if not options.label_time and options.label_delay_us:
        known = f"{format_duration(options.label_delay_us)} after its row"
    rows.append(("label is known", known, "--label-time COL"))
    rows.append(("label horizon", format_duration(model.label.horizon), "model.label horizon"))
    rows.append(("refresh", f"every {model.retrain.every_labels:,} matured rows", "model.retrain every_labels"))
    return rows


def init(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="CSV or Parquet file.", show_default=False)],
    label: Annotated[str, typer.Option(metavar="COL", help="Column to predict.", show_default=False)],
    time: Annotated[
        str, typer.Option(metavar="COL", help="Column with each row's time; without it, the file's order.")
    ] = "",
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="COLS", help="Columns that identify a row when its label comes; not features."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="COLS", help="Columns that must not be features.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="COLS", help="Columns that must be features, however suspicious.")
    ] = None,
    label_time: Annotated[str, typer.Option(metavar="COL", help="Column with the time its label became known.")] = "",
    task: Annotated[
        str, typer.Option(metavar="T", help="binary, multiclass or regression.", show_default="found")
    ] = "",
    positive: Annotated[
        str, typer.Option(metavar="V", help="Label value whose probability a binary model gives.")
    ] = "",
    train_rows: Annotated[
        int, typer.Option(metavar="N", help="Train on the N oldest rows.", show_default="the oldest 30 %")
    ] = 0,
    until: Annotated[str, typer.Option(metavar="VALUE", help="Train on rows before this value of --time.")] = "",
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the model.", show_default="the file's")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a trimtab.toml that is there.")] = False,
    directory: Annotated[
        Path, typer.Option("-C", metavar="DIR", help="Folder to make the project in.", show_default="here")
    ] = Path("."),
    as_json: Json = False,
) -> None:
    """Profile DATA and make a project of it: DIR/trimtab.toml, commented, and DIR/report.html.

    Rows are brought into the order of --time. Columns that look like ids, that alone give the label away, or that are
    known only after the event are left out and named; --include brings them back. COLS: one name, or several with
    commas.

    \b
    Examples:
      trimtab init flights.parquet --label late --time time --label-time label_time -C flights
      trimtab init loans.csv --label default --positive yes --time opened --until 2024-01-01 -C loans
      trimtab init meters.csv --label kwh --task regression --exclude note,operator

    Next: trimtab train.
    """
    from trimtab.cli.output import Output

    output = Output(as_json)
    options = InitOptions(
        label, time, names(key), names(exclude), names(include), label_time, task, positive, train_rows, until, name
    )
    with output.progress(f"profiling {data.name}") as bar:
        made = prepare_project(
            data,
            options,
            directory,
            force=force,
            report=True,
            progress=lambda completed, total: bar.update(completed=completed, total=total),
        )
    _say(output, made, options, directory)


def _say(output: Any, made: Made, options: InitOptions, directory: Path) -> None:
    target = made.target
    if not options.time:
        output.note("no --time: taking the file's order as the order of time")
    output.table(
        ("assumed", "", "to change"), made.assumptions, title=f"{made.project.model().name}: {made.rows:,} rows"
    )
    here = f" -C {directory}" if directory != Path(".") else ""
    output.say(f"wrote {directory / 'trimtab.toml'} and {directory / REPORT_FILE}")
    output.say(f"next: trimtab train{here}")
    output.result(
        {
            "project": str((directory / "trimtab.toml").resolve()),
            "report": str((directory / REPORT_FILE).resolve()),
            "model": made.project.model().name,
            "rows": made.rows,
            "training_rows": made.cut,
            "time": options.time or None,
            "label": target.column,
            "task": target.task,
            "classes": list(target.classes),
            "positive": target.positive or None,
            "label_rows": dict(target.counts),
            "label_missing": target.missing,
            "features": [{"name": r.column, "type": r.type, "hint": r.hint} for r in made.roles if r.use == "feature"],
            "excluded": [
                {"name": r.column, "why": r.kind, "reason": r.reason} for r in made.roles if r.use == "excluded"
            ],
            "keys": list(options.key),
            "horizon_seconds": made.project.model().label.horizon / 1e6,
            "assumptions": [{"what": a, "assumed": b, "change": c} for a, b, c in made.assumptions],
            "next": f"trimtab train{here}",
        }
    )
