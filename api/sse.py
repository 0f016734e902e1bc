"""An admitted request → the HTTP response that relays its answer.

Headers wait for the first frame, so that an error which only the engine can find still gets its status. A stream whose
first frame does not come within `header_hold_s` is opened with a comment, so that no proxy cuts it; faults that are
found later are its last event.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from api import dialects, problems
from api.admission import Door
from api.cursors import is_event_stream
from api.observe import DIRECT_SEND
from api.settings import ApiSettings
from api.shape import Shape
from api.stream import EventStream
from api.ticket import Ticket
from api.transport import hang_up_watch
from shared.errors import BrokerUnavailableError, RequestError, broker_unavailable, history_lost
from shared.lanes import SERVICE_TIER, Lane
from shared.metrics import DISCONNECTS, DURATION, FINISHED, TTFT, child
from shared.wire import Meta

T = TypeVar("T")

_HOP_HEADERS = frozenset({"content-length", "connection", "transfer-encoding", "server", "date", "content-type"})
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events into buffers
]
_JSON_TYPE = "application/json"
_MOVED = b": this replica stops; go on at any other one, with Last-Event-ID\nretry: 200\n\n"
_FIRST_ERROR_STATUS = 400


def ticket_headers(ticket: Ticket, path: str) -> list[tuple[bytes, bytes]]:
    """What every generation's response says about itself."""
    rid, lane = ticket.rid.encode(), ticket.lane.encode()
    headers = [(b"x-request-id", rid), (b"x-penstock-request", rid), (b"x-penstock-lane", lane)]
    if ticket.lane in SERVICE_TIER:
        headers.append((b"x-penstock-service-tier", SERVICE_TIER[Lane(ticket.lane)].encode()))
    if dialects.speaks_anthropic(path):
        headers.append((b"request-id", rid))
    if ticket.status:
        headers.append((b"idempotency-status", ticket.status.encode()))
    return headers


def _engine_headers(head: Meta | None) -> list[tuple[bytes, bytes]]:
    """The engine's headers that concern the answer and not the engine's connection."""
    if head is None:
        return []
    return [(name.encode(), value.encode()) for name, value in head.headers if name not in _HOP_HEADERS]


