"""What callers give and get: plain, frozen, typed. Knows nothing of gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = [
    "Column",
    "Drift",
    "DriftFeature",
    "DriftMeasure",
    "Event",
    "FeedbackResult",
    "JointDrift",
    "Label",
    "LossEstimate",
    "Rows",
    "Result",
    "Tensor",
    "Truth",
]

Truth: TypeAlias = bool | int | float | str
"""A label: a class's name, a number, or true/false."""

if TYPE_CHECKING:
    Column: TypeAlias = Sequence[Any] | NDArray[Any] | pd.Series[Any] | pa.Array[Any] | pa.ChunkedArray[Any]
    Rows: TypeAlias = Mapping[str, Column | Truth | None] | NDArray[Any] | pd.DataFrame | pa.Table | pa.RecordBatch
else:
    # Neither pandas nor pyarrow is imported for the sake of an annotation.
    Column = Rows = Any


@dataclass(frozen=True)
class Tensor:
    """A model's input or output, as its metadata has it."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Result:
    """The answer to one request: all rows by one version."""

    predictions: NDArray[Any]
    """The first output: [rows], or [rows, K] where it has K > 1 numbers a row."""
    outputs: Mapping[str, NDArray[Any]]
    """Every output by name, shaped as on the wire."""
    version: int
    """The version that answered."""
    weights: str
    """sha256 of its weights, hex."""
    request_id: str
    """Issued by the server; with a row's place it names the row in `feedback`."""
    rows: int
    """Rows in the request."""
    model: str = ""
    """The model that answered."""
    id: str = ""
    """The caller's own id, given back."""


@dataclass(frozen=True)
class Label:
    """The truth about one row: of a request id and place in it, or of the model's key columns' values."""

    value: Truth
    """The truth: a class's name, a number, or true/false."""
    request_id: str = ""
    """The answer's `request_id`; empty where `key` is given."""
    row: int = 0
    """Place of the row in its request."""
    key: Sequence[str] = ()
    """Values of the model's key columns, in their order."""
    output: str = ""
    """The output that it is for; empty: the only one."""
    weight: float = 1.0
    """Weight of the row in training, > 0."""
    observed_at: datetime | int | None = None
    """When the truth became known (µs since the epoch, or a datetime, without a zone: UTC); None: now."""
    source: str = ""
    """Who says so; kept with the label."""


@dataclass(frozen=True)
class FeedbackResult:
    """What became of the labels of one call; those accepted are on the server's disk."""

    accepted: int = 0
    """New, or a correction."""
    duplicate: int = 0
    """Known already."""
    conflict: int = 0
    """Contradicts what is known and is not newer: kept, not used."""
    invalid: int = 0
    """Not stored: the value or id cannot be one of this model."""
    outcomes: tuple[str, ...] = ()
    """"accepted", "duplicate", "conflict" or "invalid" for each label, in order."""
    first_error: str = ""
    """Why the first invalid label was refused."""


@dataclass(frozen=True)
class DriftMeasure:
    """One statistic of one feature."""

    name: str
    """"psi", "jensen_shannon", "kolmogorov_smirnov", "wasserstein" or "chi_square"."""
    value: float
    effect: float
    """As an effect size, which does not grow with the number of rows."""
    p_value: float


@dataclass(frozen=True)
class DriftFeature:
    """One feature, or "prediction", in one window."""

    feature: str
    measures: tuple[DriftMeasure, ...]
    missing_rate: float
    reference_missing_rate: float
    unseen_rate: float
    adjusted_p_value: float
    """Benjamini-Hochberg, over the window's features."""
    persistence: int
    """Windows in a row in which it was significant and large enough."""
    alarm: bool


@dataclass(frozen=True)
class LossEstimate:
    """What a window's predictions are likely to cost, before labels come: if P(label | prediction) is what it was when
    the version was evaluated. Concept drift is not seen."""

    loss: float
    """Expected mean: nats for classes, squared errors over the target's variance for values."""
    standard_error: float
    evaluated_loss: float
    """Mean loss of the labelled rows that the estimate stands on."""
    p_value: float
    """Two-sided: that the window's predictions cost as much as theirs."""
    auc: float | None
    """Expected; None where it is not of two classes."""


@dataclass(frozen=True)
class JointDrift:
    """How the columns of a sample of the window's rows go together, against the reference's."""

    mmd: float
    """Maximum mean discrepancy without the share that chance has in it; at most 2."""
    effect: float
    """Its square over the spread of single rows, times the number of columns."""
    p_value: float
    """Not adjusted: one test beside those of the features."""
    rows: int
    """Sampled rows of the window."""
    reference_rows: int
    persistence: int
    """Windows in a row in which it was significant and large enough."""
    alarm: bool


@dataclass(frozen=True)
class Drift:
    """One closed window of served rows against its reference."""

    model: str
    window: int
    start_us: int
    end_us: int
    rows: int
    reference_rows: int
    alarms: int
    features: tuple[DriftFeature, ...] = field(default=())
    """Largest effect first."""
    estimate: LossEstimate | None = None
    """None where the version cannot tell."""
    reference: str = "training"
    """What it was compared with: "training", "window 12, 7d earlier", or where the pinned sketch is from."""
    joint: JointDrift | None = None
    """None where too few rows were sampled, or the reference is of an older version."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a model's versions, data or trainer."""

    kind: str
    model: str
    version: int
    message: str
    time_us: int
    numbers: Mapping[str, float]


def one_per_row(values: NDArray[Any]) -> NDArray[Any]:
    """[n, 1] as [n]; anything else as it is."""
    return values.reshape(len(values)) if values.ndim == 2 and values.shape[1] == 1 else np.asarray(values)
