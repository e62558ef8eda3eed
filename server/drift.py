"""Drift windows, off the hot path: what the compute thread closed is compared here, on a thread of its own.

The compute thread counts rows into the open window's sketch and hands a full one over (`put`), at the end of a batch,
so that the same batches make the same windows. The thread compares it with the reference of the version that served,
appends the report to drift.jsonl (and, at 64 MiB, starts a new file, keeping one old one), keeps the newest in memory,
and passes it to `on_window` on the loop. With `sliding` windows it is the sum of the newest ones that is compared:
sketches merge, so no row is counted twice; after a restart, and for another reference, sums begin anew. Every closed
window takes the next number and its sketch is kept on disk (store/kept_windows.py); one with fewer rows than are to be
compared has no report. The window that is open is saved there too, and the next server goes on with it. `settled`
returns when everything put before has gone that way: whoever sends commands to the trainer afterwards sends them behind
its drift windows.

The monitor's state (windows in a row) survives a restart in drift_monitor.json. A version with another reference
starts a new count; fine-tunes inherit their parent's.

What windows are compared with is a pinned sketch (store/pins.py), where it is of the same columns; else, with
[model.drift] reference = "7d", the sum of the kept windows that lie so much earlier, where there are some with enough
rows; else the training data of the version that served. Another kind of reference starts a new count. A pin that the
live version makes useless stays, for a version that it fits; an event says so when that begins and ends.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path

from trimtab.kernels.drift import JOINT, DriftMonitor, DriftWindow
from trimtab.kernels.errors import KernelError
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import SketchSpec
from trimtab.models.version import LoadedVersion
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.events import EventBus
from trimtab.server.keeping import ClosedWindow, OpenWindow
from trimtab.store.durations import format_duration
from trimtab.store.errors import StoreError
from trimtab.store.files import append_line, read_lines, write_atomic
from trimtab.store.kept_windows import KeptWindow, WindowFolder
from trimtab.store.pins import Pin, PinFile, check_fit
from trimtab.store.priority import yield_to_others
from trimtab.store.settings import TRAINING, DriftSettings

__all__ = ["DriftWatch", "report_of"]

_log = logging.getLogger(__name__)
_KEEP = 1000
_FILE_BYTES = 64 << 20
_REFERENCE = "reference.arrow"
_EARLIER = " earlier"
"""How the name of a season's windows ends."""
_NAMES = {"ks": "kolmogorov_smirnov"}


