"""Requests for versions that are asleep: in the batching policy, and in the hub."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab._native import BatchPolicy, BatchQueue, QueuePolicy

from .test_hub import NOT_FOUND, UNAVAILABLE, Bench, body, run, step, values

VERSIONS = {0: 1, 1: 1, 2: 2}
DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = 4, 8


def queue_of(**policy: object) -> BatchQueue:
    return BatchQueue(BatchPolicy(**policy))  # type: ignore[arg-type]


def test_what_waits_for_a_sleeper_holds_up_nothing_else() -> None:
    queue = queue_of()
    for name, lane in enumerate([0, 2, 0, 2]):
        assert queue.admit(name, name, lane=lane) == ""
    batch, version, *_ = queue.decide(10, VERSIONS, False, [1])
    assert (batch, version, queue.wanted) == ([1, 3], 2, [1])
    assert queue.decide(11, VERSIONS, False, [1])[:3] == ([], 0, None)
    assert queue.wanted == [1]
    assert queue.decide(12, VERSIONS)[:2] == ([0, 2], 1)
    assert queue.wanted == []


def test_requests_for_a_sleeper_expire_when_their_time_is_over() -> None:
    queue = queue_of()
    queue.admit(1, 0, deadline=100)
    queue.admit(2, 0, deadline=300)
    assert queue.decide(50, VERSIONS, False, [1])[:4] == ([], 0, 100, [])
    assert queue.decide(100, VERSIONS, False, [1])[3] == [1]
    assert queue.decide(100, VERSIONS, False, [1])[2] == 300
    assert queue.decide(200, VERSIONS)[0] == [2]


def test_flushing_wakes_nobody() -> None:
    queue = queue_of(max_queue_delay=1.0)
    queue.admit(1, 0)
    assert queue.decide(1, VERSIONS, True, [1])[0] == []
    assert queue.decide(2, VERSIONS, True)[0] == [1]


def test_queue_policy_timeouts_hold_for_sleepers() -> None:
    queue = queue_of(levels=[QueuePolicy(default_timeout=0.001)])
    queue.admit(1, 0)
    assert queue.decide(999_999, VERSIONS, False, [1])[3] == []
    assert queue.decide(1_000_000, VERSIONS, False, [1])[3] == [1]


def test_what_waits_for_one_version_is_taken_out() -> None:
    queue = queue_of()
    for name, lane in enumerate([0, 2, 1, 2]):
        queue.admit(name, name, lane=lane)
    assert queue.waits_for(1, VERSIONS)
    assert sorted(queue.clear_version(1, VERSIONS)) == [0, 2]
    assert not queue.waits_for(1, VERSIONS)
    assert queue.waits_for(2, VERSIONS)
    assert len(queue) == 2


def test_what_is_held_is_in_the_way_of_no_deadline() -> None:
    """A batch takes 10 here: what is computed before a request counts against its deadline, what is held does not."""
    queue = queue_of(max_batch_size=1)
    for now in range(8):
        queue.computed(1, 10, now)
    for name in range(5):
        assert queue.admit(name, 10, lane=2) == ""
    assert queue.admit(9, 10, lane=0, deadline=40) != ""
    assert queue.decide(11, VERSIONS, False, [2])[:2] == ([], 0)
    assert queue.admit(5, 12, lane=0, deadline=42) == ""
    assert queue.decide(13, VERSIONS, False, [])[0] == [0]  # awake: it is ahead of the others now
    assert queue.admit(6, 14, lane=0, deadline=44) != ""


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.one_of(st.none(), st.integers(1, 60))), max_size=30),
    st.lists(st.sets(st.sampled_from([1, 2])), min_size=1, max_size=10),
)
def test_each_request_leaves_once_and_never_by_a_sleeper(
    requests: list[tuple[int, int | None]], sleeping: list[set[int]]
) -> None:
    queue, lanes, gone = queue_of(max_batch_size=4), dict[int, int](), list[int]()
    for name, (lane, deadline) in enumerate(requests):
        assert queue.admit(name, 0, lane=lane, deadline=deadline) == ""
        lanes[name] = VERSIONS[lane]
    for now, asleep in enumerate([*sleeping, *[set[int]()] * 31], start=1):
        batch, version, _, expired, missed, orphaned = queue.decide(now, VERSIONS, True, sorted(asleep))
        assert not missed
        assert not orphaned
        assert not batch or version not in asleep
        assert all(lanes[name] == version for name in batch)
        assert all(deadline is not None and deadline <= now for deadline in (requests[name][1] for name in expired))
        gone += batch + expired
        waiting = {lanes[name] for name in lanes if name not in gone}
        assert not batch or set(queue.wanted) <= asleep
        if not batch:
            assert set(queue.wanted) == waiting & asleep
    assert sorted(gone) == sorted(lanes)


# --- the hub


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_sleeper_is_wanted_once_and_answers_when_it_is_awake(bench: Bench) -> None:
    assert bench.hub.put_to_sleep("m", 1)
    for token in range(3):
        bench.submit(token, body([float(token)]))
    assert bench.hub.take(10.0) is None  # at once: somebody is wanted
    assert bench.hub.wanted() == [("m", 1)]
    assert bench.hub.wanted() == []
    bench.submit(3, body([3.0]))
    assert bench.hub.take(0.0) is None
    assert bench.hub.wanted() == []
    bench.hub.wake_up("m", 1)
    step(bench)
    bench.collect(4)
    assert [values(bench.response(token)).tolist() for token in range(4)] == [[2.0 * n] for n in range(4)]


def test_other_versions_and_models_are_served_meanwhile(bench: Bench) -> None:
    bench.hub.add_model("n", bench.schema, [("y", "FP32", [1]), ("version", "INT64", [])], BatchPolicy())
    bench.hub.install("n", 7, [7], {})
    assert bench.hub.put_to_sleep("m", 1)
    bench.submit(0, body([1.0]))
    bench.submit(1, body([2.0], "other"))
    bench.submit(2, body([3.0], model="n"))
    taken = []
    while len(taken) < 2:
        batch = bench.hub.take(10.0)
        if batch is None:
            assert bench.hub.wanted() == [("m", 1)]
            continue
        taken.append((batch.model, batch.version))
        run(batch)
    bench.collect(2)
    assert sorted(taken) == [("m", 2), ("n", 7)]
    assert bench.hub.waiting("m") == 1


def test_what_is_in_use_is_not_put_to_sleep(bench: Bench) -> None:
    bench.submit(0, body([1.0]))
    assert not bench.hub.put_to_sleep("m", 1)
    assert bench.hub.put_to_sleep("m", 2)
    batch = bench.hub.take(10.0)
    assert batch is not None
    assert not bench.hub.put_to_sleep("m", 1)
    run(batch)
    assert bench.hub.put_to_sleep("m", 1)
    assert not bench.hub.put_to_sleep("m", 3)
    bench.collect(1)
    with pytest.raises(ValueError, match="expected the name of a model"):
        bench.hub.put_to_sleep("nobody", 1)


def test_a_version_is_not_in_use_because_another_is(bench: Bench) -> None:
    bench.submit(0, body([1.0]))
    batch = bench.hub.take(10.0)
    assert batch is not None
    assert bench.hub.put_to_sleep("m", 2)
    run(batch)
    bench.collect(1)


def test_a_sleeper_that_cannot_be_woken_is_tried_again_with_the_next_request(bench: Bench) -> None:
    bench.hub.put_to_sleep("m", 1)
    bench.submit(0, body([1.0]))
    bench.submit(1, body([1.0], "other"))
    while bench.hub.wanted() != [("m", 1)]:
        batch = bench.hub.take(10.0)
        if batch is not None:
            run(batch)
    bench.hub.clear_version("m", 1, RESOURCE_EXHAUSTED, "no room")
    bench.collect(2)
    assert bench.answers[0] == (RESOURCE_EXHAUSTED, b"", "no room")
    assert bench.answers[1][0] == 0
    bench.submit(2, body([1.0]))
    assert bench.hub.take(10.0) is None
    assert bench.hub.wanted() == [("m", 1)]


def test_a_deadline_passes_while_it_sleeps(bench: Bench) -> None:
    bench.hub.put_to_sleep("m", 1)
    bench.submit(0, body([1.0]), 0.05)
    assert bench.hub.take(10.0) is None
    bench.hub.wanted()
    waiting = threading.Thread(target=bench.hub.take, args=(10.0,))
    waiting.start()
    bench.collect(1)
    assert bench.answers[0][0] == DEADLINE_EXCEEDED
    bench.hub.wake()
    waiting.join()


def test_versions_that_are_taken_away_while_they_sleep(bench: Bench) -> None:
    bench.hub.put_to_sleep("m", 2)
    bench.submit(0, body([1.0], "2"))
    bench.hub.install("m", 1, [1], {"champion": 1})
    assert bench.hub.take(0.0) is None
    bench.collect(1)
    assert bench.answers[0][0] == NOT_FOUND
    # It comes back awake.
    bench.hub.install("m", 1, [1, 2], {"champion": 1})
    bench.submit(1, body([1.0], "2"))
    step(bench)
    bench.collect(2)
    assert bench.answers[1][0] == 0


def test_closing_waits_for_those_that_are_wanted(bench: Bench) -> None:
    bench.hub.put_to_sleep("m", 1)
    bench.submit(0, body([1.0]))
    bench.hub.close()
    assert bench.hub.take(10.0) is None
    assert bench.hub.wanted() == [("m", 1)]
    threading.Timer(0.0, bench.hub.wake_up, ("m", 1)).start()
    step(bench)  # not None: something waits still
    bench.collect(1)
    assert bench.answers[0][0] == 0
    assert bench.hub.take(10.0) is None
    bench.hub.clear(UNAVAILABLE, "")
