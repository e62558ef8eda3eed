"""The client against a real server process: every form of rows, feedback, drift, events, errors, threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from trimtab.client import (
    AdminClient,
    AsyncAdminClient,
    AsyncClient,
    Client,
    Conflict,
    Event,
    Exhausted,
    InvalidInput,
    Label,
    NotFound,
    Result,
    Unfit,
    running,
)

from . import served
from .served import Server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc, model="mixed", admin=server.admin) as made:
        yield made


@pytest.fixture
def data() -> pa.Table:
    return served.rows(20, seed=5).drop_columns(["time", "late"])


def test_every_form_of_rows_gets_the_same_answer(client: Client, data: pa.Table) -> None:
    frame = data.to_pandas()
    forms: list[Any] = [data, data.to_batches()[0], frame, data.to_pydict(), {n: frame[n] for n in frame}]
    answers = [client.infer(form) for form in forms]
    for answer in answers:
        assert np.array_equal(answer.predictions, answers[0].predictions)
        assert answer.predictions.shape == (20,)
        assert answer.outputs["probability"].shape == (20, 1)
        assert answer.rows == 20
        assert answer.version == 1
        assert answer.weights == answers[0].weights
        assert answer.model == "mixed"
    assert len({answer.request_id for answer in answers}) == len(answers)


def test_an_array_and_its_columns_get_the_same_answer(server: Server) -> None:
    values = np.random.default_rng(1).normal(size=(7, 2)).astype(np.float32)
    with Client(server.grpc, model="numbers") as client:
        packed = client.infer(values)
        columns = client.infer({"score": values[:, 0], "distance": values[:, 1]})
    assert np.array_equal(packed.predictions, columns.predictions)


def test_one_row_of_values(client: Client, data: pa.Table) -> None:
    first = {name: values[0] for name, values in data.to_pydict().items()}
    assert np.array_equal(client.infer(first).predictions, client.infer(data.slice(0, 1)).predictions)


def test_ids_versions_and_outputs(client: Client, data: pa.Table) -> None:
    answer = client.infer(data, version=1, request_id="mine", outputs=["probability"], time_us=served.START_US)
    assert answer.id == "mine"
    with pytest.raises(NotFound, match='no version "9"'):
        client.infer(data, version=9)
    with pytest.raises(InvalidInput, match="nonsense"):
        client.infer(data, outputs=["nonsense"])


def test_a_server_with_several_models_wants_a_name(server: Server, data: pa.Table) -> None:
    with Client(server.grpc) as client, pytest.raises(InvalidInput, match="one of 'mixed', 'numbers'"):
        client.infer(data)
    with Client(server.grpc, model="nobody") as client, pytest.raises(NotFound, match="no model 'nobody'"):
        client.infer(data)


def test_a_request_that_is_too_large(client: Client, data: pa.Table) -> None:
    rows = pa.concat_tables([data] * 10)
    large = rows.set_column(rows.column_names.index("carrier"), "carrier", pa.array(["x" * 400_000] * len(rows)))
    with pytest.raises(Exhausted):
        client.infer(large)


def test_labels_of_a_request(client: Client, data: pa.Table) -> None:
    answer = client.infer(data)
    first = client.feedback(answer, [True, "false", 1], observed_at=10)
    assert (first.accepted, first.outcomes) == (3, ("accepted",) * 3)
    again = client.feedback(answer.request_id, {0: True, 1: True}, observed_at=10)
    assert (again.duplicate, again.conflict) == (1, 1)
    corrected = client.feedback(answer.request_id, {1: True}, observed_at=11, source="reviewer")
    assert corrected.accepted == 1
    assert client.feedback(answer, [None]).accepted == 0


def test_labels_by_key_and_wrong_ones(client: Client, data: pa.Table) -> None:
    client.infer(data)
    by_key = client.feedback([Label(True, key=["F3"], weight=2.0)])
    assert by_key.accepted == 1
    wrong = client.feedback([Label("perhaps", key=["F4"]), Label(True, "no id"), Label(True, key=["F5"])])
    assert wrong.outcomes == ("invalid", "invalid", "accepted")
    assert "perhaps" in wrong.first_error


def test_drift_windows(server: Server, client: Client, data: pa.Table) -> None:
    rows = served.rows(120, seed=9).drop_columns(["time", "late"])
    for _ in range(2):
        client.infer(rows)
    with AdminClient(server.admin) as admin:
        admin.advance(0, model="mixed")
    windows = client.drift(windows=4)
    assert windows
    assert {"score", "prediction"} <= {feature.feature for feature in windows[-1].features}
    assert windows[-1].rows >= 50
    measures = {measure.name for measure in windows[-1].features[0].measures}
    assert measures <= {"psi", "jensen_shannon", "kolmogorov_smirnov", "wasserstein", "chi_square"}
    assert len(client.drift()) == 1


def test_events_as_they_happen(server: Server) -> None:
    seen: list[Event] = []
    watching = threading.Event()

    def watch() -> None:
        with Client(server.grpc, model="numbers", admin=server.admin) as client:
            for event in client.watch():
                seen.append(event)
                watching.set()
                if event.message.endswith("the last"):
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    with AdminClient(server.admin) as admin:
        # The stream has begun when its first event came; promotions before that may be missed.
        while not watching.wait(0.2):
            admin.promote("numbers", 2, reason="there")
            admin.promote("numbers", 1, reason="and back")
        admin.promote("numbers", 2, reason="the last")
    thread.join(30)
    assert not thread.is_alive()
    assert seen[-1].kind == "promoted"
    assert (seen[-1].model, seen[-1].version) == ("numbers", 2)


def test_watch_needs_the_admin_socket(server: Server) -> None:
    with Client(server.grpc, model="mixed") as client, pytest.raises(InvalidInput, match="admin"):
        next(iter(client.watch()))


def test_many_threads_share_a_client(client: Client, data: pa.Table) -> None:
    expected = client.infer(data).predictions
    answers: list[Result] = []

    def ask() -> None:
        for _ in range(5):
            answers.append(client.infer(data))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({answer.request_id for answer in answers}) == 40
    assert all(np.allclose(answer.predictions, expected, atol=1e-6) for answer in answers)


def test_admin_calls(server: Server) -> None:
    found = running(server.directory / "state")
    assert found is not None
    assert (found.grpc, found.admin) == (server.grpc, server.admin)
    with AdminClient(found.admin, retries=1) as admin:
        status = admin.status()
        assert {model.name for model in status.models} == {"mixed", "numbers"}
        assert admin.versions("mixed").live == 1
        assert len(admin.stage("mixed", 1).weights) == 64
        epoch = admin.versions("numbers").epoch
        with pytest.raises(Conflict):
            admin.promote("numbers", 1, expected_epoch=epoch + 7)
        with pytest.raises(Unfit, match="no previous"):
            admin.rollback("mixed")
        with pytest.raises(NotFound):
            admin.promote("numbers", 99)
        with pytest.raises(Unfit, match="without a trainer"):
            admin.retrain("numbers")


def test_forgetting_a_request(server: Server, client: Client, data: pa.Table) -> None:
    answer = client.infer(data)
    client.feedback(answer, [True, True])
    with AdminClient(server.admin) as admin:
        gone = admin.forget("mixed", [answer.request_id])
    assert (gone.rows, gone.labels) == (20, 2)


def test_lifecycle_is_not_on_the_public_port(server: Server) -> None:
    from trimtab.client import Unsupported

    with AdminClient(server.grpc, retries=0) as admin, pytest.raises(Unsupported):
        admin.promote("mixed", 1)


async def test_asyncio(server: Server, data: pa.Table) -> None:
    import asyncio

    async with AsyncClient(server.grpc, model="mixed", admin=server.admin) as client:
        assert await client.ready()
        answers = await asyncio.gather(*(client.infer(data) for _ in range(10)))
        assert len({answer.request_id for answer in answers}) == 10
        told = await client.feedback(answers[0], [True] * 20)
        assert told.accepted == 20
        assert isinstance(await client.drift(), list)
        with pytest.raises(InvalidInput, match="missing input"):
            await client.infer({"score": [1.0]})
    async with AsyncClient(server.grpc, model="numbers", admin=server.admin) as client:
        events = client.watch()
        waiting = asyncio.ensure_future(anext(events))
        async with AsyncAdminClient(server.admin) as admin:
            for version in itertools.cycle((1, 2)):
                await admin.promote("numbers", version, reason="for the watcher")
                if (await asyncio.wait([waiting], timeout=0.2))[0]:
                    break
            assert (await waiting).kind == "promoted"
            await events.aclose()  # type: ignore[attr-defined]
            assert (await admin.status()).ready
            assert (await admin.versions("mixed")).live == 1


async def test_asyncio_finds_the_only_model_or_says_why_not(server: Server) -> None:
    async with AsyncClient(server.grpc) as client:
        with pytest.raises(InvalidInput, match="several models"):
            await client.model()


def test_a_restarted_server_with_other_columns_is_asked_again(server: Server, data: pa.Table) -> None:
    with Client(server.grpc, model="mixed") as client:
        client.infer(data)
        # What a client of long standing may still believe.
        client._inputs["mixed"] = client._inputs["mixed"][:2]
        with pytest.raises(InvalidInput):
            client.infer(data)
        assert client.infer(data).rows == 20


def test_messages_are_those_of_the_server(server: Server) -> None:
    # The plain stub, to compare with.
    from trimtab.protos.v1 import inference_pb2 as inference
    from trimtab.protos.v1.inference_pb2_grpc import GRPCInferenceServiceStub

    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as raw:
        GRPCInferenceServiceStub(channel).ModelMetadata(inference.ModelMetadataRequest(name="nobody"))
    with Client(server.grpc, model="nobody") as client, pytest.raises(NotFound) as caught:
        client.inputs()
    assert str(caught.value) == raw.value.details()  # type: ignore[attr-defined]
