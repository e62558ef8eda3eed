"""The batching policy alone (csrc/batch_queue.h): no threads, no clock but the one passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from trimtab._native import BatchPolicy, BatchQueue, QueuePolicy

MS = 1_000_000
LIVE = 0
ALIAS = 1 << 32


class Box:
    """A queue whose live version is 1 (and 2 loaded) unless told otherwise."""

    def __init__(self, **policy: Any) -> None:
        self.queue = BatchQueue(BatchPolicy(**policy))
        self._names = 0

    def add(self, at: int = 0, **request: Any) -> int:
        self._names += 1
        assert self.queue.admit(self._names, at, **request) == ""
        return self._names

    def refusal(self, at: int = 0, **request: Any) -> str:
        return self.queue.admit(99_999, at, **request)

    def batch(self, now: int, **versions: int) -> list[int]:
        return self.queue.decide(now, _versions(**versions))[0]

    def decide(
        self, now: int, flush: bool = False, **versions: int
    ) -> tuple[list[int], int, int | None, list[int], list[int], list[int]]:
        return self.queue.decide(now, _versions(**versions), flush)


def _versions(live: int = 1, **aliases: int) -> dict[int, int]:
    return {LIVE: live, 1: 1, 2: 2, **({ALIAS: aliases["alias"]} if "alias" in aliases else {})}


def test_all_that_is_queued_goes_at_once_without_a_delay() -> None:
    box = Box()
    waiting = [box.add(at) for at in range(5)]
    assert box.decide(10, live=2)[:2] == (waiting, 2)


def test_empty_queue_waits_for_an_arrival() -> None:
    assert Box().decide(0) == ([], 0, None, [], [], [])


def test_batch_is_filled_up_to_its_maximum_in_order() -> None:
    box = Box(max_batch_size=8)
    waiting = [box.add(at, rows=rows) for at, rows in enumerate([3, 3, 3, 1])]
    # The third does not fit and must not be overtaken by the fourth.
    assert box.batch(9) == waiting[:2]
    assert box.batch(9) == waiting[2:]


def test_larger_request_than_a_batch_goes_by_itself() -> None:
    box = Box(max_batch_size=8)
    small, large, last = box.add(0, rows=2), box.add(1, rows=20), box.add(2, rows=2)
    assert [box.batch(9) for _ in range(3)] == [[small], [large], [last]]


def test_larger_request_than_a_batch_is_refused_where_it_may_not_be_split() -> None:
    box = Box(max_batch_size=8, split_oversize=False)
    assert box.refusal(rows=9) == "too_large"
    box.add(rows=8)


def test_delay_waits_for_company_until_the_oldest_is_due() -> None:
    box = Box(max_batch_size=4, max_queue_delay=0.005)
    box.add(0)
    assert box.decide(1 * MS)[2] == 5 * MS
    box.add(2 * MS)
    assert box.decide(2 * MS)[2] == 5 * MS
    assert len(box.batch(5 * MS)) == 2


def test_delay_is_that_of_who_is_left_after_the_oldest_was_cancelled() -> None:
    box = Box(max_batch_size=4, max_queue_delay=0.005)
    oldest = box.add(0)
    box.add(2 * MS)
    assert box.queue.remove(oldest)
    assert box.decide(5 * MS)[:3] == ([], 0, 7 * MS)
    assert len(box.batch(7 * MS)) == 1


def test_full_batch_does_not_wait() -> None:
    box = Box(max_batch_size=4, max_queue_delay=0.005)
    assert box.batch(0) == []
    both = [box.add(rows=2), box.add(rows=2)]
    assert box.batch(0) == both


def test_preferred_size_does_not_wait_and_is_not_exceeded() -> None:
    box = Box(max_batch_size=8, max_queue_delay=0.005, preferred=[4, 2])
    for at in range(6):
        box.add(at)
    assert [len(box.batch(6)) for _ in range(2)] == [4, 2]


def test_flush_does_not_wait() -> None:
    box = Box(max_queue_delay=0.005)
    name = box.add()
    assert box.decide(0, flush=True)[0] == [name]


def test_waiting_for_company_leaves_half_of_a_requests_time() -> None:
    box = Box(max_queue_delay=0.050)
    box.add(0, deadline=4 * MS)
    assert box.decide(0)[2] == 2 * MS
    assert box.batch(2 * MS)


def test_expired_requests_are_not_computed() -> None:
    box = Box()
    late, good = box.add(0, deadline=5), box.add(1, deadline=50)
    assert box.decide(5)[0] == [good]
    assert not box.queue.remove(late)


def test_expiry_is_seen_again_after_a_look_through_the_lanes() -> None:
    box = Box(max_batch_size=4)
    first, second, third = (box.add(at, rows=4, deadline=end) for at, end in enumerate([5, 20, 9]))
    assert box.decide(6)[3] == [first]
    assert box.decide(10)[3] == [third]
    assert second not in box.batch(11)


def test_cancelled_request_frees_its_place_at_once() -> None:
    box = Box(levels=[QueuePolicy(max_queue_size=2)], max_queue_bytes=100)
    gone, kept = box.add(0, size=60), box.add(1, size=40)
    assert box.refusal() == "queue_full"
    assert box.queue.remove(gone)
    assert not box.queue.remove(gone)
    assert (len(box.queue), box.queue.bytes) == (1, 40)
    other = box.add(2, size=60)
    assert box.batch(9) == [kept, other]


def test_alias_and_number_of_the_live_version_share_a_batch_in_order_of_arrival() -> None:
    box = Box()
    waiting = [box.add(at, lane=lane) for at, lane in enumerate([2, LIVE, 2, 1, ALIAS])]
    assert box.decide(9, live=2, alias=2)[:2] == ([waiting[0], waiting[1], waiting[2], waiting[4]], 2)
    assert box.decide(9, live=2, alias=2)[:2] == ([waiting[3]], 1)


def test_alias_is_resolved_when_the_batch_forms() -> None:
    box = Box()
    box.add(0, lane=ALIAS)
    assert box.decide(1, alias=2)[1] == 2


def test_request_whose_version_has_gone_is_orphaned_and_others_go_on() -> None:
    box = Box()
    gone, good = box.add(0, lane=7), box.add(1)
    assert box.decide(2) == ([good], 1, None, [], [], [gone])


def test_version_whose_request_waited_longest_goes_first() -> None:
    box = Box()
    old = box.add(0, lane=2)
    box.add(5)
    assert box.batch(9) == [old]


def test_admission_is_bounded_by_requests_and_bytes() -> None:
    box = Box(levels=[QueuePolicy(max_queue_size=2)], max_queue_bytes=100)
    # A message that is larger than the bound by itself is not refused for ever.
    box.add(size=500)
    assert box.refusal(size=1) == "queue_full"
    box.queue.clear()
    box.add(size=50)
    box.add(size=50)
    assert box.refusal(size=0) == "queue_full"


def test_timeout_of_the_policy_and_of_the_request() -> None:
    def expired(now: int, **request: Any) -> bool:
        box = Box(levels=[QueuePolicy(default_timeout=0.010)])
        name = box.add(0, **request)
        return box.decide(now)[3] == [name]

    assert not expired(10 * MS - 1)
    assert expired(10 * MS)
    assert expired(2 * MS, deadline=2 * MS)
    assert expired(3 * MS, deadline=60_000 * MS, timeout_us=3000)
    assert not expired(9_999 * MS, timeout_us=0)
    assert not expired(2**40, timeout_us=2**64 - 1)


def test_timeout_of_the_request_counts_only_where_it_may() -> None:
    box = Box(levels=[QueuePolicy(default_timeout=0.010, allow_timeout_override=False)])
    box.add(0, timeout_us=1)
    assert box.decide(9 * MS)[3] == []


def test_delayed_request_goes_behind_all_others_but_dies_with_its_call() -> None:
    box = Box(max_batch_size=1, levels=[QueuePolicy(delay=True, default_timeout=0.001), QueuePolicy()])
    slow, doomed = box.add(0, priority=1), box.add(0, priority=1, deadline=3 * MS)
    low = box.add(1, priority=2)
    assert box.batch(2 * MS) == [low]
    assert box.decide(3 * MS) == ([slow], 1, None, [doomed], [], [])


def test_priorities_go_first_and_fill_up_with_the_rest() -> None:
    box = Box(max_batch_size=2, levels=[QueuePolicy(), QueuePolicy(), QueuePolicy()], default_level=1)
    low, middle, high = box.add(0, priority=3), box.add(1), box.add(2, priority=1)
    assert box.batch(9) == [high, middle]
    assert box.batch(9) == [low]
    assert box.refusal(priority=4) == "no_such_priority"


def test_each_priority_has_its_own_bound() -> None:
    box = Box(levels=[QueuePolicy(max_queue_size=1), QueuePolicy(max_queue_size=2)], default_level=1)
    box.add(priority=1)
    assert box.refusal(priority=1) == "queue_full"
    box.add()
    box.add()
    assert box.refusal() == "queue_full"


def test_work_that_would_miss_its_deadline_is_refused_once_batches_were_measured() -> None:
    box = Box(max_batch_size=10)
    assert box.refusal(0, deadline=1) == ""  # nothing is known yet
    box.queue.clear()
    for _ in range(8):
        box.queue.computed(10, 10 * MS, 0)
    assert box.refusal(0, deadline=9 * MS) == "would_miss_deadline"
    for _ in range(3):
        box.add(0, rows=10)
    assert box.refusal(0, deadline=39 * MS) == "would_miss_deadline"
    box.add(0, deadline=40 * MS)
    # One fast batch is enough to think better of it.
    box.queue.computed(10, 1, 0)
    box.add(0, deadline=9 * MS)


def test_what_a_slow_spell_taught_lapses() -> None:
    box = Box(max_batch_size=10)
    for at in range(16):
        box.queue.computed(10, 500 * MS, at)
    assert box.refusal(100 * MS, deadline=150 * MS) == "would_miss_deadline"
    last = box.add(1015 * MS, deadline=1065 * MS, rows=10)
    assert box.batch(1020 * MS) == [last]
    # One batch that was fast teaches nothing yet; the slow ones are forgotten.
    box.queue.computed(10, 1 * MS, 1021 * MS)
    box.add(1022 * MS, deadline=1023 * MS)


def test_requests_that_a_full_batch_would_answer_too_late_are_not_put_into_one() -> None:
    box = Box(max_batch_size=4)
    late = [box.add(0, deadline=(10 + i) * MS) for i in range(3)]
    fine = [box.add(0, deadline=20 * MS), box.add(0), box.add(0, deadline=16 * MS), box.add(0, deadline=20 * MS)]
    for took in (8, 8, 8, 8, 8, 8, 10, 30):  # three of four take at most 8 ms
        box.queue.computed(4, took * MS, 0)
    batch, _, _, expired, missed, _ = box.decide(7 * MS)
    assert (batch, expired, missed) == (fine, [], late)


def test_requests_of_a_batch_that_is_not_full_are_all_computed() -> None:
    box = Box(max_batch_size=4)
    waiting = [box.add(0, deadline=10 * MS) for _ in range(3)]
    for _ in range(8):
        box.queue.computed(4, 8 * MS, 0)
    assert box.batch(7 * MS) == waiting


def test_a_full_batch_of_which_all_would_be_late_leaves_nothing() -> None:
    box = Box(max_batch_size=4)
    waiting = [box.add(0, deadline=10 * MS) for _ in range(4)]
    other = box.add(0, lane=2)
    for _ in range(8):
        box.queue.computed(4, 8 * MS, 0)
    batch, _, _, _, missed, _ = box.decide(7 * MS)
    assert (batch, missed) == ([], waiting)
    assert box.batch(7 * MS) == [other]


def test_bad_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="max_batch_size"):
        BatchPolicy(max_batch_size=0)
    with pytest.raises(ValueError, match="priority"):
        BatchPolicy(default_level=1)


# --- against a plain bookkeeping -------------------------------------------------------------------------------------


@dataclass
class Known:
    """What the oracle knows of a request."""

    rows: int
    lane: int
    level: int
    turn: int
    deadline: int | None
    expires: int | None


class Oracle(RuleBasedStateMachine):
    """Any order of events, against a list that is sorted anew for each decision."""

    @initialize(
        delay=st.sampled_from([0, 5]),
        levels=st.lists(st.tuples(st.booleans(), st.sampled_from([0, 7]), st.integers(1, 6)), min_size=1, max_size=3),
    )
    def begin(self, delay: int, levels: list[tuple[bool, int, int]]) -> None:
        self.delay, self.levels, self.now, self.names, self.turns = delay, levels, 0, 0, 0
        self.waiting: dict[int, Known] = {}
        policies = [QueuePolicy(d, t * 1e-9 if t else 0.0, True, m) for d, t, m in levels]
        self.queue = BatchQueue(BatchPolicy(max_batch_size=8, max_queue_delay=delay * 1e-9, levels=policies))

    @rule(
        rows=st.integers(1, 12),
        lane=st.sampled_from([LIVE, 1, 2, 3, ALIAS]),
        life=st.none() | st.integers(0, 20),
        priority=st.integers(0, 4),
    )
    def arrive(self, rows: int, lane: int, life: int | None, priority: int) -> None:
        self.names += 1
        deadline = None if life is None else self.now + life
        why = self.queue.admit(self.names, self.now, rows=rows, lane=lane, deadline=deadline, priority=priority)
        level = max(priority - 1, 0)
        if priority > len(self.levels):
            expected = "no_such_priority"
        elif deadline is not None and deadline <= self.now:
            expected = "deadline_passed"
        elif sum(k.level == level for k in self.waiting.values()) >= self.levels[level][2]:
            expected = "queue_full"
        else:
            expected = ""
            _, timeout, _ = self.levels[level]
            expires = self.now + timeout if timeout else None
            self.waiting[self.names] = Known(rows, lane, level, self.next_turn(), deadline, expires)
        assert why == expected

    def next_turn(self) -> int:
        self.turns += 1
        return self.turns

    @rule(by=st.integers(1, 9))
    def pass_time(self, by: int) -> None:
        self.now += by

    @precondition(lambda self: bool(self.waiting))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.remove(name)
        del self.waiting[name]

    @rule(live=st.sampled_from([1, 2]), alias=st.sampled_from([0, 1, 2]), flush=st.booleans())
    def decide(self, live: int, alias: int, flush: bool) -> None:
        versions = {LIVE: live, 1: 1, 2: 2, **({ALIAS: alias} if alias else {})}
        batch, version, wait, expired, missed, orphaned = self.queue.decide(self.now, versions, flush)
        assert not missed  # no batch was ever computed
        for name in expired:
            known = self.waiting.pop(name)
            timed_out = known.expires is not None and known.expires <= self.now and not self.levels[known.level][0]
            assert (known.deadline is not None and known.deadline <= self.now) or timed_out
        for known in sorted(self.waiting.values(), key=lambda known: known.turn):
            assert known.deadline is None or known.deadline > self.now
            if known.expires is not None and known.expires <= self.now:
                assert self.levels[known.level][0]
                known.level, known.expires, known.turn = len(self.levels), None, self.next_turn()
        for name in orphaned:
            assert self.waiting.pop(name).lane not in versions
        assert all(known.lane in versions for known in self.waiting.values())
        order = sorted(self.waiting, key=lambda name: (self.waiting[name].level, self.waiting[name].turn))
        if not batch:
            assert not order or (self.delay and not flush and wait is not None and wait > self.now)
            return
        assert version == versions[self.waiting[order[0]].lane]
        expected, rows = [], 0
        for name in order:
            known = self.waiting[name]
            if versions[known.lane] != version:
                continue
            if expected and rows + known.rows > 8:
                break
            expected.append(name)
            rows += known.rows
        assert batch == expected
        for name in batch:
            del self.waiting[name]

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.waiting)
            assert self.queue.rows == sum(known.rows for known in self.waiting.values())


Oracle.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAgainstOracle = Oracle.TestCase
