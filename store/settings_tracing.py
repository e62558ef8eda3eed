"""[server.tracing]: which inference requests become OpenTelemetry spans, and where those go.

Knows nothing of OpenTelemetry, which is an extra: the server says so where it is missing.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from trimtab.store.settings_base import Count, Settings, Share

__all__ = ["TracingSettings"]


class TracingSettings(Settings):
    """OpenTelemetry spans of inference requests, sent by OTLP over HTTP. Needs `pip install trimtab[otel]`."""

    enabled: bool = False
    """Trace. Off, a request costs nothing for it."""
    endpoint: str = ""
    """Base URL of the collector; spans go to its /v1/traces. Empty: what OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or
    OTEL_EXPORTER_OTLP_ENDPOINT say, or http://localhost:4318."""
    service_name: str = ""
    """The spans' service.name. Empty: what OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say, or "trimtab"."""
    ratio: Share = 0.01
    """Share traced of the requests that come without a traceparent. Those with one are traced where its flag says
    "sampled", and only then."""
    per_second: Annotated[Count, Field(le=100_000)] = 100
    """Most requests traced in a second; those beyond are counted in trimtab_spans_dropped_total."""

    @field_validator("endpoint")
    @classmethod
    def _url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"expected a URL with http:// or https://, got {value!r}")
        return value
