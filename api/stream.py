"""The response that sends a stream of ready-made events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable

from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from api.observe import DIRECT_SEND
from api.outlet import TICK_S
from api.relay import Relay
from api.settings import ApiSettings
from api.transport import hang_up, socket_writer

_NEVER_S = 10**9


class EventStream(Response):
    """A stream of ready-made events.

    On uvicorn it takes the short way: while the client keeps up, the relay writes events from the subscriber's callback
    and this response's task sleeps; hang-ups and heartbeats are looked after by the relay's watch. Behind any other
    server the same events go through sse-starlette, whose task group costs more per request than the queue does.
    See docs/adr/0007.
    """

    def __init__(
        self,
        relay: Relay,
        pieces: AsyncGenerator[bytes, None],
        *,
        over: Callable[[], None],
        direct: bool,
        status: int,
        headers: list[tuple[bytes, bytes]],
        settings: ApiSettings,
    ) -> None:
        """`over` is called when the response has ended, however it ended.

        `direct`: what the relay takes may go to the client as it is.
        """
        self.status_code = status
        self.raw_headers = headers
        self.background = None
        self._relay = relay
        self._pieces = pieces
        self._over = over
        self._direct = direct
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        direct: Send = scope.get(DIRECT_SEND, send)
        try:
            if self._relay.hung_up is None:
                await self._by_sse_starlette()(scope, receive, send)
            else:
                await self._short(send, direct)
        finally:  # a generator that was never started runs no `finally` of its own
            self._relay.send_now = self._relay.comment_now = None
            self._over()

    async def _short(self, send: Send, direct: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        relay = self._relay
        if not relay.plain:
            relay.heartbeat_ticks = max(1, round(self._settings.heartbeat_s / TICK_S))
        relay.comment_now = socket_writer(direct)
        if self._direct:
            relay.send_now = relay.comment_now
        async with contextlib.aclosing(self._pieces) as pieces:
            async for piece in pieces:
                await direct({"type": "http.response.body", "body": piece, "more_body": True})
        if relay.cut:
            await hang_up(direct)
        else:
            await direct({"type": "http.response.body", "body": b"", "more_body": False})

    def _by_sse_starlette(self) -> EventSourceResponse:
        own = {b"content-type", b"cache-control", b"x-accel-buffering"}  # it sets these itself
        return EventSourceResponse(
            self._pieces,
            status_code=self.status_code,
            headers={name.decode(): value.decode() for name, value in self.raw_headers if name not in own},
            ping=_NEVER_S if self._relay.plain else self._settings.heartbeat_s,
            ping_message_factory=_heartbeat,
            shutdown_grace_period=self._settings.drain_s,
            sep="\n",
        )


def _heartbeat() -> ServerSentEvent:
    return ServerSentEvent(comment="heartbeat", sep="\n")
