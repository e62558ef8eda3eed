"""Load from threads of this process: every answer is checked against the version that it claims."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab.protos.v1 import trimtab_pb2 as tpb
from trimtab.protos.v1.inference_pb2_grpc import GRPCInferenceServiceStub
from trimtab.protos.v1.trimtab_pb2_grpc import FeedbackStub

from .world import infer_request, predictions


@dataclass
class Load:
    """Workers that send requests until `stop`."""

    address: str
    rows: list[pa.RecordBatch]
    answers: dict[str, list[NDArray[np.float32]]]
    """What each version answers to each of `rows`, by version."""
    label: bool = False
    """Also send a label for each answered row."""
    codes: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    acknowledged: list[tuple[str, int]] = field(default_factory=list)
    """(request id, row) of every label that the server acknowledged."""
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._enough = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []

    def start(self, workers: int) -> Load:
        for number in range(workers):
            thread = threading.Thread(target=self._guard, args=(number,))
            thread.start()
            self._threads.append(thread)
        return self

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self.errors:
            raise self.errors[0]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds, which is looked at after every answer."""
        with self._enough:
            assert self._enough.wait_for(lambda: condition() or bool(self.errors), 120)

    def _guard(self, number: int) -> None:
        try:
            self._work(number)
        except BaseException as error:
            with self._enough:
                self.errors.append(error)
                self._enough.notify_all()

    def _work(self, number: int) -> None:
        with grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub, feedback = GRPCInferenceServiceStub(channel), FeedbackStub(channel)
            turn = number
            while not self._stop.is_set():
                which = turn % len(self.rows)
                turn += 1
                try:
                    response = stub.ModelInfer(infer_request(self.rows[which]), timeout=60)
                except grpc.RpcError as error:
                    self._count(error.code().name)  # type: ignore[attr-defined]
                    if error.code() is grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]
                        return
                    continue
                self._check(response, which)
                if self.label:
                    self._send_label(feedback, response)

    def _check(self, response: Any, which: int) -> None:
        version = response.model_version
        expected = self.answers[version][which]
        right = np.allclose(predictions(response), expected, rtol=1e-4, atol=1e-6)
        with self._enough:
            self.codes["OK"] += 1
            self.versions[version] += 1
            if not right:
                self.wrong.append(f"version {version}, rows {which}: {predictions(response)[:3]} {expected[:3]}")
            self._enough.notify_all()

    def _send_label(self, feedback: Any, response: Any) -> None:
        sent = response.parameters["trimtab_request_id"].string_param
        label = tpb.Label(request_id=sent, row=0, text="yes", observed_at_us=1)
        try:
            feedback.Send(tpb.FeedbackRequest(labels=[label]), timeout=60)
        except grpc.RpcError as error:
            self._count(f"label {error.code().name}")  # type: ignore[attr-defined]
            return
        with self._enough:
            self.acknowledged.append((sent, 0))
            self._enough.notify_all()

    def _count(self, code: str) -> None:
        with self._enough:
            self.codes[code] += 1
            self._enough.notify_all()