class DriftWatch:
    """One model's drift. See the module."""

    def __init__(
        self,
        model: str,
        path: Path,
        settings: DriftSettings,
        events: EventBus,
        on_window: Callable[[pb.DriftReport], None],
    ) -> None:
        """`on_window` is called on the running loop with each report, in order."""
        self._model = model
        self._path = path
        self._state_path = path.with_name("drift_monitor.json")
        self._settings = settings
        self._events = events
        self._on_window = on_window
        self._loop = asyncio.get_running_loop()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._reports: deque[pb.DriftReport] = deque(_read(model, path), maxlen=_KEEP)
        self._folder = WindowFolder(path.with_name("drift"), settings.keep_windows)
        numbers = [*(report.window for report in self._reports), *self._folder.numbers()]
        self._number = max(numbers, default=0)
        self._pins = PinFile(self._folder.directory)
        self.pinned = self._pins.read()
        """What windows are compared with where it fits; None: the training data. Replaced by the thread."""
        self._fits = True
        self.opened = self._open_window()
        """The window that an earlier server left open."""
        self._monitor: DriftMonitor | None = None
        self._key = self._own = ""
        self._panes: deque[ClosedWindow] = deque(maxlen=settings.sliding)
        self._alarmed: tuple[str, ...] = ()
        self.failures = 0
        """Windows that could not be compared or recorded."""
        self._thread = threading.Thread(target=self._run, name=f"trimtab-drift-{model}", daemon=True)
        self._thread.start()

    @property
    def alarms(self) -> int:
        """Features that alarm in the newest window."""
        newest = self.newest
        return newest.alarms if newest is not None else 0

    @property
    def newest(self) -> pb.DriftReport | None:
        """The report on the newest closed window."""
        return self._reports[-1] if self._reports else None

    def reports(self, count: int) -> list[pb.DriftReport]:
        """The newest `count` reports, newest last."""
        return list(self._reports)[-count:]

    def put(self, window: ClosedWindow) -> None:
        """Takes a closed window over. From any thread; returns at once."""
        self._tasks.put(lambda: self._observe(window))

    def save(self, window: OpenWindow) -> None:
        """Keeps the open window for the next server. From any thread; returns at once."""
        self._tasks.put(lambda: self._save(window))

    def serving(self, version: LoadedVersion) -> None:
        """This version is live. From any thread; returns at once."""
        self._tasks.put(lambda: self._check_pin(version))

    async def pin(self, choose: Callable[[WindowFolder], Pin] | None, version: LoadedVersion) -> Pin | None:
        """Compares windows with what `choose` makes of the kept ones from now on, lastingly; None: with the training
        data. `version` is the one that it has to fit. Windows that were put before are compared before. Raises
        StoreError, KernelError."""
        done: Future[Pin | None] = Future()

        def task() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(self._pin(choose, version))
            except Exception as error:
                done.set_exception(error)

        self._tasks.put(task)
        return await asyncio.wrap_future(done)

    async def settled(self) -> None:
        """Returns when all windows put so far are recorded and were passed to `on_window`."""
        done: Future[None] = Future()
        self._tasks.put(lambda: done.set_result(None))
        await asyncio.wrap_future(done)
        # on_window was called through the loop: so was this future, behind it.

    def close(self) -> None:
        """Deals with what was put, and ends the thread."""
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        yield_to_others()
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception as error:
                # A window that cannot be compared or written is lost; serving and the next window are not.
                self.failures += 1
                _log.error("model %s: drift window lost: %s", self._model, error)

    def _open_window(self) -> OpenWindow | None:
        if not self._settings.window:
            return None
        found = self._folder.read_open(self._settings.window, self._number)
        return None if found is None else OpenWindow(*found)

    def _save(self, window: OpenWindow) -> None:
        try:
            self._folder.save_open(window.sketch, window.start_us, window.end_us, self._number)
        except StoreError as error:
            _log.warning("model %s: the open drift window is not saved: %s", self._model, error)

    def _keep(self, closed: ClosedWindow) -> None:
        self._number += 1
        kept = KeptWindow(self._number, closed.start_us, closed.end_us, closed.sketch.rows, closed.version.number)
        try:
            self._folder.add(kept, closed.sketch)
            if self._settings.window:
                self._folder.drop_open()
        except StoreError as error:
            _log.error("model %s: drift window %d is not kept: %s", self._model, self._number, error)

    def _observe(self, closed: ClosedWindow) -> None:
        self._keep(closed)
        monitor = self._monitor_for(closed.version)
        self._panes.append(closed)
        sketch = _merged(self._panes)
        if sketch.rows < self._settings.least_rows:
            return
        monitor.windows = self._number - 1
        start_us = min(pane.start_us for pane in self._panes)
        end_us = max(pane.end_us for pane in self._panes)
        name = self._compared_with(closed.version)[1]
        season = self._season(sketch.spec) if name == TRAINING else None
        if season is not None:
            name = season[1]
        newest = self.newest
        if newest is not None and newest.reference.endswith(_EARLIER) != (season is not None):
            monitor.begin_anew()
        window = monitor.observe(sketch, start_us, end_us, closed.version.scores, season[0] if season else None)
        window = replace(window, reference=name)
        report = report_of(self._model, window)
        self._reports.append(report)
        self._tell(window, closed.version.number)
        try:
            self._loop.call_soon_threadsafe(self._on_window, report)
        except RuntimeError:
            # The loop is closed; drift.jsonl keeps the window.
            _log.debug("no loop to report drift to")
        if self._path.exists() and self._path.stat().st_size > _FILE_BYTES:
            self._path.replace(self._path.with_suffix(".jsonl.1"))
        append_line(self._path, window.to_json())
        write_atomic(self._state_path, monitor.to_json().encode())

    def _compared_with(self, version: LoadedVersion) -> tuple[Sketch, str]:
        """What windows of this version are compared with, and what that is called."""
        pin = self.pinned
        if pin is not None and pin.sketch.spec.hash == version.reference.spec.hash:
            return pin.sketch, pin.origin
        return version.reference, TRAINING

    def _season(self, spec: SketchSpec) -> tuple[Sketch, str] | None:
        """What there is of the season before the newest panes, and what that is called."""
        season = self._settings.season
        if not season:
            return None
        total, numbers, oldest = Sketch(spec), [], 0
        begins = min(pane.start_us for pane in self._panes)
        for pane, back in itertools.product(self._panes, range(1, self._settings.seasons + 1)):
            for kept in self._folder.between(pane.start_us - back * season, pane.end_us - back * season):
                if kept.number in numbers or kept.end_us > begins:
                    continue  # panes that lie a season apart share it, or are it
                try:
                    sketch = self._folder.load(kept.number)[1]
                except StoreError as error:
                    _log.warning("model %s: %s", self._model, error)
                    continue
                if sketch.spec.hash == spec.hash:
                    total.merge(sketch)
                    numbers.append(kept.number)
                    oldest = max(oldest, back)
        if total.rows < self._settings.least_rows:
            return None
        what = f"window {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} windows"
        since = f"{format_duration(season)}{f' to {format_duration(oldest * season)}' if oldest > 1 else ''}"
        return total, f"{what}, {since}{_EARLIER}"

    def _monitor_for(self, version: LoadedVersion) -> DriftMonitor:
        own = version.manifest.files.get(_REFERENCE, "")
        reference, name = self._compared_with(version)
        if own != self._own:
            self._panes.clear()
        key = own if name == TRAINING else ""
        if self._monitor is None or key != self._key:
            self._monitor = self._restored(reference) if self._monitor is None else None
            if self._monitor is None:
                settings = self._settings
                self._monitor = DriftMonitor(
                    reference,
                    settings.alpha,
                    settings.min_effect,
                    settings.persistence,
                    settings.joint_min_effect,
                )
        self._own, self._key = own, key
        return self._monitor

    def _pin(self, choose: Callable[[WindowFolder], Pin] | None, version: LoadedVersion) -> Pin | None:
        pin = None if choose is None else choose(self._folder)
        if pin is None:
            self._pins.remove()
        else:
            check_fit(pin, version.reference.spec, version.number)
            pin = self._pins.write(pin)
        self.pinned, self._fits = pin, True
        self._monitor = None
        self._state_path.unlink(missing_ok=True)
        self._alarmed = ()
        what = "the training data" if pin is None else f"{pin.origin} ({pin.rows:,} rows)"
        numbers = {"rows": float(pin.rows)} if pin is not None else {}
        message = f"drift windows are compared with {what} from now on"
        self._events.publish("pinned", self._model, message, version=version.number, numbers=numbers)
        return pin

    def _check_pin(self, version: LoadedVersion) -> None:
        pin = self.pinned
        fits = pin is None or pin.sketch.spec.hash == version.reference.spec.hash
        if pin is not None and fits != self._fits:
            message = f"version {version.number} is compared with the pinned drift reference ({pin.origin}) again"
            if not fits:
                message = (
                    f"the pinned drift reference ({pin.origin}) is of other columns than version {version.number}, "
                    "which is compared with its own training data"
                )
            self._events.publish("note", self._model, message, version=version.number)
        self._fits = fits

    def _restored(self, reference: Sketch) -> DriftMonitor | None:
        """The monitor as the last server left it, if it was of this reference and these settings."""
        try:
            monitor = DriftMonitor.from_json(self._state_path.read_text("utf-8"), reference)
        except (OSError, ValueError, KernelError):
            return None
        settings = self._settings
        same = (settings.alpha, settings.min_effect, settings.persistence, settings.joint_min_effect) == (
            monitor.alpha,
            monitor.min_effect,
            monitor.persistence,
            monitor.joint_min_effect,
        )
        return monitor if same else None

    def _tell(self, window: DriftWindow, version: int) -> None:
        """An event when the set of features that alarm changes, not for every window in which it stays the same."""
        alarms = window.alarms
        if alarms and alarms != self._alarmed:
            effects = {feature.feature: feature.effect for feature in window.features if feature.alarm}
            parts, in_a_row = [], self._settings.persistence
            if effects:
                largest = ", ".join(sorted(effects, key=lambda name: -effects[name])[:8])
                parts.append(f"{len(effects)} features have drifted for {in_a_row} windows: {largest}")
            if JOINT in alarms and window.joint is not None:
                effects[JOINT] = window.joint.effect
                parts.append(f"the columns together have drifted for {in_a_row} windows")
            message = "; ".join(parts)
            self._events.publish("drift", self._model, message, version=version, numbers=effects)
        self._alarmed = alarms


