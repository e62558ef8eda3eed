"""The join of captured rows with their labels: which rows are mature, in one canonical order. Pure.

Labels that come early are biased (of flights, the short and punctual ones land first), so a row is used only with its
cohort: all rows whose requests fall into one span of data time (`[model.label] cohort`). A cohort matures, oldest
first and never out of turn, once its span is over and

  - at least 95 % of its rows are labelled, or
  - its label horizon has passed; what is unlabelled then is left out, or is a negative where `absent_means` says so
    (such models wait for the horizon unless every row is labelled).

The rows that are still unlabelled when 95 % are not dropped: the last labels are no fair sample either (of flights,
the worst delays). They are carried into the next cohorts, where they do not count towards the 95 %, until they are
labelled or their own horizon has passed.

Mature rows come out by cohort, and within one by request id and row, whatever the order in which rows and labels came.

What becomes of a label:

  matched    its row waits: the newest revision counts when the cohort matures;
  early      its row is not sealed yet: it waits for the row, and is `unknown` after the horizon;
  late       its cohort has matured: training does not see it, realised quality neither; it stays in the label log;
  unknown    no such row was captured (sampled out, dropped, expired, or never was).

A row that is sealed after its cohort has matured joins the oldest cohort that has not. A label with a business key
belongs to the newest captured row with that key that is no newer than the label; so a row that comes later may take it
over from an older one that still waits.

What a cohort holds when it matures follows from which rows and labels were known then, not from their order. A
`Maturity` mark records that, and `release` replays it after a restart: the same rows, with the labels that they had.
For the same reason labels are forgotten only when a cohort matures, at the data time that its mark records.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab._native import Schema, Slab
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.store.label_rows import StoredLabel

__all__ = ["Counts", "JoinSettings", "Joiner", "Matured", "Maturity"]

SHARE = 0.95
"""Of a cohort's rows that must be labelled before its horizon."""

_NEVER = 1 << 63

_EARLY_MOST = 1_000_000
"""Labels without a row that may wait while no cohort matures."""


@dataclass(frozen=True)
class JoinSettings:
    """What the join needs of a model's settings."""

    cohort_us: int
    horizon_us: int
    negative: bool = False
    """Whether a label that is absent at the horizon means the negative class."""
    keys: tuple[str, ...] = ()
    """The key columns, where labels come by business key."""


@dataclass
class Counts:
    """What became of labels and rows since the state folder began."""

    rows: int = 0
    matured: int = 0
    expired: int = 0
    """Rows left out because no label came before their horizon."""
    matched: int = 0
    late: int = 0
    unknown: int = 0
    superseded: int = 0
    """Revisions that replaced a value before the row matured."""
    stragglers: int = 0
    """Rows that were sealed after their cohort had matured."""

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


@dataclass(frozen=True)
class Maturity:
    """That a cohort matured, and with what: enough to find the same rows and labels again."""

    cohort: int
    label_sequence: int
    """The newest label known then."""
    segment_sequence: int
    """The newest segment known then."""
    now_us: int = -_NEVER
    """The data time then."""


@dataclass
class Matured:
    """Labelled rows of one or more cohorts, in canonical order."""

    slab: Slab
    ids: NDArray[np.uint8]
    """[n, 16]"""
    rows: NDArray[np.int32]
    values: list[float | str | None]
    """Labels as sent; None: absent, which is the negative."""
    weights: NDArray[np.float32]
    """[n] the label's weight over the row's inclusion probability."""
    time_us: NDArray[np.int64]
    versions: NDArray[np.int32]
    predictions: NDArray[np.float32]
    """[n, K] as served."""
    sequences: NDArray[np.int64]
    """[n] the label revision used; 0: absent."""

    def __len__(self) -> int:
        return len(self.values)


@dataclass
class _Cohort:
    """Rows that wait. `rows` are positions in the joiner's arrays."""

    chunks: list[tuple[Slab, NDArray[np.int32], list[int]]] = field(default_factory=list)
    """(slab of a segment, positions in it, row numbers in the joiner)"""
    rows: int = 0
    """Its own, carried ones not counted."""
    labelled: int = 0
    """Of these."""
    carried: int = 0


@dataclass(slots=True)
class _Row:
    cohort: int
    identity: bytes
    """Request id and row, 20 bytes that sort as they do."""
    time_us: int
    version: int
    inclusion: float
    prediction: tuple[float, ...]
    label: StoredLabel | None = None
    """By request id."""
    keyed: StoredLabel | None = None
    """By business key."""
    carried: bool = False
    """Whether an older cohort matured without it."""

    def holds(self) -> StoredLabel | None:
        """The label that counts."""
        return _newest(self.label, self.keyed)


