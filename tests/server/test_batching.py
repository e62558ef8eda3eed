"""The batching policy alone: no threads, no clock but the one passed in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trimtab.server.batching import LIVE, NEVER, Decision, Policy, Queue, Waiting

MS = 1_000_000


def request(rows: int = 1, at: int = 0, version: int = LIVE, deadline: int = NEVER) -> Waiting:
    return Waiting(rows, version, at, deadline)


def queue(*requests: Waiting, **policy: int | tuple[int, ...]) -> Queue[Waiting]:
    made: Queue[Waiting] = Queue(Policy(**policy))  # type: ignore[arg-type]
    for item in requests:
        made.add(item)
    return made


def test_all_that_is_queued_goes_at_once_without_a_delay() -> None:
    waiting = [request(at=i) for i in range(5)]
    decision = queue(*waiting).decide(10, live=3)
    assert decision.batch == waiting
    assert decision.version == 3


def test_empty_queue_waits_for_an_arrival() -> None:
    assert queue().decide(0, live=1) == Decision()


def test_batch_is_filled_up_to_its_maximum_in_order() -> None:
    sizes = [3, 3, 3, 1]
    waiting = [request(rows, at=i) for i, rows in enumerate(sizes)]
    made = queue(*waiting, max_batch_size=8)
    # The third does not fit and must not be overtaken by the fourth.
    assert made.decide(9, live=1).batch == waiting[:2]
    assert made.decide(9, live=1).batch == waiting[2:]


def test_larger_request_than_a_batch_goes_by_itself() -> None:
    small, large, last = request(2, at=0), request(20, at=1), request(2, at=2)
    made = queue(small, large, last, max_batch_size=8)
    assert [made.decide(9, live=1).batch for _ in range(3)] == [[small], [large], [last]]


def test_delay_waits_for_company_until_the_oldest_is_due() -> None:
    first = request(at=0)
    made = queue(first, max_batch_size=4, max_queue_delay=5 * MS)
    assert made.decide(1 * MS, live=1).wait_until == 5 * MS
    made.add(request(at=2 * MS))
    assert made.decide(2 * MS, live=1).wait_until == 5 * MS
    assert len(made.decide(5 * MS, live=1).batch) == 2


def test_full_batch_does_not_wait() -> None:
    assert len(queue(*[request(2)] * 2, max_batch_size=4, max_queue_delay=5 * MS).decide(0, live=1).batch) == 2


def test_preferred_size_does_not_wait_and_is_not_exceeded() -> None:
    made = queue(*[request(at=i) for i in range(6)], max_batch_size=8, max_queue_delay=5 * MS, preferred=(2, 4))
    assert len(made.decide(6, live=1).batch) == 4
    assert len(made.decide(6, live=1).batch) == 2


def test_flush_does_not_wait() -> None:
    assert queue(request(), max_queue_delay=5 * MS).decide(0, live=1, flush=True).batch


def test_waiting_for_company_leaves_half_of_a_requests_time() -> None:
    made = queue(request(at=0, deadline=4 * MS), max_queue_delay=50 * MS)
    assert made.decide(0, live=1).wait_until == 2 * MS
    assert made.decide(2 * MS, live=1).batch


def test_expired_requests_are_not_computed() -> None:
    late, good = request(at=0, deadline=5), request(at=1, deadline=50)
    decision = queue(late, good).decide(5, live=1)
    assert decision.expired == [late]
    assert decision.batch == [good]


def test_expiry_is_seen_again_after_a_look_through_the_lanes() -> None:
    made = queue(request(4, deadline=5), request(4, at=1, deadline=20), request(4, at=2, deadline=9), max_batch_size=4)
    assert [r.deadline for r in made.decide(6, live=1).expired] == [5]
    decision = made.decide(10, live=1)
    assert [r.deadline for r in decision.expired] == [9]
    assert len(made) == 0


def test_cancelled_requests_are_dropped_without_an_answer() -> None:
    gone, good, gone_too = request(at=0), request(at=1), request(at=2)
    gone.cancelled = gone_too.cancelled = True
    decision = queue(gone, good, gone_too).decide(9, live=1)
    assert decision.batch == [good]
    assert decision.cancelled == [gone, gone_too]
    assert decision.expired == []


def test_alias_and_number_of_the_live_version_share_a_batch_in_order_of_arrival() -> None:
    waiting = [request(at=0, version=2), request(at=1), request(at=2, version=2), request(at=3, version=1)]
    made = queue(*waiting)
    first = made.decide(9, live=2)
    assert (first.version, first.batch) == (2, waiting[:3])
    second = made.decide(9, live=2)
    assert (second.version, second.batch) == (1, waiting[3:])


def test_alias_is_resolved_when_the_batch_forms() -> None:
    made = queue(request(at=0))
    assert made.decide(1, live=7).version == 7


def test_version_whose_request_waited_longest_goes_first() -> None:
    old = request(at=0, version=1)
    made = queue(request(at=5), old)
    assert made.decide(9, live=2).batch == [old]


def test_admission_is_bounded_by_requests_and_bytes() -> None:
    policy = Policy(max_queue_size=2, max_queue_bytes=100)
    assert policy.admits(1, 100)
    assert not policy.admits(2, 10)
    assert not policy.admits(1, 101)
    # A message that is larger than the bound by itself is not refused for ever.
    assert policy.admits(0, 500)


def test_deadline_is_the_sooner_of_call_and_timeout() -> None:
    policy = Policy(default_timeout=10 * MS)
    assert policy.deadline(0, None, None) == 10 * MS
    assert policy.deadline(0, 0.002, None) == 2 * MS
    assert policy.deadline(0, 60.0, 3000) == 3 * MS
    assert policy.deadline(0, None, 0) == NEVER
    assert Policy().deadline(5, None, None) == NEVER


@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.integers(0, 3), st.integers(1, 40), st.booleans()), min_size=1, max_size=40
    ),
    st.integers(0, 10),
    st.sampled_from([(), (4,), (2, 6)]),
)
def test_every_request_leaves_exactly_once(
    arrivals: list[tuple[int, int, int, bool]], delay: int, preferred: tuple[int, ...]
) -> None:
    """Against a plain bookkeeping of what must happen to each request, whatever the order of events."""
    made = queue(max_batch_size=8, max_queue_delay=delay, preferred=preferred)
    requests, fates = [], {}
    now = 0
    for rows, version, life, cancel in arrivals:
        now += 1
        item = request(rows, now, version, now + life)
        requests.append(item)
        made.add(item)
        if cancel and len(requests) % 3 == 0:
            requests[len(requests) // 2].cancelled = True
        decision = made.decide(now, live=2)
        _check(decision, now, fates)
    while len(made):
        now += 1
        _check(made.decide(now, live=2), now, fates)
    assert fates.keys() == {id(item) for item in requests}


def _check(decision: Decision[Waiting], now: int, fates: dict[int, str]) -> None:
    for fate, group in (("batch", decision.batch), ("expired", decision.expired), ("cancelled", decision.cancelled)):
        for item in group:
            assert id(item) not in fates
            fates[id(item)] = fate
    assert all(item.deadline > now and not item.cancelled for item in decision.batch)
    assert all(item.deadline <= now for item in decision.expired)
    assert all(item.cancelled for item in decision.cancelled)
    assert len({item.version or 2 for item in decision.batch}) <= 1
    assert sum(item.rows for item in decision.batch) <= 8 or len(decision.batch) == 1
    assert [item.arrived for item in decision.batch] == sorted(item.arrived for item in decision.batch)
    if not decision.batch:
        assert decision.wait_until > now
