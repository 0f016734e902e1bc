"""A request as an object that is polled: its state, and once it has ended the answer that its client would have got.

The answer comes from the log, brought into the form that the request's route answers in: whole, also where it was asked
for as a stream.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from fastapi.responses import Response
from starlette.datastructures import State as AppState

from api import assembly, dialects, problems
from api.assembly_messages import to_message
from api.cursors import is_event_stream
from api.relay import Relay
from api.requests import Facts
from api.shape import Shape
from api.sse import as_text, ticket_headers
from api.ticket import Ticket
from api.waiting import shown
from shared import errors
from shared.errors import BrokerUnavailableError, RequestError
from shared.frames import read_log
from shared.hot import HotClient
from shared.outcomes import Place
from shared.states import State
from shared.wire import HEAD

_LOOK_AGAIN_S = 1
_JSON = "application/json"
_OK, _ACCEPTED, _FIRST_ERROR = 200, 202, 400
_RESPONSES = "/v1/responses"
_ANTHROPIC_FAULT = b'{"type":"error"'


def facts_shown(facts: Facts) -> dict[str, Any]:
    """What is known of a request from its record alone."""
    usage = {
        "prompt_tokens": facts.prompt_tokens,
        "completion_tokens": facts.completion_tokens,
        "total_tokens": facts.prompt_tokens + facts.completion_tokens,
    }
    return {
        "id": facts.rid,
        "object": "request",
        "state": facts.state,
        "reason": facts.reason or None,
        "cancel_requested": bool(facts.cancel),
        "endpoint": facts.endpoint or None,
        "model": facts.model or None,
        "lane": facts.lane,
        "worker": facts.owner or None,
        "attempts": facts.claims,
        "queued_at_ms": facts.queued_at_ms,
        "started_at_ms": facts.started_at_ms or None,
        "finished_at_ms": facts.finished_at_ms or None,
        "usage": usage if facts.terminal else None,
    }


def told(body: dict[str, Any], facts: Facts, place: Place | None = None, status: int = _OK) -> Response:
    """The HTTP response with a polled object, which is `body` and where the request stands."""
    again = {} if facts.terminal else {"Retry-After": str(_LOOK_AGAIN_S)}
    return Response(msgspec.json.encode({**body, "queue": shown(place)}), status, again, _JSON)


async def polled(state: AppState, facts: Facts, *, partial: bool = False) -> Response:
    """A request with its answer; `partial`: of a stream also what there is of it, while it runs and where it broke off.

    Raises BrokerUnavailableError, RequestError when its answer cannot be read now.
    """
    place = await state.door.waiting.find(facts.keys, facts.rid, facts.lane) if facts.state == State.QUEUED else None
    body = {**facts_shown(facts), "response": await _answer(state, facts)}
    if partial:
        body["partial"] = await _so_far(state.client, facts)
    return told(body, facts, place)


async def accepted(state: AppState, ticket: Ticket, path: str) -> Response:
    """202: the request goes on, and its client comes back for the answer."""
    state.door.leave(ticket)
    location = f"/v1/requests/{ticket.rid}"
    headers = {"Location": location, "Preference-Applied": "respond-async", **as_text(ticket_headers(ticket, path))}
    body: dict[str, Any] = {
        "id": ticket.rid,
        "object": "request",
        "state": "queued",
        "lane": ticket.lane,
        "attempts": 0,
    }
    try:
        facts: Facts | None = await state.requests.look(ticket.keys, ticket.rid)
    except BrokerUnavailableError:  # it was admitted, and its client must know where
        facts = None
    if facts is not None:
        body = facts_shown(facts)
    if facts is None or not facts.terminal:
        headers["Retry-After"] = str(_LOOK_AGAIN_S)
    return Response(msgspec.json.encode(body), _ACCEPTED, headers, _JSON)


async def _answer(state: AppState, facts: Facts) -> dict[str, Any] | None:
    """Status and body of the answer; None as long as there is none, and once it is not kept any more.

    Raises BrokerUnavailableError, RequestError (503).
    """
    if not facts.terminal or not facts.kept:
        return None
    try:
        if facts.endpoint == _RESPONSES:
            stored = await state.responses.find(facts)
            return None if stored is None else _told(_OK, _JSON, await state.responses.current(stored))
        return await read_answer(state.door.reader(facts.keys, facts.rid), facts.model, facts.endpoint)
    except RequestError as error:
        if error.code == errors.broker_unavailable().code:
            raise
        return _told(error.status, _JSON, msgspec.Raw(dialects.envelope(error, facts.endpoint)))


async def read_answer(relay: Relay, model: str, endpoint: str, shape: Shape | None = None) -> dict[str, Any]:
    """The answer in the log: its status, its type and its body, in the form that the route answers in.

    `shape`: what makes a whole answer of it, where the route's own form does not. Raises RequestError where its client
    would have got an error.
    """
    relay.on_gap()
    body = await relay.rest() or b""
    head, end = relay.head, relay.end
    if end is None or end.state != State.SUCCEEDED or head is None:
        raise errors.history_lost() if end is None else problems.of_end(end)
    if head.status >= _FIRST_ERROR:
        raise problems.of_refusal(head.status, body, model, endpoint)
    kind = next((value for name, value in head.headers if name == "content-type"), _JSON)
    if is_event_stream(head):
        kind, body = _JSON, _whole(relay, body, endpoint) if shape is None else shape.whole(body)
    elif endpoint == "/generate":
        body = assembly.to_plain(body)
    if kind.partition(";")[0] == _JSON:
        return _told(head.status, _JSON, msgspec.Raw(body))
    return _told(head.status, kind, base64.b64encode(body).decode())


async def _so_far(client: HotClient, facts: Facts) -> msgspec.Raw | None:
    """What an answer's stream has said by now, in the form of a whole one; None for nothing, or for no such answer.

    Raises BrokerUnavailableError.
    """
    at, more, head, pieces = 0, facts.kept and facts.endpoint != _RESPONSES, None, list[bytes]()
    while more:
        try:
            part = await read_log(client, facts.keys, facts.rid, at)
        except msgspec.MsgspecError:  # a failover has changed the log between two reads
            return None
        for at, frame in part.frames:  # noqa: B007 - where the next slice starts
            head = frame.meta if frame.kind & HEAD else head
            pieces.append(frame.data)
        more = part.more and bool(part.frames)
    stream = b"".join(pieces)
    if head is None or not stream or not is_event_stream(head):
        return None
    if dialects.speaks_anthropic(facts.endpoint):
        return msgspec.Raw(to_message(stream))
    return msgspec.Raw(assembly.to_whole(stream, None))


def _whole(relay: Relay, stream: bytes, endpoint: str) -> bytes:
    """The whole answer that a stream's events make. Raises RequestError when one of them is an error."""
    if not dialects.speaks_anthropic(endpoint):
        return Shape(relay, stream=False).whole(stream)
    fault = next((data for data in assembly.events_of(stream) if data.startswith(_ANTHROPIC_FAULT)), None)
    if fault is not None and (refusal := problems.of_first_event(b"data: %b\n\n" % fault)) is not None:
        raise refusal
    return to_message(stream)


def _told(status: int, kind: str, body: object) -> dict[str, Any]:
    return {"status_code": status, "content_type": kind, "body": body}
