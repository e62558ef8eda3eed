"""How callers use the client, for mypy and pyright: both must agree with every assert_type and find every error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, assert_type

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from trimtab.client import AsyncClient, Client, Drift, Event, FeedbackResult, Label, Result, Tensor


def sync(frame: pd.DataFrame, table: pa.Table, batch: pa.RecordBatch) -> None:
    with Client("127.0.0.1:8001", model="flights", timeout=5.0, retries=2, admin="/run/admin.sock") as client:
        assert_type(client, Client)
        answer = client.infer({"carrier": ["UA", None], "distance": np.array([1.0, 2.0]), "hour": [7, 9]})
        assert_type(answer, Result)
        assert_type(answer.predictions, NDArray[Any])
        assert_type(answer.outputs, Mapping[str, NDArray[Any]])
        assert_type(answer.version, int)
        assert_type(answer.request_id, str)
        client.infer({"carrier": "UA", "distance": 1.0, "hour": 7, "wet": None})
        client.infer({"distance": frame["distance"], "carrier": table.column("carrier")})
        client.infer(np.zeros((2, 3), dtype=np.float32), version=3, timeout=1.0)
        client.infer(frame, time_us=1, request_id="mine", outputs=["probability"])
        client.infer(table)
        client.infer(batch)
        assert_type(client.feedback(answer, [1, 0]), FeedbackResult)
        client.feedback(answer.request_id, {0: "late"})
        client.feedback(answer.request_id, np.array([1.0]))
        client.feedback([Label(True, key=["UA", "17"]), Label(1.5, answer.request_id, row=1)])
        assert_type(client.drift(windows=3), list[Drift])
        assert_type(client.watch(), Iterator[Event])
        assert_type(client.inputs(), tuple[Tensor, ...])
        client.infer(3)  # type: ignore[arg-type]
        client.infer({"a": [1]}, version=1.5)  # type: ignore[arg-type]
        client.feedback(answer, object())  # type: ignore[arg-type]
        answer.version = 2  # type: ignore[misc]
    Client("127.0.0.1:8001", modell="x")  # type: ignore[call-arg]


async def asynchronous(frame: pd.DataFrame) -> None:
    async with AsyncClient("127.0.0.1:8001") as client:
        assert_type(await client.infer(frame), Result)
        assert_type(await client.feedback("id", [True]), FeedbackResult)
        assert_type(await client.drift(), list[Drift])
        async for event in client.watch():
            assert_type(event, Event)