@dataclass(slots=True)
class _Key:
    """A business key's rows and labels."""

    rows: list[tuple[int, bytes, int]] = field(default_factory=list)
    """(time, identity, row number), ascending"""
    labels: list[tuple[int, int, StoredLabel]] = field(default_factory=list)
    """(time observed, -sequence, label), ascending"""


class Joiner:
    """See the module. One thread at a time."""

    def __init__(self, settings: JoinSettings, schema: Schema, width: int) -> None:
        """`schema`: of a request; `width`: numbers of one prediction."""
        self.settings = settings
        self.counts = Counts()
        self.label_sequence = 0
        self.segment_sequence = 0
        self._schema = schema
        self._width = width
        self._names = list(schema.names)
        self._cohorts: dict[int, _Cohort] = {}
        self._order: list[int] = []
        """Cohorts that wait, ascending."""
        self._rows: list[_Row | None] = []
        self._at: dict[bytes, int] = {}
        """Identity to row number; _MATURED for rows that have matured."""
        self._matured_before = -_NEVER
        """Cohorts below this have matured."""
        self._early: dict[bytes, StoredLabel] = {}
        self._by_key: dict[str, _Key] = {}
        self._forgettable: list[tuple[int, int, StoredLabel]] = []
        """Heap of (time observed, sequence, label): labels that are or were early, and all with a key."""
        self._now = -_NEVER

    @property
    def waiting(self) -> int:
        """Rows that have not matured."""
        return sum(cohort.rows + cohort.carried for cohort in self._cohorts.values())

    # --- what comes

    def add_segment(self, table: pa.Table, sequence: int) -> None:
        """Takes the rows of a sealed segment, whose sequence must be newer than all before."""
        if sequence <= self.segment_sequence:
            raise ValueError(f"join: segment {sequence} after segment {self.segment_sequence}")
        self.segment_sequence = sequence
        if not table.num_rows:
            return
        table = table.combine_chunks()
        slab = slab_from_arrow(table.select(self._names), self._schema)
        numbers = table.column("_row").to_numpy().astype(">i4").tobytes()
        ids: list[Any] = table.column("_request_id").to_pylist()
        times = table.column("_time").cast(pa.int64()).to_numpy()
        versions: list[Any] = table.column("_version").to_pylist()
        inclusions: list[Any] = table.column("_inclusion").to_pylist()
        predictions = _predictions(table.column("_prediction"), self._width).tolist()
        keys = _keys(table, self.settings.keys)
        spans = times // self.settings.cohort_us
        placed: dict[int, tuple[list[int], list[int]]] = {}
        for position, span in enumerate(spans.tolist()):
            cohort = max(span, self._matured_before)
            if cohort > span:
                self.counts.stragglers += 1
            identity = ids[position] + numbers[4 * position : 4 * position + 4]
            if identity in self._at:
                continue  # A segment that was rewritten holds rows that are known.
            number = len(self._rows)
            row = _Row(
                cohort,
                identity,
                int(times[position]),
                versions[position],
                inclusions[position],
                tuple(predictions[position]),
            )
            self._rows.append(row)
            self._at[identity] = number
            place = placed.setdefault(cohort, ([], []))
            place[0].append(position)
            place[1].append(number)
            if keys is not None:
                self._add_to_key(keys[position], row, number)
            if self._early and (label := self._early.pop(identity, None)) is not None:
                self._set(number, label)
        for cohort, (positions, row_numbers) in placed.items():
            waiting = self._cohort(cohort)
            waiting.chunks.append((slab, np.array(positions, np.int32), row_numbers))
            waiting.rows += len(row_numbers)
            self.counts.rows += len(row_numbers)

    def add_labels(self, labels: Sequence[StoredLabel]) -> None:
        """Takes label revisions in the order of their sequence; those not newer than the last are ignored."""
        new = [label for label in labels if label.sequence > self.label_sequence]
        if new:
            self.label_sequence = new[-1].sequence
            self._take(new)

    def _take(self, labels: Iterable[StoredLabel]) -> None:
        for label in labels:
            if label.request_id is None:
                self._take_keyed(label)
                continue
            identity = _identity(label.request_id, label.row)
            number = self._at.get(identity)
            if number is None:
                held = self._early[identity] = _newest(self._early.get(identity), label) or label
                if held is label:
                    heapq.heappush(self._forgettable, (label.observed_at_us, label.sequence, label))
            elif self._rows[number] is None:
                self.counts.late += 1
            else:
                self._set(number, label)

    def _set(self, number: int, label: StoredLabel) -> None:
        row = self._rows[number]
        assert row is not None
        before = row.holds()
        row.label = _newest(row.label, label)
        self._count(row, before)

    def _count(self, row: _Row, before: StoredLabel | None) -> None:
        after = row.holds()
        if before is None or after is None:
            change = (after is not None) - (before is not None)
            self.counts.matched += change
            if not row.carried:
                self._cohort(row.cohort).labelled += change
        elif after is not before:
            self.counts.superseded += 1

    # --- business keys

    def _take_keyed(self, label: StoredLabel) -> None:
        key = self._by_key.setdefault(label.key or "", _Key())
        bisect.insort(key.labels, (label.observed_at_us, -label.sequence, label))
        heapq.heappush(self._forgettable, (label.observed_at_us, label.sequence, label))
        at = _row_at(key, label.observed_at_us)
        if at < 0:
            return
        if self._rows[key.rows[at][2]] is None:
            self.counts.late += 1
        self._bind(key, at)

    def _add_to_key(self, name: str, row: _Row, number: int) -> None:
        key = self._by_key.setdefault(name, _Key())
        entry = (row.time_us, row.identity, number)
        at = bisect.bisect(key.rows, entry)
        key.rows.insert(at, entry)
        if key.labels:
            # First, so that a label that moves on is not counted twice.
            self._bind(key, at - 1)
            self._bind(key, at)

    def _bind(self, key: _Key, at: int) -> None:
        """Gives the key's row at a place the newest of the labels from its time on and before the next row's."""
        row = self._rows[key.rows[at][2]] if at >= 0 else None
        if row is None:
            return
        start = key.rows[at][0]
        stop = key.rows[at + 1][0] if at + 1 < len(key.rows) else _NEVER
        # One that it has may be forgotten already.
        found = row.keyed if row.keyed is not None and row.keyed.observed_at_us < stop else None
        last = bisect.bisect_left(key.labels, (stop,)) - 1
        if last >= 0 and key.labels[last][0] >= start:
            found = _newest(found, key.labels[last][2])
        if found is not row.keyed:
            before = row.holds()
            row.keyed = found
            self._count(row, before)

    def _cohort(self, cohort: int) -> _Cohort:
        found = self._cohorts.get(cohort)
        if found is None:
            found = self._cohorts[cohort] = _Cohort()
            bisect.insort(self._order, cohort)
        return found

    # --- what matures

    def advance(self, now_us: int) -> tuple[list[Matured], list[Maturity]]:
        """The cohorts that mature at data time `now_us`, in order, each with its mark."""
        self._now = max(self._now, now_us)
        matured: list[Matured] = []
        marks: list[Maturity] = []
        while self._order and self._mature(self._order[0]):
            cohort = self._order[0]
            marks.append(Maturity(cohort, self.label_sequence, self.segment_sequence, self._now))
            matured.append(self._release(cohort))
        if marks or len(self._forgettable) > _EARLY_MOST:
            self._forget()
        return matured, marks

    def _mature(self, cohort: int) -> bool:
        waiting = self._cohorts[cohort]
        end = (cohort + 1) * self.settings.cohort_us
        if self._now < end:
            return False
        if self._now >= end + self.settings.horizon_us:
            return True
        share = 1.0 if self.settings.negative else SHARE
        return waiting.labelled >= share * waiting.rows

    def _release(self, cohort: int) -> Matured:
        """Takes a cohort's rows out, in canonical order."""
        waiting = self._cohorts.pop(cohort)
        self._order.remove(cohort)
        self._matured_before = max(self._matured_before, cohort + 1)
        kept: list[tuple[bytes, int, int, _Row]] = []
        """(identity, chunk, position in its slab, row)"""
        for chunk, (source, positions, numbers) in enumerate(waiting.chunks):
            carried: list[tuple[int, int]] = []
            for position, number in zip(positions.tolist(), numbers, strict=True):
                row = self._rows[number]
                assert row is not None
                if row.holds() is None and not self.settings.negative:
                    if self._may_be_labelled(row):
                        carried.append((position, number))
                        continue
                    self.counts.expired += 1
                else:
                    kept.append((row.identity, chunk, position, row))
                self._rows[number] = None
            self._carry(source, carried)
        kept.sort(key=lambda item: item[0])
        self.counts.matured += len(kept)
        slab = Slab(self._schema)
        start = 0
        for stop in range(1, len(kept) + 1):
            # Runs of rows from one chunk are copied at once.
            if stop == len(kept) or kept[stop][1] != kept[start][1]:
                indices = np.array([item[2] for item in kept[start:stop]], np.int32)
                slab.extend(waiting.chunks[kept[start][1]][0], indices)
                start = stop
        return _matured(slab, [item[3] for item in kept], self._width)

    def _may_be_labelled(self, row: _Row) -> bool:
        """Whether the row's own horizon lies ahead."""
        end = (row.time_us // self.settings.cohort_us + 1) * self.settings.cohort_us
        return self._now < end + self.settings.horizon_us

    def _carry(self, source: Slab, rows: list[tuple[int, int]]) -> None:
        """Puts rows (position in the slab, number) into the oldest cohort that has not matured."""
        if not rows:
            return
        cohort = self._matured_before
        for _, number in rows:
            row = self._rows[number]
            assert row is not None
            row.cohort, row.carried = cohort, True
        waiting = self._cohort(cohort)
        waiting.chunks.append((source, np.array([at for at, _ in rows], np.int32), [number for _, number in rows]))
        waiting.carried += len(rows)

    def _forget(self) -> None:
        """Lets go of labels whose row has not come within the horizon: they never had one."""
        limit = self._now - self.settings.horizon_us - self.settings.cohort_us
        while self._forgettable and self._forgettable[0][0] < limit:
            label = heapq.heappop(self._forgettable)[2]
            if label.request_id is None:
                key = self._by_key[label.key or ""]
                entry = (label.observed_at_us, -label.sequence)
                del key.labels[bisect.bisect_left(key.labels, entry)]
                self.counts.unknown += _row_at(key, label.observed_at_us) < 0
                if not key.rows and not key.labels:
                    del self._by_key[label.key or ""]
                continue
            identity = _identity(label.request_id, label.row)
            if self._early.get(identity) is label:
                del self._early[identity]
                self.counts.unknown += 1

    # --- after a restart

    def release(self, mark: Maturity) -> Matured | None:
        """The rows of a cohort that matured before a restart, once all that was known then has been added; None where
        they are gone (expired or deleted)."""
        self._now = max(self._now, mark.now_us)
        matured = None
        if mark.cohort in self._cohorts:
            matured = self._release(mark.cohort)
        self._matured_before = max(self._matured_before, mark.cohort + 1)
        self._forget()
        return matured


def _matured(slab: Slab, rows: list[_Row], width: int) -> Matured:
    identities = np.frombuffer(b"".join(row.identity for row in rows), np.uint8).reshape(-1, 20)
    labels = [row.holds() for row in rows]
    weights = [(1.0 if row.label is None else row.label.weight) / max(row.inclusion, 1e-6) for row in rows]
    return Matured(
        slab,
        np.ascontiguousarray(identities[:, :16]),
        identities[:, 16:].copy().view(">i4").reshape(-1).astype(np.int32),
        [None if label is None else label.value for label in labels],
        np.array(weights, np.float32),
        np.array([row.time_us for row in rows], np.int64),
        np.array([row.version for row in rows], np.int32),
        np.array([row.prediction for row in rows], np.float32).reshape(-1, width),
        np.array([0 if label is None else label.sequence for label in labels], np.int64),
    )


def _identity(request_id: bytes, row: int) -> bytes:
    return request_id + row.to_bytes(4, "big")


def _newest(one: StoredLabel | None, other: StoredLabel | None) -> StoredLabel | None:
    """The revision that holds: what became known last; of what contradicts each other at one time, what came first."""
    if one is None or other is None:
        return one or other
    ahead = other.observed_at_us - one.observed_at_us or one.sequence - other.sequence
    return other if ahead > 0 else one


def _row_at(key: _Key, time_us: int) -> int:
    """Where the newest row no newer than a time is; -1: nowhere."""
    return bisect.bisect_left(key.rows, (time_us + 1,)) - 1


def _predictions(column: pa.ChunkedArray[Any], width: int) -> NDArray[np.float32]:
    array: Any = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    values = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)


def _keys(table: pa.Table, names: Sequence[str]) -> list[str] | None:
    if not names:
        return None
    columns = [[str(value) for value in table.column(name).to_pylist()] for name in names]
    return ["\x1f".join(parts) for parts in zip(*columns, strict=True)]
