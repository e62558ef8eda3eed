"""[server.limits]: what clients may take of the server. The defaults are those of the native front
(csrc/front_limits.h); a test compares them.

Knows nothing of transports: each takes from here what it can enforce.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from trimtab.store.settings_base import Count, Settings

__all__ = ["LimitsSettings"]

_Bytes = Annotated[int, Field(ge=1024)]
_Window = Annotated[int, Field(ge=16_384, le=2_147_483_647)]
_Rate = Annotated[float, Field(gt=0.0)]
_Seconds = Annotated[float, Field(ge=0.0)]


class LimitsSettings(Settings):
    """What the gRPC port lets a client take; the defaults are safe on the open network. `transport = "grpcio"` heeds
    these alone, and only where they are given: connections, streams, header_bytes, handshake_seconds, idle_seconds,
    keepalive_seconds, keepalive_timeout_seconds, age_seconds and age_grace_seconds; it has no means for the others."""

    connection_bytes: _Bytes = 268_435_456
    """Bytes of requests that are not answered, per connection; at least max_message_bytes."""
    total_bytes: _Bytes = 1_073_741_824
    """Bytes of requests that are not answered and of answers that are not sent, over all connections; at least
    connection_bytes. Beyond it, the connection that holds most loses its calls (RESOURCE_EXHAUSTED)."""
    output_bytes: _Bytes = 16_777_216
    """Bytes of answers that a connection's client has not taken; beyond it, no more is read from it."""
    header_bytes: _Bytes = 16_384
    """Bytes of a request's header names and values, and 32 for each."""
    stream_window: _Window = 1_048_576
    """HTTP/2 window of a call, in bytes: what a client may send ahead."""
    connection_window: _Window = 16_777_216
    """HTTP/2 window of a connection, in bytes."""
    connections: Count = 16_384
    """Connections at once; one more takes the place of the one that is idle for longest, or is refused."""
    streams: Annotated[int, Field(ge=1, le=2_147_483_647)] = 1024
    """Calls at once, per connection."""
    stream_requests: Count = 256
    """Requests of one ModelStreamInfer that are not answered; beyond it, its client waits."""
    resets_per_second: _Rate = 200.0
    """RST_STREAM frames a second, per connection; a flood of frames ends the connection with ENHANCE_YOUR_CALM."""
    reset_burst: _Rate = 2000.0
    """RST_STREAM frames at once."""
    controls_per_second: _Rate = 500.0
    """PING, SETTINGS, PRIORITY, CONTINUATION, unknown and empty DATA frames a second, per connection."""
    control_burst: _Rate = 2000.0
    """Such frames at once."""
    updates_per_second: _Rate = 100_000.0
    """WINDOW_UPDATE frames a second, per connection."""
    update_burst: _Rate = 200_000.0
    """Such frames at once."""
    handshake_seconds: _Seconds = 10.0
    """Seconds from connecting to the first HTTP/2 frame, TLS included. 0: any time, as for all times below."""
    header_seconds: _Seconds = 10.0
    """Seconds in which a request's headers, once begun, must be complete, and every frame but DATA; else the connection
    ends with ENHANCE_YOUR_CALM."""
    message_seconds: _Seconds = 30.0
    """Seconds in which at least message_rate * message_seconds bytes of a message must come, or its end; else the call
    ends with DEADLINE_EXCEEDED."""
    message_rate: _Seconds = 1024.0
    """Bytes a second, see message_seconds. 0: one byte in message_seconds will do."""
    write_seconds: _Seconds = 60.0
    """Seconds for which answers may wait without the client taking any of them; then its connection is closed."""
    idle_seconds: _Seconds = 900.0
    """Seconds for which a connection may have no call; then it is told to come again (GOAWAY) and closed."""
    keepalive_seconds: _Seconds = 120.0
    """Seconds of silence after which a connection is sent a ping."""
    keepalive_timeout_seconds: _Seconds = 20.0
    """Seconds for the answer to it; then the connection is closed."""
    age_seconds: _Seconds = 0.0
    """Seconds after which a connection is told to come again, so that clients spread over servers anew."""
    age_grace_seconds: _Seconds = 30.0
    """Seconds for its calls after that."""