def _merged(panes: Sequence[ClosedWindow]) -> Sketch:
    if len(panes) == 1:
        return panes[0].sketch
    total = Sketch(panes[-1].sketch.spec)
    for pane in panes:
        total.merge(pane.sketch)
    return total


def report_of(model: str, window: DriftWindow) -> pb.DriftReport:
    """A window as the protocol has it, largest effect first."""
    report = pb.DriftReport(
        model_name=model,
        window=window.window,
        start_us=window.start_us,
        end_us=window.end_us,
        rows=window.rows,
        reference_rows=window.reference_rows,
        alarms=len(window.alarms),
        reference=window.reference or TRAINING,
    )
    if (found := window.estimate) is not None:
        report.estimate.CopyFrom(
            pb.LossEstimate(
                loss=found.loss,
                standard_error=found.standard_error,
                evaluated_loss=found.evaluated_loss,
                p_value=found.p_value,
                auc=found.auc,
            )
        )
    if window.joint is not None:
        report.joint.CopyFrom(pb.JointDrift(**asdict(window.joint)))
    for feature in sorted(window.features, key=lambda feature: -feature.effect):
        report.features.add(
            feature=feature.feature,
            missing_rate=feature.missing_rate,
            reference_missing_rate=feature.reference_missing_rate,
            unseen_rate=feature.unseen_rate,
            adjusted_p_value=feature.adjusted_p_value,
            persistence=feature.persistence,
            alarm=feature.alarm,
            statistics=[
                pb.DriftStatistic(
                    name=_NAMES.get(statistic.name, statistic.name),
                    value=statistic.value,
                    effect=statistic.effect,
                    p_value=statistic.p_value,
                )
                for statistic in feature.statistics
            ],
        )
    return report


def _read(model: str, path: Path) -> list[pb.DriftReport]:
    """The newest reports of an earlier server. A line that cannot be read is passed over: it informs, it does not
    decide."""
    reports = []
    try:
        lines = read_lines(path)[-_KEEP:]
    except StoreError as error:
        _log.warning("model %s: %s", model, error)
        return []
    for line in lines:
        try:
            reports.append(report_of(model, DriftWindow.from_json(line.decode())))
        except (KernelError, ValueError):
            _log.warning("model %s: a line of %s cannot be read", model, path.name)
    return reports
