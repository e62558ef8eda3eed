"""Trimtab's Python client: ask for predictions, tell what was true, watch. docs/client.md is the guide.

Needs a server's address and the protocol; knows nothing of models, files or training.
"""

from trimtab.client.admin import AdminClient, AsyncAdminClient, Running, running
from trimtab.client.aio import AsyncClient
from trimtab.client.errors import (
    Cancelled,
    ClientError,
    Conflict,
    DeadlineExceeded,
    Denied,
    Exhausted,
    InvalidInput,
    NotFound,
    ServerFault,
    Unavailable,
    Unfit,
    Unsupported,
)
from trimtab.client.sync import Client
from trimtab.client.tls import Tls
from trimtab.client.types import (
    Drift,
    DriftFeature,
    DriftMeasure,
    Event,
    FeedbackResult,
    JointDrift,
    Label,
    LossEstimate,
    Result,
    Tensor,
)

__all__ = [
    "AdminClient",
    "AsyncAdminClient",
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClientError",
    "Conflict",
    "DeadlineExceeded",
    "Denied",
    "Drift",
    "DriftFeature",
    "DriftMeasure",
    "Event",
    "Exhausted",
    "FeedbackResult",
    "InvalidInput",
    "JointDrift",
    "Label",
    "LossEstimate",
    "NotFound",
    "Result",
    "Running",
    "ServerFault",
    "Tensor",
    "Tls",
    "Unavailable",
    "Unfit",
    "Unsupported",
    "running",
]
