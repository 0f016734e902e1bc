"""An admitted request → the HTTP response that relays its answer.

Headers wait for the first frame, so that an error which only the engine can find still gets its status. A stream whose
first frame does not come within `header_hold_s` is opened with a comment, so that no proxy cuts it; faults that are
found later are its last event.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Message, Receive, Scope, Send

from api import problems
from api.admission import Door, Ticket
from api.observe import DIRECT_SEND
from api.relay import Relay, is_event_stream
from api.settings import ApiSettings
from api.transport import socket_writer
from shared.errors import RequestError
from shared.metrics import DURATION, FINISHED, REJECTED, TTFT
from shared.wire import Meta

T = TypeVar("T")

_HOP_HEADERS = frozenset({"content-length", "connection", "transfer-encoding", "server", "date", "content-type"})
_STREAM_TYPE = "text/event-stream; charset=utf-8"
_JSON_TYPE = "application/json"
_BAD_GATEWAY = 500
_FIRST_ERROR_STATUS = 400


def ticket_headers(ticket: Ticket) -> dict[str, str]:
    """What every generation's response says about itself."""
    headers = {"x-request-id": ticket.rid, "x-penstock-request": ticket.rid, "x-penstock-lane": ticket.lane}
    return {**headers, "Idempotency-Status": ticket.status} if ticket.status else headers


class _Events(EventSourceResponse):
    """sse-starlette's response with a plain loop over ready-made events.

    Its own loop encodes each event and opens a cancel scope around each send, which cost more than everything else that
    a replica does with a token. Disconnects, heartbeats and shutdown stay its own. While the client keeps up, events do
    not even wake this response's task: the relay sends them from the subscriber's callback. See docs/adr/0007.
    """

    def __init__(
        self,
        relay: Relay,
        events: AsyncGenerator[bytes, None],
        *,
        over: Callable[[], None],
        direct: bool,
        **options: Any,
    ) -> None:
        """`over` is called when the response has ended, however it ended. `options` are EventSourceResponse's.

        `direct`: what the relay takes may go to the client as it is.
        """
        super().__init__(events, **options)
        self._relay = relay
        self._over = over
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        self._direct_send: Send = scope.get(DIRECT_SEND, send)
        try:
            await super().__call__(scope, receive, send)
        finally:  # a generator that was never started runs no `finally` of its own
            self._relay.send_now = None
            self._over()

    async def _stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        direct = self._direct_send
        events = cast("AsyncGenerator[bytes, None]", self.body_iterator)
        if self._direct:
            self._relay.send_now = socket_writer(direct)
        async with contextlib.aclosing(events):
            async for piece in events:
                await direct(_chunk(piece))
        async with self._send_lock:
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _chunk(events: bytes) -> Message:
    return {"type": "http.response.body", "body": events, "more_body": True}


class Answer:
    """Builds the response of one admitted request, and lets the request go when the response is over."""

    def __init__(self, door: Door, ticket: Ticket, settings: ApiSettings, *, stream: bool) -> None:
        self._door = door
        self._ticket = ticket
        self._settings = settings
        self._stream = stream
        self._left = False

    async def response(self, request: Request) -> Response:
        """The response; for a stream, once its head is known or has been waited for long enough."""
        relay = self._ticket.relay
        try:
            if self._stream:  # a client that hangs up meanwhile is noticed once the stream is open
                opened = await relay.opened(self._settings.header_hold_s)
                if not opened or (relay.head is not None and self._as_events(relay.head)):
                    return self._events_or_refusal()
            return await self._whole(request)
        except RequestError as error:
            return self._problem(error)
        except BaseException:
            self._leave("replica_error")
            raise

    def _as_events(self, head: Meta) -> bool:
        shape = self._ticket.shape
        return is_event_stream(head) if shape is None else shape.streams(head)

    def _events_or_refusal(self) -> Response:
        refusal = problems.of_first_event(self._ticket.relay.first_bytes)
        if refusal is not None:
            return self._problem(refusal)
        if self._ticket.relay.head is not None:
            self._observe_first()
        return self._events()

    def _problem(self, error: RequestError) -> Response:
        self._leave(error.code)
        REJECTED.labels(code=error.code).inc()
        return problems.response(error, ticket_headers(self._ticket))

    def _events(self) -> _Events:
        head = self._ticket.relay.head
        headers = {**_headers(head), **ticket_headers(self._ticket), "Cache-Control": "no-cache"}
        return _Events(
            self._ticket.relay,
            self._relayed(),
            over=lambda: self._leave("client_gone"),
            direct=self._ticket.shape is None,
            status_code=head.status if head else 200,
            headers=headers,
            media_type=_STREAM_TYPE,
            ping=self._settings.heartbeat_s,
            ping_message_factory=_heartbeat,
            shutdown_grace_period=self._settings.drain_s,
            sep="\n",
        )

    async def _relayed(self) -> AsyncGenerator[bytes, None]:
        relay, shape = self._ticket.relay, self._ticket.shape
        outcome = "client_gone"
        try:
            if relay.head is None and relay.end is None:
                yield b": queued\n\n"
            while True:
                piece = relay.take()
                if piece:
                    if shaped := piece if shape is None else shape.piece(piece):
                        yield shaped
                elif (end := relay.end) is not None:
                    break
                else:
                    await relay.advance()
            outcome = end.state
            if outcome == "succeeded" and shape is not None:
                yield shape.end(end)
            if outcome != "succeeded":
                yield problems.event(problems.of_end(end))
        except RequestError as error:
            outcome = error.code
            yield problems.event(error)
        finally:
            self._leave(outcome)

    async def _whole(self, request: Request) -> Response:
        relay = self._ticket.relay
        body = await _unless_gone(request, relay.rest())
        if body is None:
            self._leave("client_gone")
            return Response(status_code=499)
        self._observe_first()
        end, head = relay.end, relay.head
        if end is not None and (end.state != "succeeded" or head is None):
            raise problems.of_end(end)
        if self._ticket.shape is not None:
            body = self._ticket.shape.whole(body)
        self._leave("succeeded")
        if head is None:
            return Response(status_code=_BAD_GATEWAY)
        if head.status >= _FIRST_ERROR_STATUS:
            return problems.response(problems.of_refusal(head.status, body), ticket_headers(self._ticket))
        kind = next((value for name, value in head.headers if name == "content-type"), _JSON_TYPE)
        if self._ticket.shape is not None:
            kind = _JSON_TYPE
        return Response(body, head.status, {**_headers(head), **ticket_headers(self._ticket), "content-type": kind})

    def _observe_first(self) -> None:
        ticket = self._ticket
        TTFT.labels(lane=ticket.lane, model=ticket.model).observe(time.monotonic() - ticket.accepted_at_s)

    def _leave(self, outcome: str) -> None:
        if self._left:
            return
        self._left = True
        ticket = self._ticket
        self._door.leave(ticket)
        FINISHED.labels(lane=ticket.lane, model=ticket.model, outcome=outcome).inc()
        DURATION.labels(lane=ticket.lane, model=ticket.model).observe(time.monotonic() - ticket.accepted_at_s)


def _headers(head: Meta | None) -> dict[str, str]:
    """The engine's headers that concern the answer and not the engine's connection."""
    return {name: value for name, value in head.headers if name not in _HOP_HEADERS} if head else {}


def _heartbeat() -> ServerSentEvent:
    return ServerSentEvent(comment="heartbeat", sep="\n")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when the client hung up first; `work` is then cancelled."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
