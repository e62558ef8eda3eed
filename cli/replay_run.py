"""The loop of a replay: labels due before the tick, Advance, the tick's rows; or rows alone (`--attach`).

One thread sends. In lockstep it waits for each Advance, so that the trainer has dealt with everything before the next
rows are answered; at a free pace another thread moves data time forward as fast as the trainer follows, and rows do
not wait. Nothing is retried: a request that fails is counted, its rows have no prediction.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray
from trimtab.cli.errors import UserError
from trimtab.cli.replay_data import Stream
from trimtab.cli.replay_plan import Plan
from trimtab.cli.replay_wire import RequestEncoder, read_answer
from trimtab.client.wire import target
from trimtab.protos.v1 import trimtab_pb2 as pb

__all__ = ["MAX_ROWS", "Moment", "Pace", "Played", "play"]

MAX_ROWS = 1024
"""Rows of one request at most."""

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_FEEDBACK = "/trimtab.v1.Feedback/Send"
_ADVANCE = "/trimtab.v1.Lifecycle/Advance"
_OPTIONS = (("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_INFER_SECONDS, _FEEDBACK_SECONDS, _ADVANCE_SECONDS = 60.0, 60.0, 3600.0


@dataclass(frozen=True)
class Pace:
    """`lockstep`, or free, with at most so many rows a second (0: no bound)."""

    lockstep: bool = True
    rows_per_second: float = 0.0


@dataclass(frozen=True)
class Moment:
    """Where a replay stands, after a tick."""

    tick: int
    rows: int
    """Rows sent so far."""
    data_us: int
    live: int


@dataclass
class Played:
    """What was answered. Row i is the replay's i-th."""

    predictions: NDArray[np.float32]
    """[rows, K]; NaN where the request failed."""
    versions: NDArray[np.int32]
    """[rows] as claimed; 0 where the request failed."""
    claims: list[tuple[int, int, int, str]] = field(default_factory=list)
    """(start, stop, version, weights) of each answer."""
    requests: int = 0
    failed_requests: int = 0
    first_failure: str = ""
    labels_sent: int = 0
    labels_refused: int = 0
    first_refusal: str = ""
    advances: int = 0


def play(
    stream: Stream,
    plan: Plan,
    address: str,
    admin: str | None,
    pace: Pace,
    *,
    on_tick: Callable[[Moment, Played], None] = lambda _moment, _played: None,
) -> Played:
    """Replays rows [stream.start, n) to the server at `address`. `admin`: its admin socket; None only shadows: no
    labels, no Advance. Raises UserError where the server is gone."""
    return _Player(stream, plan, address, admin, pace, on_tick).run()


