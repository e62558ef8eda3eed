"""[server.limits] on both transports: those that gRPC has options for hold there, too, and the others are named."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc
import pytest

from .transports import TRANSPORTS, open_bench, status_of


@pytest.mark.parametrize("name", sorted(TRANSPORTS))
async def test_header_bytes(name: str, tmp_path: Path) -> None:
    async with open_bench(name, tmp_path, limits={"header_bytes": 2048}) as bench:
        assert await bench.raw("Raw")(b"ab", metadata=[("small", "x" * 500)]) == b"ba"
        error = await status_of(bench.raw("Raw")(b"ab", metadata=[("large", "x" * 5000)]))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("name", sorted(TRANSPORTS))
async def test_age_is_no_failure(name: str, tmp_path: Path) -> None:
    limits = {"age_seconds": 1.0, "age_grace_seconds": 5.0}
    async with open_bench(name, tmp_path, limits=limits) as bench:
        call = bench.raw("Hang")(b"answered")
        await bench.echo.entered.wait()
        peers = set()
        while len(peers) < 2:  # the connection is another one
            peers.add(await bench.raw("Peer")(b""))
        bench.echo.release.set()
        assert await call == b"answered"


async def test_limits_that_grpc_has_no_option_for_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with open_bench("grpcio", tmp_path, limits={"streams": 5, "message_rate": 1.0, "write_seconds": 2.0}):
            pass
    assert "message_rate, write_seconds" in caplog.text
    assert "streams" not in caplog.text
