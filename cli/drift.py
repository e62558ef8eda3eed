"""`trimtab drift`: windows of served rows against the training data, from the running server or from state/; or, given
files, one against the other (cli/drift_run.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from trimtab.cli.errors import UsageError
from trimtab.cli.options import Directory, Json, Model

if TYPE_CHECKING:
    from trimtab.client import Drift, DriftFeature, LossEstimate
    from trimtab.store.project import Project
    from trimtab.store.settings import DriftSettings

__all__ = ["drift"]

_SHOWN = 20
_NAMES = {"ks": "kolmogorov_smirnov"}


def drift(
    reference: Annotated[
        Path | None, typer.Argument(metavar="REFERENCE", help="CSV or Parquet file.", show_default=False)
    ] = None,
    current: Annotated[
        Path | None, typer.Argument(metavar="CURRENT", help="File to compare with it.", show_default=False)
    ] = None,
    windows: Annotated[int, typer.Option("--windows", metavar="N", min=1, help="How many closed windows to show.")] = 1,
    everything: Annotated[bool, typer.Option("--all", help=f"All features, not the {_SHOWN} largest effects.")] = False,
    columns: Annotated[
        list[str] | None, typer.Option("--columns", metavar="COLS", help="Files: compare only these columns.")
    ] = None,
    time: Annotated[str, typer.Option("--time", metavar="COL", help="Files: column with each row's time.")] = "",
    window: Annotated[
        str, typer.Option("--window", metavar="T", help="Files: current rows in windows of this length, such as 7d.")
    ] = "",
    until: Annotated[
        str,
        typer.Option(
            "--until",
            metavar="TIME",
            help="One file: its rows before this are the reference.",
            show_default="the middle of its times",
        ),
    ] = "",
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Files: write a report.", show_default=False)
    ] = None,
    mode: Annotated[
        Literal["trimtab", "evidently"],
        typer.Option("--mode", metavar="M", help="Files: trimtab, or evidently for its tests and thresholds."),
    ] = "trimtab",
    alpha: Annotated[
        float, typer.Option("--alpha", metavar="P", min=0.0, max=1.0, help="Files: false discovery rate.")
    ] = 0.01,
    min_effect: Annotated[
        float, typer.Option("--min-effect", metavar="PSI", min=0.0, help="Files: least effect that counts.")
    ] = 0.1,
    pin: Annotated[
        str,
        typer.Option(
            "--pin",
            metavar="WHAT",
            help="Compare windows with WHAT from now on: a window's number, a range such as 3-9, a sketch file, an "
            "artifact in MLflow (runs:/ID/reference.arrow, models:/NAME@champion), or training.",
        ),
    ] = "",
    model: Model = "",
    directory: Directory = Path("."),
    as_json: Json = False,
) -> None:
    """Show how what is served differs from what the model was trained on: the newest closed windows, largest effect
    first. With files: how CURRENT differs from REFERENCE, without a project or server.

    Effects do not grow with the number of rows; p-values are adjusted for looking at all features
    (Benjamini-Hochberg). An alarm needs a small p-value and a large effect in several windows in a row
    ([model.drift]). Drift informs; whether the model suffers is what realised quality says. Works without a server
    too, from what lies in state/.

    Files may be larger than memory: they are streamed, and only counts are kept. One file with --time is cut in two.
    The report opens without a network.

    --pin chooses what closed windows are compared with in place of the training data, lastingly: kept windows, or a
    version's reference.arrow, of columns fitted alike. The count of windows in a row begins anew.

    \b
    Examples:
      trimtab drift -C flights
      trimtab drift --windows 10 --all --json
      trimtab drift --pin 3-9
      trimtab drift --pin models:/flights@champion
      trimtab drift --pin training
      trimtab drift january.parquet june.csv --html report.html
      trimtab drift train.csv served.csv --time time --window 7d --columns age,income
      trimtab drift flights.parquet --time time --until 2013-07-01 --window 7d --html report.html
      trimtab drift january.parquet june.csv --mode evidently
    """
    if reference is not None:
        from trimtab.cli.drift_run import FileOptions, drift_of_files
        from trimtab.cli.options import names
        from trimtab.cli.output import Output

        if model or windows != 1 or pin:
            raise UsageError("--model, --windows and --pin are about a served model and do not go with files")
        options = FileOptions(
            reference, current, names(columns), time, window, until, html, mode, alpha, min_effect, everything
        )
        drift_of_files(options, Output(as_json))
        return
    if columns or time or window or until or html or mode != "trimtab":
        raise UsageError("--columns, --time, --window, --until, --html and --mode go with files: REFERENCE CURRENT")
    if pin:
        from trimtab.cli.drift_pin import pin_reference
        from trimtab.cli.output import Output
        from trimtab.store.project import Project

        project = Project.load(directory)
        pin_reference(project, project.model(model or None).name, pin, Output(as_json))
        return
    _of_model(directory, model, windows, everything, as_json)


def _of_model(directory: Path, model: str, windows: int, everything: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from trimtab.cli.drift_pin import as_json as pin_as_json
    from trimtab.cli.drift_pin import pinned, told
    from trimtab.cli.drift_values import tell_joint
    from trimtab.cli.output import Output, when
    from trimtab.store.project import Project

    output = Output(as_json)
    project = Project.load(directory)
    settings = project.model(model or None)
    found, running = _reports(project, settings.name, windows)
    pin = pinned(project, settings.name)
    if pin is not None:
        output.say(f"pinned: windows are compared with {told(pin)}, where its columns are the live version's")
    if not found:
        output.say(
            f"no window is closed yet: a window has {_length(settings.drift)}"
            if settings.drift.enabled
            else "drift is switched off: [model.drift] enabled"
        )
    for window in found:
        shown = window.features if everything else window.features[:_SHOWN]
        rest = len(window.features) - len(shown)
        output.table(
            ("feature", "PSI", "JS", "KS", "W1", "χ² p", "adjusted p", "missing", "was", "unseen", "windows", ""),
            [_row(feature) for feature in shown],
            title=(
                f"{window.model} window {window.window}: {window.rows:,} rows, {when(window.start_us)} to "
                f"{when(window.end_us)}, against {window.reference}, {window.alarms} alarms"
                + (f" ({rest} more features: --all)" if rest else "")
            ),
            right=("PSI", "JS", "KS", "W1", "χ² p", "adjusted p", "missing", "was", "unseen", "windows"),
        )
        if window.joint is not None:
            output.say(tell_joint(window.joint))
        if window.estimate is not None:
            output.say(_estimated(window.estimate))
    output.result(
        {
            "model": settings.name,
            "server": running,
            "pin": pin_as_json(pin),
            "windows": [asdict(window) for window in found],
        }
    )


def _length(drift: DriftSettings) -> str:
    from trimtab.store.durations import format_duration

    if drift.window:
        return f"{format_duration(drift.window)} of data time, and at least {drift.least_rows:,} served rows"
    return f"{drift.window_rows:,} served rows"


def _estimated(found: LossEstimate) -> str:
    from trimtab.cli.output import number

    auc = f", AUC {number(found.auc, 3)}" if found.auc is not None else ""
    return (
        f"expected without labels: loss {number(found.loss, 4)} ± {number(found.standard_error, 2)}{auc}; "
        f"{number(found.evaluated_loss, 4)} when it was evaluated (p {number(found.p_value, 2)}). "
        "It cannot see that inputs mean something else than they did: labels tell."
    )


def _row(feature: DriftFeature) -> tuple[object, ...]:
    from trimtab.cli.output import number

    by_name = {measure.name: measure for measure in feature.measures}

    def value(name: str) -> str:
        return number(by_name[name].value, 3) if name in by_name else "–"

    chi = by_name.get("chi_square")
    return (
        feature.feature,
        value("psi"),
        value("jensen_shannon"),
        value("kolmogorov_smirnov"),
        value("wasserstein"),
        number(chi.p_value, 3) if chi else "–",
        number(feature.adjusted_p_value, 3),
        f"{feature.missing_rate:.1%}",
        f"{feature.reference_missing_rate:.1%}",
        f"{feature.unseen_rate:.1%}",
        feature.persistence,
        "alarm" if feature.alarm else "",
    )


def _reports(project: Project, model: str, windows: int) -> tuple[list[Drift], bool]:
    """The newest windows, newest last, and whether a server gave them."""
    from trimtab.cli.running import server_of
    from trimtab.client import Client, Unavailable

    server = server_of(project)
    if server is not None:
        try:
            with Client(server.admin, model=model, retries=1) as client:
                return client.drift(windows), True
        except Unavailable:
            pass  # it was killed, and left its file behind
    return _from_disk(project, model, windows), False


def _from_disk(project: Project, model: str, windows: int) -> list[Drift]:
    from dataclasses import asdict

    from trimtab.client import Drift, DriftFeature, DriftMeasure, JointDrift, LossEstimate
    from trimtab.kernels.drift import DriftWindow
    from trimtab.store.files import read_lines

    path = project.model_state(model).drift
    if not path.exists():
        return []
    found = []
    for line in read_lines(path)[-windows:]:
        window = DriftWindow.from_json(line.decode())
        features = tuple(
            DriftFeature(
                feature.feature,
                # One statistic is called by its short name on disk.
                tuple(
                    DriftMeasure(_NAMES.get(one.name, one.name), one.value, one.effect, one.p_value)
                    for one in feature.statistics
                ),
                feature.missing_rate,
                feature.reference_missing_rate,
                feature.unseen_rate,
                feature.adjusted_p_value,
                feature.persistence,
                feature.alarm,
            )
            for feature in sorted(window.features, key=lambda feature: -feature.effect)
        )
        found.append(
            Drift(
                model,
                window.window,
                window.start_us,
                window.end_us,
                window.rows,
                window.reference_rows,
                len(window.alarms),
                features,
                LossEstimate(**asdict(window.estimate)) if window.estimate is not None else None,
                window.reference or "training",
                JointDrift(**asdict(window.joint)) if window.joint is not None else None,
            )
        )
    return found