class _Player:
    def __init__(
        self,
        stream: Stream,
        plan: Plan,
        address: str,
        admin: str | None,
        pace: Pace,
        on_tick: Callable[[Moment, Played], None],
    ) -> None:
        self._stream, self._plan, self._pace, self._on_tick = stream, plan, pace, on_tick
        rows = len(stream) - stream.start
        width = stream.task.width
        self._played = Played(np.full((rows, width), np.nan, np.float32), np.zeros(rows, np.int32))
        self._encoder = RequestEncoder(stream.model.name, stream.slab)
        # A row's label is sent by its request's id and its place in that request.
        self._request_of = np.full(rows, -1, np.int32)
        self._request_start: list[int] = []
        self._request_ids: list[str] = []
        self._channels = [grpc.insecure_channel(target(address), options=_OPTIONS)]
        self._infer: Any = self._channels[0].unary_unary(_INFER)
        self._feedback = self._channels[0].unary_unary(
            _FEEDBACK, pb.FeedbackRequest.SerializeToString, pb.FeedbackResponse.FromString
        )
        self._advance: Any = None
        if admin is not None:
            self._channels.append(grpc.insecure_channel(target(admin), options=_OPTIONS))
            self._advance = self._channels[1].unary_unary(
                _ADVANCE, pb.AdvanceRequest.SerializeToString, pb.AdvanceResponse.FromString
            )
        self._live = 0

    def run(self) -> Played:
        began, plan = time.monotonic(), self._plan
        try:
            with _Follower(
                self._call_advance, enabled=self._advance is not None and not self._pace.lockstep
            ) as follower:
                for tick in range(len(plan)):
                    self._wait(began, plan.rows_of(tick)[0])
                    self._before(tick, int(plan.times[tick]), follower)
                    self._rows(tick)
                    self._on_tick(Moment(tick, plan.rows_of(tick)[1], int(plan.times[tick]), self._live), self._played)
                self._before(len(plan), plan.end_us, follower)
            return self._played
        except grpc.RpcError as error:
            raise UserError(f"the replay's server failed: {error.code().name}: {error.details()}") from None
        finally:
            for channel in self._channels:
                channel.close()

    def _wait(self, began: float, rows: int) -> None:
        if self._pace.rows_per_second > 0:
            time.sleep(max(began + rows / self._pace.rows_per_second - time.monotonic(), 0.0))

    def _before(self, tick: int, data_us: int, follower: _Follower) -> None:
        if self._advance is None:
            return
        self._send_labels(self._plan.labels_before(tick))
        if self._pace.lockstep:
            self._call_advance(data_us)
        else:
            follower.follow(data_us)

    def _call_advance(self, data_us: int) -> None:
        request = pb.AdvanceRequest(model_name=self._stream.model.name, data_time_us=data_us)
        self._live = self._advance(request, timeout=_ADVANCE_SECONDS).live
        self._played.advances += 1

    def _send_labels(self, rows: NDArray[np.int64]) -> None:
        stream, request = self._stream, pb.FeedbackRequest(model_name=self._stream.model.name)
        for row in rows.tolist():
            answer = self._request_of[row]
            place = stream.start + row
            if answer < 0 or not stream.sent[place]:
                continue
            label = request.labels.add(
                request_id=self._request_ids[answer],
                row=row - self._request_start[answer],
                observed_at_us=int(stream.known_us[place]),
                source="replay",
            )
            truth = stream.truth(place)
            if isinstance(truth, str):
                label.text = truth
            else:
                label.number = truth
        if not request.labels:
            return
        response = self._feedback(request, timeout=_FEEDBACK_SECONDS)
        played = self._played
        played.labels_sent += len(request.labels)
        played.labels_refused += len(request.labels) - response.accepted
        played.first_refusal = played.first_refusal or response.first_error

    def _rows(self, tick: int) -> None:
        begin, end = self._plan.rows_of(tick)
        for start in range(begin, end, MAX_ROWS):
            self._request(start, min(start + MAX_ROWS, end))

    def _request(self, start: int, stop: int) -> None:
        offset, played = self._stream.start, self._played
        time_us = int(self._stream.time_us[offset + start])
        body = self._encoder.request(offset + start, offset + stop, time_us if self._advance is not None else None)
        played.requests += 1
        try:
            answer = read_answer(self._infer(body, timeout=_INFER_SECONDS), stop - start)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise
            played.failed_requests += 1
            played.first_failure = played.first_failure or f"{error.code().name}: {error.details()}"
            return
        played.predictions[start:stop] = answer.predictions
        played.versions[start:stop] = answer.version
        played.claims.append((start, stop, answer.version, answer.weights))
        self._request_of[start:stop] = len(self._request_ids)
        self._request_ids.append(answer.request_id)
        self._request_start.append(start)


class _Follower:
    """Moves data time forward on a thread of its own, always to the newest; leaving waits for the last one."""

    def __init__(self, advance: Callable[[int], None], *, enabled: bool) -> None:
        self._advance = advance
        self._changed = threading.Condition()
        self._wanted = 0
        self._ending = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, name="advance", daemon=True) if enabled else None

    def follow(self, data_us: int) -> None:
        """Asks for a data time; raises what an earlier one met."""
        with self._changed:
            if self._error is not None:
                raise self._error
            self._wanted = data_us
            self._changed.notify()

    def _follow(self) -> None:
        done = 0
        while True:
            with self._changed:
                while self._wanted == done and not self._ending:
                    self._changed.wait()
                if self._wanted == done:
                    return
                wanted = self._wanted
            try:
                self._advance(wanted)
            except BaseException as error:
                with self._changed:
                    self._error = error
                return
            done = wanted

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        with self._changed:
            self._ending = True
            if kind is not None:
                return  # the channel is about to close; the thread ends with the process
            self._changed.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error
