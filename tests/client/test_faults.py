"""Deadlines, retries and errors against a server that fails as scripted, sync and asyncio alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from trimtab.client import (
    AsyncClient,
    Cancelled,
    Client,
    ClientError,
    DeadlineExceeded,
    InvalidInput,
    Unavailable,
    errors,
)

from .scripted import Scripted, listening

Call = Callable[..., Any]


def _sync(address: str, **more: Any) -> Any:
    with Client(address, model="m", **more) as client:
        return client.ready()


def _async(address: str, **more: Any) -> Any:
    async def call() -> Any:
        async with AsyncClient(address, model="m", **more) as client:
            return await client.ready()

    return asyncio.run(call())


both = pytest.mark.parametrize("ready", [_sync, _async])


@both
def test_unavailable_is_tried_again(ready: Call) -> None:
    servicer = Scripted(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE)
    with listening(servicer) as address:
        assert ready(address) is True
    assert servicer.calls == 3


@both
def test_unavailable_for_ever_ends(ready: Call) -> None:
    servicer = Scripted(*[grpc.StatusCode.UNAVAILABLE] * 9)
    with listening(servicer) as address:
        # `ready` is a question: nobody there means no.
        assert ready(address, retries=2) is False
    assert servicer.calls == 3


@both
@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name not in ("OK", "UNAVAILABLE")])
def test_no_other_code_is_tried_again(ready: Call, code: grpc.StatusCode) -> None:
    servicer = Scripted(code)
    with listening(servicer) as address, pytest.raises(ClientError, match="as scripted") as caught:
        ready(address)
    assert servicer.calls == 1
    assert caught.value.code == code.name


@both
def test_every_call_has_a_deadline_and_keeps_it(ready: Call) -> None:
    servicer = Scripted()
    servicer.hang.clear()
    with listening(servicer) as address:
        with pytest.raises(DeadlineExceeded, match="in time"):
            ready(address, timeout=0.2)
        servicer.hang.set()
        ready(address)
    assert servicer.deadlines[0] is not None
    assert servicer.deadlines[0] < 1
    assert servicer.deadlines[1] is not None
    assert 5 < servicer.deadlines[1] < 11


@both
def test_retries_share_the_deadline(ready: Call) -> None:
    servicer = Scripted(*[grpc.StatusCode.UNAVAILABLE] * 99)
    with listening(servicer) as address:
        assert ready(address, timeout=0.3, retries=99) is False
    assert servicer.calls < 99


def test_nobody_there_says_so() -> None:
    with (
        Client("127.0.0.1:1", model="m", retries=0) as client,
        pytest.raises(Unavailable, match=r"no server answers at 127\.0\.0\.1:1") as caught,
    ):
        client.inputs()
    assert isinstance(caught.value, ConnectionError)


def test_closing_ends_a_call_that_waits() -> None:
    servicer = Scripted(*[grpc.StatusCode.UNAVAILABLE] * 99)
    with listening(servicer) as address:
        client = Client(address, model="m", timeout=60, retries=99)
        found: list[object] = []

        def call() -> None:
            try:
                found.append(client.ready())
            except ClientError as error:
                found.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        client.close()
        thread.join(20)
    assert not thread.is_alive()
    assert found
    with pytest.raises(Cancelled):
        client.ready()


def test_an_empty_address() -> None:
    with pytest.raises(InvalidInput, match="came an empty one"):
        Client("")


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for name in set(errors.__all__) - {"from_status"}:
        assert name in errors.__doc__
        assert issubclass(getattr(errors, name), ClientError)
