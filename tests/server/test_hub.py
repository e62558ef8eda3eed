"""The hub through LocalOrigin: many threads, a stand-in for the model, and the protocol's own classes as the oracle."""

from __future__ import annotations

import random
import select
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab._native import Batch, BatchPolicy, Hub, LocalOrigin, QueuePolicy, Schema, Slab, TensorSchema, TensorSlab
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.statistics import FINE_BOUNDS, LATENCY_BOUNDS

OUTPUTS = [("y", "FP32", [1]), ("version", "INT64", [])]
CANCELLED, NOT_FOUND, UNAVAILABLE = 1, 5, 14


class Bench:
    """A hub with one model "m" of two reals."""

    def __init__(self, **policy: Any) -> None:
        self.hub = Hub()
        self.schema = Schema(["a", "b"], ["real", "real"], 0)
        self.hub.add_model("m", self.schema, OUTPUTS, BatchPolicy(**policy))
        self.hub.install("m", 1, [1, 2], {"champion": 1, "other": 2})
        self.origin = LocalOrigin(self.hub)
        self.answers: dict[int, tuple[int, bytes, str]] = {}

    def submit(self, token: int, body: bytes, timeout: float | None = None, **options: Any) -> None:
        self.origin.submit(token, body, timeout, **options)

    def collect(self, count: int, seconds: float = 30.0) -> None:
        """Takes answers until there are so many."""
        while len(self.answers) < count:
            assert select.select([self.origin], [], [], seconds)[0], f"{len(self.answers)} of {count} answers"
            for token, status, answer, message in self.origin.drain():
                assert token not in self.answers
                self.answers[token] = (status, answer, message)

    def response(self, token: int) -> Any:
        status, answer, message = self.answers[token]
        assert status == 0, message
        return pb.ModelInferResponse.FromString(answer)