def as_text(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers as Starlette's responses take them."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


class Answer:
    """Builds the response of one admitted request, and lets the request go when the response is over."""

    def __init__(self, door: Door, ticket: Ticket, settings: ApiSettings, *, stream: bool) -> None:
        self._door = door
        self._ticket = ticket
        self._settings = settings
        self._stream = stream
        self._left = False
        self._path = ""  # that the client has called: it decides how errors look
        self._late = False  # the stream was opened before the answer's head was known

    async def response(self, request: Request) -> Response:
        """The response; for a stream, once its head is known or has been waited for long enough."""
        relay = self._ticket.relay
        self._path = request.scope["path"]
        relay.hung_up = hang_up_watch(request.scope.get(DIRECT_SEND))
        try:
            if self._stream:
                opened = await relay.opened(self._settings.header_hold_s)
                if relay.gone:
                    return self._unheard()
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
        problems.note(error, self._path)
        return problems.response(error, self._path, as_text(ticket_headers(self._ticket, self._path)))

    def _events(self) -> EventStream:
        head = self._ticket.relay.head
        return EventStream(
            self._ticket.relay,
            self._relayed(),
            over=lambda: self._leave("client_gone"),
            direct=self._ticket.shape is None,
            status=head.status if head else 200,
            headers=[*_engine_headers(head), *ticket_headers(self._ticket, self._path), *_STREAM_HEADERS],
            settings=self._settings,
        )

    async def _relayed(self) -> AsyncGenerator[bytes, None]:
        relay = self._ticket.relay
        outcome = "client_gone"
        try:
            if relay.head is None and relay.end is None:
                yield await self._opening()
            while not relay.over:
                if piece := self._shaped(relay.take()):
                    yield piece
                elif not relay.over:
                    if relay.heartbeat:
                        relay.heartbeat = False
                        yield relay.comment
                    await relay.advance()
            outcome, last = await self._closing()
            if last:
                yield last
        except (RequestError, BrokerUnavailableError) as error:
            fault = error if isinstance(error, RequestError) else broker_unavailable()
            outcome = fault.code
            yield self._error_event(fault)
        except Exception:
            outcome = "replica_error"
            raise
        finally:
            self._leave(outcome)

    async def _closing(self) -> tuple[str, bytes]:
        """How it went, and what a stream closes with once there is nothing more to relay."""
        relay = self._ticket.relay
        if relay.cut:
            return "moved", b"" if relay.plain else _MOVED
        if relay.end is None:
            return "client_gone", b""
        return relay.end.state, await self._last_event(relay.end)

    async def _opening(self) -> bytes:
        """What a stream opens with whose answer is not there yet; nothing for a client that wants no comments."""
        self._late = True
        if self._ticket.relay.plain:
            return b""
        await self._door.waiting.add(self._ticket)
        return self._ticket.relay.comment

    def _shaped(self, piece: bytes) -> bytes:
        """What the client gets for a piece of the answer. The form may be known late: see `_late_head`, Door.enter."""
        head = self._ticket.relay.head
        if self._late and piece and head is not None:
            self._late = False
            self._door.waiting.remove(self._ticket)
            self._late_head(head, piece)
        shape = self._ticket.shape
        return piece if shape is None else shape.piece(piece)

    def _late_head(self, head: Meta, first: bytes) -> None:
        """The answer begins after its stream was opened. Raises RequestError when all it says is an error."""
        if (refusal := problems.of_first_event(first)) is not None:
            raise refusal
        if is_event_stream(head):
            self._observe_first()
        elif self._ticket.shape is None:
            self._ticket.shape = Shape(self._ticket.relay, stream=True)

    def _error_event(self, fault: RequestError) -> bytes:
        """The last event of a stream that breaks off."""
        problems.note(fault, self._path)
        return dialects.event(fault, self._path)

    async def _last_event(self, end: Meta) -> bytes:
        """What follows the answer's own events."""
        if end.state != "succeeded":
            fault = await self._fault(end)
            problems.note(fault, self._path)
            return dialects.event(fault, self._path)
        return b"" if self._ticket.shape is None else self._ticket.shape.end(end)

    async def _whole(self, request: Request) -> Response:
        relay = self._ticket.relay
        body = await (_unless_gone(request, relay.rest()) if relay.hung_up is None else relay.rest())
        if body is None:
            return self._unheard()
        end, head = relay.end, relay.head
        if head is None or end is None or end.state != "succeeded":
            raise history_lost() if end is None else await self._fault(end)
        if self._ticket.shape is not None:
            body = self._ticket.shape.whole(body)
        if head.status >= _FIRST_ERROR_STATUS:
            raise problems.of_refusal(head.status, body, self._ticket.model, self._path)
        self._leave("succeeded")
        ours = ticket_headers(self._ticket, self._path)
        kind = next((value for name, value in head.headers if name == "content-type"), _JSON_TYPE)
        if self._ticket.shape is not None:
            kind = _JSON_TYPE
        return Response(body, head.status, as_text([*_engine_headers(head), *ours]), kind)

    async def _fault(self, end: Meta) -> RequestError:
        """What the client is told of an end without an answer."""
        if self._ticket.cold and end.reason == "queue_timeout":
            return await self._door.nobody_came(self._ticket) or problems.of_end(end)
        return problems.of_end(end)

    def _unheard(self) -> Response:
        self._leave("client_gone")
        return Response(status_code=499)

    @property
    def headers(self) -> dict[str, str]:
        """What the response says about its request."""
        return as_text(ticket_headers(self._ticket, self._path))

    def _observe_first(self) -> None:
        """A stream's answer begins. A whole one has no beginning: its head comes with its end.

        Nor is it known of a stream that is gone on with: its client has seen the beginning elsewhere.
        """
        ticket = self._ticket
        if ticket.resumed:
            return
        child(TTFT, ticket.lane, ticket.model).observe(time.monotonic() - ticket.accepted_at_s)
        if ticket.exchange is not None:
            ticket.exchange.first()

    def _leave(self, outcome: str) -> None:
        if self._left:
            return
        self._left = True
        ticket = self._ticket
        self._door.waiting.remove(ticket)
        self._door.leave(ticket)
        child(FINISHED, ticket.lane, ticket.model, outcome).inc()
        if outcome == "client_gone":
            child(DISCONNECTS, "waiting" if ticket.relay.head is None else "reading").inc()
        child(DURATION, ticket.lane, ticket.model).observe(time.monotonic() - ticket.accepted_at_s)
        if ticket.exchange is not None:
            ticket.exchange.left(outcome, ticket.relay.end)


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
