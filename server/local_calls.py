"""Calls to the hub from the asyncio side: what grpc.aio and REST hand over, and await.

One per loop. A call is a message's bytes in and the answer's bytes out; the hub decodes, queues and encodes. Answers of
a batch arrive together, through an eventfd that the loop watches.
"""

from __future__ import annotations

import asyncio
import itertools

from trimtab._native import HotTarget, LocalOrigin
from trimtab.server.errors import error_of

__all__ = ["LocalCalls"]


class LocalCalls:
    """See the module. Made, used and closed on the loop."""

    def __init__(self, target: HotTarget, *, traces: bool = False) -> None:
        """`traces`: whether the target looks at traceparents."""
        self.traces = traces
        self._origin = LocalOrigin(target)
        self._loop = asyncio.get_running_loop()
        self._tokens = itertools.count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop.add_reader(self._origin.fileno(), self._drain)

    async def call(
        self, body: bytes, timeout: float | None, *, in_stream: bool = False, traceparent: str = ""
    ) -> bytes:
        """The encoded answer to a message. With `in_stream`, errors are answers too, in the stream's form.

        `timeout`: seconds until the answer is of no use. Raises the ServerError that the hub refused it with.
        Cancelling takes the request out of the queue, if it is still there.
        """
        token, future = self.submit(body, timeout, in_stream=in_stream, traceparent=traceparent)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(token)
            raise

    def submit(
        self, body: bytes, timeout: float | None, *, in_stream: bool = False, traceparent: str = ""
    ) -> tuple[int, asyncio.Future[bytes]]:
        """As `call`, without waiting: a token to cancel with, and the answer to come."""
        token = next(self._tokens)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[token] = future
        self._idle.clear()
        self._origin.submit(token, body, timeout, in_stream, traceparent)
        return token, future

    def cancel(self, token: int) -> None:
        """Takes a request out of the queue, if it is still there."""
        self._origin.cancel(token)

    async def drained(self) -> None:
        """Returns when no call is under way."""
        await self._idle.wait()

    def close(self) -> None:
        """Stops watching; calls under way are never answered."""
        self._loop.remove_reader(self._origin.fileno())

    def _drain(self) -> None:
        for token, number, answer, message in self._origin.drain():
            future = self._waiting.pop(token)
            if future.done():
                continue
            if number:
                future.set_exception(error_of(number, message))
            else:
                future.set_result(answer)
        if not self._waiting:
            self._idle.set()
