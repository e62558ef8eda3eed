"""The client for threads. One Client may be used by any number of threads; each call blocks its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray
from trimtab.client import messages
from trimtab.client.admin import AdminClient
from trimtab.client.errors import InvalidInput
from trimtab.client.retry import Backoff
from trimtab.client.tls import Tls
from trimtab.client.types import Drift, Event, FeedbackResult, Label, Result, Rows, Tensor, Truth
from trimtab.client.wire import Wire
from trimtab.protos.v1 import inference_pb2 as inference
from trimtab.protos.v1 import trimtab_pb2 as trimtab
from trimtab.protos.v1.inference_pb2_grpc import GRPCInferenceServiceStub
from trimtab.protos.v1.trimtab_pb2_grpc import DriftStub, FeedbackStub

__all__ = ["Client"]


class Client:
    """Asks a Trimtab server, and tells it what was true.

    `address`: "host:port". `model`: its name; None where the server has only one. `timeout`: seconds for a call and its
    retries. `retries`: attempts after the first, on UNAVAILABLE only. `admin`: path of the admin socket, for `watch`.
    `tls`: where the server speaks it.

    Every call raises ClientError (see trimtab.client.errors); none connects before it is made. A context manager.
    """

    def __init__(
        self,
        address: str,
        *,
        model: str | None = None,
        timeout: float = 10.0,
        retries: int = 4,
        admin: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.timeout = timeout
        self._model = model
        self._wire = Wire(address, Backoff(retries), tls=tls)
        self._inference = GRPCInferenceServiceStub(self._wire.channel)
        self._feedback = FeedbackStub(self._wire.channel)
        self._drift = DriftStub(self._wire.channel)
        self._admin = AdminClient(admin, retries=retries) if admin is not None else None
        self._inputs: dict[str, tuple[Tensor, ...]] = {}
        self._lock = threading.Lock()

    @property
    def model(self) -> str:
        """The model's name; asks the server where none was given."""
        with self._lock:
            if self._model is None:
                index = self._wire.call(
                    self._inference.RepositoryIndex, inference.RepositoryIndexRequest(), self.timeout
                )
                self._model = messages.only_model(index)
            return self._model

    def inputs(self) -> tuple[Tensor, ...]:
        """The model's inputs, by its metadata; asked once, and again after a request that did not fit."""
        model = self.model
        with self._lock:
            if model not in self._inputs:
                request = inference.ModelMetadataRequest(name=model)
                metadata = self._wire.call(self._inference.ModelMetadata, request, self.timeout)
                self._inputs[model] = messages.tensors(metadata)
            return self._inputs[model]

    def ready(self) -> bool:
        """Whether the server takes requests for the model now. Does not retry."""
        from trimtab.client.errors import Unavailable

        try:
            request = inference.ModelReadyRequest(name=self.model)
            return bool(self._wire.call(self._inference.ModelReady, request, self.timeout).ready)
        except Unavailable:
            return False

    def infer(
        self,
        rows: Rows,
        *,
        version: str | int = "",
        time_us: int | None = None,
        request_id: str = "",
        outputs: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Result:
        """Predictions for `rows`: a dict of columns (or of one row's values), a NumPy array [rows, features], a pandas
        DataFrame, or an Arrow table or batch.

        Columns are sent as the types of the model's inputs; None, NaN, NaT, pd.NA and null are missing values. Of a
        DataFrame or table, columns that the model does not take are left alone. `version`: empty for the live one.
        `time_us`: the rows' data time, µs since the epoch; None: when the server gets them. `request_id`: the
        caller's own id, given back as `Result.id`. `outputs`: only these. `timeout`: seconds, instead of the
        client's."""
        model = self.model
        request, count = messages.infer_request(
            model, self.inputs(), rows, version=version, time_us=time_us, request_id=request_id, outputs=outputs
        )
        try:
            response = self._wire.call(self._inference.ModelInfer, request, timeout or self.timeout)
        except InvalidInput:
            # The model behind the name may take other columns by now.
            with self._lock:
                self._inputs.pop(model, None)
            raise
        return messages.result(response, count)

    def feedback(
        self,
        target: str | Result | Iterable[Label],
        values: Sequence[Truth] | NDArray[Any] | Mapping[int, Truth] | Truth | None = None,
        *,
        observed_at: datetime | int | None = None,
        source: str = "",
        timeout: float | None = None,
    ) -> FeedbackResult:
        """Tells what was true: `feedback(answer, [1, 0])` for a request's rows in order, `feedback(request_id, {3:
        1})` for some of them, or `feedback([Label(...), ...])`.

        Accepted labels are on the server's disk when this returns. Safe to repeat: what is known already counts as a
        duplicate."""
        labels = messages.labels_of(target, values, observed_at=observed_at, source=source)
        if not labels:
            return FeedbackResult()
        request = messages.feedback_request(self.model, labels)
        return messages.feedback_result(self._wire.call(self._feedback.Send, request, timeout or self.timeout))

    def drift(self, windows: int = 0, *, timeout: float | None = None) -> list[Drift]:
        """The newest `windows` closed windows of served rows against the training data, newest last; 0: the newest
        one."""
        request = trimtab.DriftRequest(model_name=self.model, windows=windows)
        return messages.drifts(self._wire.call(self._drift.Report, request, timeout or self.timeout))

    def watch(self) -> Iterator[Event]:
        """Events of the model as they happen, until the iteration ends. Needs `admin`."""
        if self._admin is None:
            raise InvalidInput("watch needs the admin socket: Client(..., admin=PATH)")
        return self._admin.watch(self.model)

    def close(self) -> None:
        """Closes the connections."""
        self._wire.close()
        if self._admin is not None:
            self._admin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
