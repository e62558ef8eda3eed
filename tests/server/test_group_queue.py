"""The group queue through LocalOrigin: each message is answered once, with its own answer, whatever happens to it."""

from __future__ import annotations

import random
import select
import threading

import pytest
from trimtab._native import GroupQueue, LocalOrigin

CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 4, 8, 13, 14
Answer = tuple[int, bytes, str]


class Client:
    """An origin, and what came back to it."""

    def __init__(self, queue: GroupQueue) -> None:
        self.origin = LocalOrigin(queue)
        self.answers: dict[int, Answer] = {}

    def send(self, token: int, body: bytes = b"", timeout: float | None = None) -> None:
        self.origin.submit(token, body or str(token).encode(), timeout)

    def drain(self) -> None:
        for token, status, answer, message in self.origin.drain():
            assert token not in self.answers
            self.answers[token] = (status, answer, message)

    def collect(self, count: int) -> dict[int, Answer]:
        """What came back, once there is so much of it."""
        while len(self.answers) < count:
            assert select.select([self.origin], [], [], 30)[0], f"{len(self.answers)} of {count} answers"
            self.drain()
        return self.answers


def serve(queue: GroupQueue) -> int:
    """Answers a group, each message with itself in capitals; gives its size."""
    group = queue.take()
    assert group is not None
    group.answer([(0, "", body.upper()) for body in group.bodies])
    return len(group.bodies)


@pytest.fixture
def queue() -> GroupQueue:
    return GroupQueue(100, 4)


@pytest.fixture
def client(queue: GroupQueue) -> Client:
    return Client(queue)


def test_all_that_waits_is_one_group_and_each_gets_its_own_answer(queue: GroupQueue, client: Client) -> None:
    for token, body in enumerate((b"a", b"b", b"c")):
        client.send(token, body)
    assert serve(queue) == 3
    assert client.collect(3) == {0: (0, b"A", ""), 1: (0, b"B", ""), 2: (0, b"C", "")}


def test_group_is_bounded_and_in_order_of_arrival(queue: GroupQueue, client: Client) -> None:
    for token in range(6):
        client.send(token)
    first, second = queue.take(), queue.take()
    assert first is not None
    assert second is not None
    assert [body for group in (first, second) for body in group.bodies] == [str(token).encode() for token in range(6)]
    assert len(first.bodies) == 4


def test_errors_are_of_single_messages(queue: GroupQueue, client: Client) -> None:
    client.send(0)
    client.send(1)
    group = queue.take()
    assert group is not None
    group.answer([(3, "no such ü", b""), (0, "", b"fine")])
    assert client.collect(2) == {0: (3, b"", "no such ü"), 1: (0, b"fine", "")}


def test_too_many_bytes_are_refused_at_once(queue: GroupQueue, client: Client) -> None:
    client.send(0, b"x" * 60)
    client.send(1, b"x" * 60)
    assert client.collect(1)[1][0] == RESOURCE_EXHAUSTED
    client.send(2, b"x" * 40)
    assert serve(queue) == 2
    client.send(3, b"x" * 60)
    assert serve(queue) == 1
    assert [client.collect(4)[token][0] for token in (0, 2, 3)] == [0, 0, 0]


def test_message_larger_than_the_bound_may_wait_alone(queue: GroupQueue, client: Client) -> None:
    client.send(0, b"x" * 1000)
    client.send(1)
    assert serve(queue) == 1
    assert {token: answer[0] for token, answer in client.collect(2).items()} == {0: 0, 1: RESOURCE_EXHAUSTED}


def test_cancelled_frees_its_place_at_once(queue: GroupQueue, client: Client) -> None:
    client.send(0, b"x" * 90)
    client.send(1, b"y")
    client.origin.cancel(0)
    assert client.collect(1)[0][0] == CANCELLED
    client.send(2, b"z" * 90)
    assert serve(queue) == 2
    client.collect(3)
    client.origin.cancel(2)  # long answered


def test_cancelled_after_it_was_taken_is_answered_as_usual(queue: GroupQueue, client: Client) -> None:
    client.send(0)
    group = queue.take()
    assert group is not None
    client.origin.cancel(0)
    group.answer([(0, "", b"done")])
    assert client.collect(1)[0] == (0, b"done", "")


def test_expired_is_not_given(queue: GroupQueue, client: Client) -> None:
    client.send(0, timeout=0.0)
    client.send(1)
    group = queue.take()
    assert group is not None
    assert group.bodies == [b"1"]
    assert client.collect(1)[0][0] == DEADLINE_EXCEEDED


def test_wrong_number_of_answers_sends_none(queue: GroupQueue, client: Client) -> None:
    client.send(0)
    group = queue.take()
    assert group is not None
    with pytest.raises(ValueError, match="expected 1 answers, came 2"):
        group.answer([(0, "", b""), (0, "", b"")])
    client.drain()
    assert client.answers == {}
    group.answer([(0, "", b"!")])
    with pytest.raises(ValueError, match="expected 0 answers"):
        group.answer([(0, "", b"!")])
    assert client.collect(1)[0] == (0, b"!", "")


def test_group_that_is_dropped_is_answered(queue: GroupQueue, client: Client) -> None:
    client.send(0)
    group = queue.take()
    assert group is not None
    del group
    assert client.collect(1)[0][0] == INTERNAL


def test_draining_refuses_and_what_waits_is_served(queue: GroupQueue, client: Client) -> None:
    client.send(0)
    queue.set_draining(True)
    client.send(1)
    queue.close()
    client.send(2)
    assert serve(queue) == 1
    assert queue.take() is None
    assert [client.collect(3)[token][0] for token in range(3)] == [0, UNAVAILABLE, UNAVAILABLE]


def test_everything_is_answered_once_under_threads_that_submit_cancel_and_serve() -> None:
    queue, count, origins = GroupQueue(400, 16), 2000, 3
    served: list[bytes] = []

    def take() -> None:
        while (group := queue.take()) is not None:
            served.extend(group.bodies)
            group.answer([(0, "", body[::-1]) for body in group.bodies])

    def send(client: Client, seed: int) -> None:
        rng = random.Random(seed)
        for token in range(count):
            client.send(token, f"{seed}-{token}".encode(), rng.choice([None, None, 0.0, 5.0]))
            if rng.random() < 0.3:
                client.origin.cancel(rng.randrange(token + 1))
            if token % 64 == 0:
                client.drain()
        client.collect(count)

    clients = [Client(queue) for _ in range(origins)]
    taker = threading.Thread(target=take)
    senders = [threading.Thread(target=send, args=(client, seed)) for seed, client in enumerate(clients)]
    for thread in (taker, *senders):
        thread.start()
    for thread in senders:
        thread.join(60)
        assert not thread.is_alive()
    queue.close()
    taker.join(60)
    assert not taker.is_alive()
    answered = []
    for seed, client in enumerate(clients):
        assert client.answers.keys() == set(range(count))
        for token, (status, answer, _) in client.answers.items():
            assert status in (0, CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED)
            if status == 0:
                assert answer[::-1] == f"{seed}-{token}".encode()
                answered.append(answer[::-1])
    assert sorted(answered) == sorted(served)
