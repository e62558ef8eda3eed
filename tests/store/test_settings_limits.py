"""[server.limits]: its defaults are the front's own, and what cannot be meant is said."""

from __future__ import annotations

import pytest
from trimtab import _native
from trimtab.store.errors import ProjectError
from trimtab.store.project import Project
from trimtab.store.settings import LimitsSettings, ServerSettings

from .test_project import MODEL


def server(text: str) -> ServerSettings:
    return Project.loads(MODEL + text, "/p").server


def problem(text: str) -> str:
    with pytest.raises(ProjectError) as caught:
        server(text)
    (line,) = caught.value.problems
    return line.removeprefix("trimtab.toml: ")


@pytest.mark.skipif(not _native.HAS_FRONT, reason="the native front was not built")
def test_defaults_are_those_of_the_front() -> None:
    front = _native.FrontLimits().asdict()
    assert front.pop("max_message_bytes") == ServerSettings().max_message_bytes
    assert LimitsSettings().model_dump() == front
    assert ServerSettings().client_limits() == front


@pytest.mark.skipif(not _native.HAS_FRONT, reason="the native front was not built")
def test_what_is_given_reaches_the_front() -> None:
    given = server("[server.limits]\nstreams = 7\nmessage_seconds = 3\nmessage_rate = 0\n").client_limits()
    made = _native.FrontLimits(**given).asdict()
    assert (made["streams"], made["message_seconds"], made["message_rate"]) == (7, 3.0, 0.0)
    assert made.keys() - given.keys() == {"max_message_bytes"}


def test_large_messages_get_room_by_default() -> None:
    limits = server("[server]\nmax_message_bytes = 2000000000\n").client_limits()
    assert (limits["connection_bytes"], limits["total_bytes"]) == (2_000_000_000, 2_000_000_000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stream = 5", "[server.limits] unknown key 'stream'; did you mean 'streams'?"),
        ("streams = 0", "[server.limits] streams: expected an integer ≥ 1 and ≤ 2147483647, got 0"),
        ("streams = 2.5", "[server.limits] streams: expected an integer ≥ 1 and ≤ 2147483647, got 2.5"),
        ("idle_seconds = -1", "[server.limits] idle_seconds: expected a number ≥ 0.0, got -1"),
        ("idle_seconds = inf", "[server.limits] idle_seconds: expected a number ≥ 0.0, got inf"),
        ('idle_seconds = "1m"', '[server.limits] idle_seconds: expected a number ≥ 0.0, got "1m"'),
        ("reset_burst = 0", "[server.limits] reset_burst: expected a number > 0.0, got 0"),
        (
            "stream_window = 2147483648",
            "[server.limits] stream_window: expected an integer ≥ 16384 and ≤ 2147483647, got 2147483648",
        ),
        (
            "connection_bytes = 1000000",
            "[server] limits.connection_bytes: expected at least max_message_bytes (67108864), got 1000000",
        ),
        (
            "total_bytes = 1000000",
            "[server] limits.total_bytes: expected at least connection_bytes (268435456), got 1000000",
        ),
    ],
)
def test_what_cannot_be_meant(text: str, said: str) -> None:
    assert problem(f"[server.limits]\n{text}\n") == said