def body(values: list[float], version: str = "", model: str = "m", **fields: Any) -> bytes:
    """A request whose rows are (value, -value)."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, **fields)
    request.inputs.add(name="features", datatype="FP32", shape=[len(values), 2])
    request.raw_input_contents.append(np.array([[v, -v] for v in values], "<f4").tobytes())
    return request.SerializeToString()


def run(batch: Batch) -> None:
    """The model: y = 2 a, and which version it was."""
    slab = batch.slab
    assert isinstance(slab, Slab)
    y = (slab.reals(0) * 2).reshape(-1, 1)
    batch.answer("w" * 64, [np.ascontiguousarray(y), np.full(batch.rows, batch.version, np.int64)])


def step(bench: Bench) -> None:
    batch = bench.hub.take(10.0)
    assert batch is not None
    run(batch)


def values(response: Any, output: int = 0) -> Any:
    return np.frombuffer(response.raw_output_contents[output], ["<f4", "<i8"][output])


@pytest.fixture
def bench() -> Bench:
    return Bench()


@given(
    columns=st.sampled_from([1, 3, 4, 5, 8, 31, 255, 257, 260]),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    seed=st.integers(0, 99),
)
def test_packed_rows_come_to_their_columns_bit_by_bit(columns: int, counts: list[int], seed: int) -> None:
    hub = Hub()
    names = [f"x{i}" for i in range(columns)]
    hub.add_model("m", Schema(names, ["real"] * columns, 0), OUTPUTS, BatchPolicy())
    hub.install("m", 1, [1], {})
    origin = LocalOrigin(hub)
    bits = np.random.default_rng(seed).integers(0, 1 << 32, (sum(counts), columns), np.uint32)  # with NaNs of all kinds
    first = 0
    for token, count in enumerate(counts):
        request = pb.ModelInferRequest(model_name="m", id="i" * token)  # which moves what follows to odd places
        request.inputs.add(name="features", datatype="FP32", shape=[count, columns])
        request.raw_input_contents.append(bits[first : first + count].tobytes())
        origin.submit(token, request.SerializeToString(), None)
        first += count
    batch = hub.take(10.0)
    assert batch is not None
    slab = batch.slab
    assert isinstance(slab, Slab)
    for column in range(columns):
        assert slab.reals(column).view(np.uint32).tolist() == bits[:, column].tolist()
    batch.fail(NOT_FOUND, "")


def test_each_request_gets_its_own_rows_of_every_output(bench: Bench) -> None:
    for token, rows in enumerate([[1.0], [2.0, 3.0], [4.0]]):
        bench.submit(token, body(rows))
    step(bench)
    bench.collect(3)
    assert [values(bench.response(token)).tolist() for token in range(3)] == [[2.0], [4.0, 6.0], [8.0]]
    assert [list(output.shape) for output in bench.response(1).outputs] == [[2, 1], [2]]
    assert [output.name for output in bench.response(1).outputs] == ["y", "version"]


def test_requested_outputs_come_in_the_order_asked_for(bench: Bench) -> None:
    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("version", "y")]
    bench.submit(0, body([1.0], outputs=wanted))
    bench.submit(1, body([1.0], outputs=wanted[:1]))
    step(bench)
    bench.collect(2)
    assert [output.name for output in bench.response(0).outputs] == ["version", "y"]
    assert len(bench.response(1).raw_output_contents) == 1


def test_answers_from_a_template_are_those_written_one_by_one(bench: Bench) -> None:
    """Requests that are alike are answered by filling in; one with an id is written whole. They must agree."""
    for token in range(6):
        bench.submit(token, body([float(token)] * (1 + token % 2), id="x" if token > 3 else ""))
    step(bench)
    bench.collect(6)
    for token in range(6):
        response = bench.response(token)
        assert values(response).tolist() == [2.0 * token] * (1 + token % 2)
        assert response.parameters["trimtab_request_id"].string_param[14] == "7"
        again = pb.ModelInferResponse()
        again.CopyFrom(response)
        again.id = ""
        again.parameters["trimtab_request_id"].string_param = "-"
        again.raw_output_contents[0] = b""
        twin = bench.response(token % 2)
        twin.parameters["trimtab_request_id"].string_param = "-"
        twin.raw_output_contents[0] = b""
        assert again == twin


def test_request_ids_grow_and_are_those_of_the_answers(bench: Bench) -> None:
    for token in range(20):
        bench.submit(token, body([1.0]))
    batch = bench.hub.take(10.0)
    assert batch is not None
    ids = [bytes(row).hex() for row in batch.request_ids]
    run(batch)
    bench.collect(20)
    sent = [bench.response(t).parameters["trimtab_request_id"].string_param.replace("-", "") for t in range(20)]
    assert sent == ids == sorted(ids)


def test_wrong_outputs_send_nothing_and_the_batch_can_still_fail(bench: Bench) -> None:
    bench.submit(0, body([1.0]))
    batch = bench.hub.take(10.0)
    assert batch is not None
    good = np.zeros((1, 1), np.float32)
    for outputs in (
        [good],
        [good, np.zeros(2, np.int64)],
        [good.astype(np.float64), np.zeros(1, np.int64)],
        [[0.0], np.zeros(1, np.int64)],
        [np.zeros((1, 2), np.float32)[:, ::2], np.zeros(1, np.int32)],
    ):
        with pytest.raises(ValueError, match="expected"):
            batch.answer("w", outputs)
    batch.fail(13, "no luck")
    batch.fail(13, "again")
    bench.collect(1)
    assert bench.answers[0] == (13, b"", "no luck")


def test_batch_that_is_dropped_fails_its_requests(bench: Bench) -> None:
    bench.submit(0, body([1.0]))
    batch = bench.hub.take(10.0)
    assert batch is not None
    del batch
    bench.collect(1)
    assert bench.answers[0][0] == 13


def test_in_a_stream_errors_are_answers(bench: Bench) -> None:
    bench.submit(0, body([1.0], id="a"), in_stream=True)
    bench.submit(1, body([1.0], version="9", id="b"), in_stream=True)
    step(bench)
    bench.collect(2)
    good = pb.ModelStreamInferResponse.FromString(bench.answers[0][1])
    assert (good.error_message, good.infer_response.id) == ("", "a")
    bad = pb.ModelStreamInferResponse.FromString(bench.answers[1][1])
    assert 'no version "9"' in bad.error_message
    assert bad.infer_response.id == "b"


def test_order_is_preserved_across_versions_and_priorities() -> None:
    bench = Bench(preserve_ordering=True, levels=[QueuePolicy(), QueuePolicy()], default_level=1)
    slow = body([1.0], version="2")
    fast = pb.ModelInferRequest.FromString(body([2.0]))
    fast.parameters["priority"].int64_param = 1
    bench.submit(0, slow)
    bench.submit(1, fast.SerializeToString())
    step(bench)
    assert bench.origin.drain() == []
    step(bench)
    assert [answer[0] for answer in bench.origin.drain()] == [0, 1]


def test_removed_model_answers_what_waits_and_its_name_may_be_used_again(bench: Bench) -> None:
    bench.submit(0, body([1.0]))
    assert bench.hub.remove_model("m")
    assert not bench.hub.remove_model("m")
    bench.collect(1)
    assert bench.answers[0][0] == NOT_FOUND
    bench.submit(1, body([1.0]))
    bench.hub.add_model("m", bench.schema, OUTPUTS, BatchPolicy())
    bench.submit(2, body([1.0]))
    bench.hub.install("m", 3, [3], {})
    bench.submit(3, body([1.0]))
    step(bench)
    bench.collect(4)
    assert [bench.answers[token][0] for token in (1, 2, 3)] == [NOT_FOUND, NOT_FOUND, 0]


def test_model_with_a_batch_under_way_does_not_stop_the_others(bench: Bench) -> None:
    bench.hub.add_model("n", bench.schema, OUTPUTS, BatchPolicy())
    bench.hub.install("n", 5, [5], {})
    bench.submit(0, body([1.0]))
    stalled = bench.hub.take(10.0)
    assert stalled is not None
    bench.submit(1, body([1.0]))
    bench.submit(2, body([2.0], model="n"))
    other = bench.hub.take(10.0)
    assert other is not None
    assert other.model == "n"
    run(other)
    assert bench.hub.take(0.0) is None
    run(stalled)
    step(bench)
    bench.collect(3)
    assert [values(bench.response(token), 1).tolist() for token in range(3)] == [[1], [1], [5]]


def test_device_time_is_shared_between_models(bench: Bench) -> None:
    """A model with much more waiting does not hold up one with little."""
    bench.hub.add_model("n", bench.schema, OUTPUTS, BatchPolicy())
    bench.hub.install("n", 5, [5], {})
    turns = []
    for token in range(6):
        bench.submit(token, body([1.0] * 300))
    for token in range(6, 9):
        bench.submit(token, body([1.0], model="n"))
    while (batch := bench.hub.take(0.0)) is not None:
        turns.append(batch.model)
        run(batch)
        # Take longer over "m".
        if batch.model == "m":
            sum(range(200_000))
        del batch
    assert turns.index("n") <= 1


def test_tensor_models_batch_what_has_one_shape() -> None:
    hub = Hub()
    hub.add_model("t", TensorSchema([("x", "FP32", [-1])]), [("s", "FP32", []), ("n", "BYTES", [])], BatchPolicy())
    hub.install("t", 1, [1], {})
    origin = LocalOrigin(hub)

    def send(token: int, width: int) -> None:
        request = pb.ModelInferRequest(model_name="t")
        request.inputs.add(name="x", datatype="FP32", shape=[2, width])
        request.raw_input_contents.append(np.full((2, width), token, "<f4").tobytes())
        origin.submit(token, request.SerializeToString(), None)

    for token, width in ((1, 3), (2, 3), (3, 4)):
        send(token, width)
    rows = []
    while (batch := hub.take(0.0)) is not None:
        slab = batch.slab
        assert isinstance(slab, TensorSlab)
        rows.append(batch.rows)
        total = np.ascontiguousarray(slab.array(0).sum(axis=1))
        batch.answer("w", [total, [f"{value:g}" for value in total]])
    assert rows == [4, 2]
    answers = {token: pb.ModelInferResponse.FromString(answer) for token, _, answer, _ in origin.drain()}
    assert np.frombuffer(answers[2].raw_output_contents[0], "<f4").tolist() == [6.0, 6.0]
    assert answers[3].raw_output_contents[1] == b"\x02\0\0\x0012\x02\0\0\x0012"


def test_everything_is_answered_once_under_threads_that_submit_cancel_install_and_compute() -> None:
    """Invariants, whatever the timing: every request is answered exactly once, with its own values, by one version that
    was loaded, or with a status that what happened to it explains; and the counters add up."""
    bench = Bench(max_batch_size=16, levels=[QueuePolicy(max_queue_size=200)])
    hub, stop = bench.hub, threading.Event()
    origins, per_origin, threads = 3, 1500, []
    seen: list[dict[int, tuple[int, bytes, str]]] = [{} for _ in range(origins)]
    sent: list[dict[int, tuple[list[float], str]]] = [{} for _ in range(origins)]

    def client(index: int) -> None:
        rng, origin = random.Random(index), LocalOrigin(hub)

        def drain(seconds: float) -> None:
            if select.select([origin], [], [], seconds)[0]:
                for token, status, answer, message in origin.drain():
                    assert token not in seen[index]
                    seen[index][token] = (status, answer, message)

        for token in range(per_origin):
            rows = [float(rng.randrange(1000)) for _ in range(rng.choice([1, 1, 1, 3, 40]))]
            version = rng.choice(["", "", "1", "2", "champion", "other", "9"])
            sent[index][token] = (rows, version)
            origin.submit(token, body(rows, version), rng.choice([None, None, 1e-9, 0.0005, 5.0]))
            if rng.random() < 0.2:
                origin.cancel(rng.randrange(token + 1))
            if token % 32 == 0:
                drain(0.002)
        while len(seen[index]) < per_origin:
            drain(30.0)

    def compute() -> None:
        while not stop.is_set():
            batch = hub.take(0.05)
            if batch is not None:
                run(batch)

    def swap() -> None:
        rng = random.Random(7)
        while not stop.is_set():
            live = rng.choice([1, 2])
            hub.install("m", live, rng.choice([[1, 2], [live]]), {"champion": live, "other": 3 - live})

    threads = [threading.Thread(target=client, args=(index,)) for index in range(origins)]
    workers = [threading.Thread(target=target) for target in (compute, compute, swap)]
    for thread in (*workers, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    stop.set()
    for thread in workers:
        thread.join(60)
    outcomes: dict[int, int] = {}
    for answered, asked in zip(seen, sent, strict=True):
        assert answered.keys() == asked.keys()
        for token, (status, answer, message) in answered.items():
            outcomes[status] = outcomes.get(status, 0) + 1
            rows, version = asked[token]
            if status:
                assert status in (CANCELLED, 4, NOT_FOUND, 8), message
                continue
            response = pb.ModelInferResponse.FromString(answer)
            assert values(response).tolist() == [2 * row for row in rows]
            assert set(values(response, 1).tolist()) == {int(response.model_version)}
            assert version not in ("1", "2") or response.model_version == version
    counts = hub.statistics("m")
    fine = np.frombuffer(hub.latencies("m"), np.uint64)
    assert len(fine) == len(FINE_BOUNDS) - 1
    assert fine.sum() == outcomes[0]
    for bound, coarse in zip(LATENCY_BOUNDS, np.cumsum(counts["total"][0]), strict=False):
        # The two kinds of buckets cut one another.
        assert fine[FINE_BOUNDS[1:] <= bound * 1e9].sum() <= coarse <= fine[FINE_BOUNDS[:-1] <= bound * 1e9].sum()
    assert outcomes[0] == sum(one["requests"] for one in counts["versions"].values())
    assert outcomes.get(CANCELLED, 0) == counts["dropped"]["cancelled"]
    assert sum(outcomes.values()) == origins * per_origin
    assert hub.waiting("m") == 0


@pytest.mark.parametrize(("timeout", "why"), [(0.2, "expired"), (3600.0, "cancelled"), (None, "cancelled")])
def test_given_up_at_its_deadline_counts_as_expired(bench: Bench, timeout: float | None, why: str) -> None:
    """Whoever notices first that a deadline has passed: the queue, or the client by its own clock, a little earlier."""
    began = time.monotonic()
    bench.submit(0, body([1.0]), timeout)
    while timeout is not None and timeout < 1 and time.monotonic() < began + timeout - 0.001:
        time.sleep(0.001)
    bench.origin.cancel(0)
    bench.collect(1)
    assert bench.answers[0][0] == (4 if why == "expired" else CANCELLED)
    dropped = bench.hub.statistics("m")["dropped"]
    assert {name: count for name, count in dropped.items() if count} == {why: 1}


def test_draining_refuses_and_closing_flushes(bench: Bench) -> None:
    slow = Bench(max_queue_delay=60.0)
    slow.submit(0, body([1.0]))
    slow.hub.set_draining(True)
    slow.submit(1, body([1.0]))
    # What waits for company waits no longer.
    step(slow)
    slow.hub.close()
    assert slow.hub.take(30.0) is None
    slow.collect(2)
    assert [slow.answers[token][0] for token in (0, 1)] == [0, UNAVAILABLE]
