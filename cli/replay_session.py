"""One replay from start to report: the frozen predictions, the scheduled baseline beside, the server, the loop, the
checks. Owns the processes and the temporary folder's contents; everything ends in the reverse order, also on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from trimtab.cli.errors import UserError
from trimtab.cli.replay_checks import drift_windows, joined_labels, mixed_answers, predictions_of, version_rows
from trimtab.cli.replay_data import Source, Stream, open_stream
from trimtab.cli.replay_plan import NEVER, Plan, plan_ticks, tick_of
from trimtab.cli.replay_process import Child
from trimtab.cli.replay_progress import Happenings, ReplayProgress
from trimtab.cli.replay_report import Cost, build_report, scored_sides
from trimtab.cli.replay_run import Pace, Played, play
from trimtab.cli.replay_server import ReplayServer, first_version, isolated_copy
from trimtab.client.admin import AdminClient
from trimtab.client.errors import ClientError
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore
from trimtab.trainer.fit import one_thread

if TYPE_CHECKING:
    from trimtab.cli.output import Output
    from trimtab.cli.replay import Replay

__all__ = ["Session", "schedule_for"]

_DAY_US = 86_400_000_000


class Session:
    """See the module."""

    def __init__(
        self, asked: Replay, project: Project, source: Source, folder: Path, output: Output, began: float
    ) -> None:
        self._asked, self._source, self._folder, self._output, self._began = asked, source, folder, output, began
        settings = project.model(asked.model or None)
        number = first_version(project, settings.name)
        assert number is not None  # looked for, or trained, before
        self._number = number
        self._copy = isolated_copy(project, settings.name, number, folder / "served")
        self._paths = self._copy.model_state(settings.name)
        self._stream = open_stream(self._copy, source)
        self._schedule = asked.schedule or schedule_for(self._stream)
        self._tick = tick_of(asked.tick, timed=self._stream.timed, delay=asked.delay)

    def run(self) -> dict[str, Any]:
        """The report. Raises UserError, StoreError, ModelError."""
        stream, rows = self._stream, np.arange(self._stream.start, len(self._stream))
        plan = plan_ticks(stream.time_us[stream.start :], _known(stream), self._tick)
        with one_thread():
            frozen = predictions_of(VersionStore(self._paths.versions), self._number, stream.slab, rows)
        with contextlib.ExitStack() as stack:
            cron = stack.enter_context(_Cron(self)) if self._asked.cron else None
            if self._asked.attach:
                played, seconds, cpu = self._shadow(plan, frozen, cron)
            else:
                played, seconds, cpu = self._serve(plan, frozen, cron)
            scheduled = cron.result(self._output) if cron is not None else None
        return self._report(plan, played, frozen, scheduled, cron, seconds, cpu)

    def _serve(self, plan: Plan, frozen: NDArray[np.float32], cron: _Cron | None) -> tuple[Played, float, float | None]:
        pace = self._asked.pace or Pace()
        with ReplayServer(self._copy) as server:
            try:
                played, seconds = self._play(plan, frozen, cron, server.running.grpc, server.running.admin, pace)
                with AdminClient(server.running.admin) as admin:
                    status = admin.status().trainer
            except (UserError, ClientError) as error:
                raise UserError(f"{error}; {server.words()}") from None
        if played.advances and not status.pid:
            raise UserError(f"the replay's trainer did not run: {status.last_error or server.words()}")
        return played, seconds, status.cpu_seconds

    def _shadow(
        self, plan: Plan, frozen: NDArray[np.float32], cron: _Cron | None
    ) -> tuple[Played, float, float | None]:
        pace = self._asked.pace or Pace()
        played, seconds = self._play(plan, frozen, cron, self._asked.attach, None, pace)
        return played, seconds, None

    def _play(
        self,
        plan: Plan,
        frozen: NDArray[np.float32],
        cron: _Cron | None,
        address: str,
        admin: str | None,
        pace: Pace,
    ) -> tuple[Played, float]:
        done = None if cron is None else cron.retrainings
        with Happenings(admin, self._stream.model.name) as happenings:
            progress = ReplayProgress(self._stream, frozen, happenings, cron=done, quiet=self._output.as_json)
            began = time.monotonic()
            with progress.shown():
                played = play(self._stream, plan, address, admin, pace, on_tick=progress)
            return played, time.monotonic() - began

    def _report(
        self,
        plan: Plan,
        played: Played,
        frozen: NDArray[np.float32],
        scheduled: NDArray[np.float32] | None,
        cron: _Cron | None,
        seconds: float,
        cpu: float | None,
    ) -> dict[str, Any]:
        stream, own = self._stream, not self._asked.attach
        sides = scored_sides(stream, played, frozen, scheduled)
        if not len(sides.labels):
            raise UserError(f"no replayed row was both answered and labelled; {played.first_failure or 'no label'}")
        with one_thread():
            mixed = mixed_answers(self._paths, stream, played) if own else None
        settings = {
            "tick": _span(self._tick.rows, self._tick.us),
            "label_delay": _span(self._asked.delay.rows, self._asked.delay.us) if self._asked.delay else None,
            "pace": "lockstep" if self._asked.pace is None or self._asked.pace.lockstep else "free",
            "schedule": self._schedule if cron is not None else None,
            "attach": self._asked.attach or None,
            "data": self._source.path,
        }
        joined = joined_labels(stream, self._paths, plan.end_us) if own else None
        return build_report(
            stream,
            played,
            sides,
            versions=version_rows(self._paths, played) if own else [],
            drift=drift_windows(self._paths) if own else [],
            mixed=mixed,
            joined=joined,
            cost=Cost(time.monotonic() - self._began, seconds, cpu, cron.cpu_seconds if cron is not None else None),
            settings=settings,
            cron_steps=cron.steps if cron is not None else [],
        )


class _Cron:
    """The scheduled baseline's process and what it has said so far. A context manager."""

    def __init__(self, session: Session) -> None:
        self.steps: list[dict[str, Any]] = []
        self._out = session._folder / "cron.npy"
        arguments = ["-m", "trimtab.cli.replay_cron", str(session._copy.directory), session._source.to_json()]
        arguments += [session._schedule, str(self._out)]
        self._child = Child(arguments, session._folder / "cron.log", nice=10)
        self._reader = threading.Thread(target=self._read, name="cron", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._child.out:
            with contextlib.suppress(ValueError):
                self.steps.append(json.loads(line))

    @property
    def cpu_seconds(self) -> float | None:
        """What its retrainings have taken."""
        return self.steps[-1]["cpu_seconds"] if self.steps else None

    def retrainings(self) -> int:
        """How many scheduled models there are so far."""
        return max((step["retrain"] for step in self.steps), default=0)

    def result(self, output: Output) -> NDArray[np.float32]:
        """Waits for it; its predictions [labelled rows replayed, K]. Raises UserError with its last words."""
        if self._child.poll() is None:
            with output.progress("the scheduled baseline is still training"):
                self._child.wait()
        self._reader.join()
        if self._child.wait() != 0:
            raise UserError(f"the scheduled baseline failed: {self._child.last_lines(3)}")
        found: NDArray[np.float32] = np.load(self._out, allow_pickle=False)
        return found

    def __enter__(self) -> _Cron:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._reader.join()
        self._child.out.close()


def schedule_for(stream: Stream) -> str:
    """Monthly over a quarter and more, else weekly, daily or hourly."""
    span = int(stream.time_us[-1] - stream.time_us[stream.start])
    for days, schedule in ((90, "0 0 1 * *"), (14, "0 0 * * 1"), (2, "0 0 * * *")):
        if span >= days * _DAY_US:
            return schedule
    return "0 * * * *"


def _known(stream: Stream) -> NDArray[np.int64]:
    """When labels are to be sent: a label that nobody sends is never due."""
    return np.where(stream.sent, stream.known_us, NEVER)[stream.start :]


def _span(rows: int, us: int) -> str:
    from trimtab.store.durations import format_duration

    return f"{rows} rows" if rows else format_duration(us)
