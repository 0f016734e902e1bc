"""/v1/responses: create, retrieve, stream, cancel, delete, input items. Any replica answers for any response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from api.auth import tenant_of
from api.idempotency import Terms, terms_of
from api.requests import Facts
from api.responses import items
from api.responses.answer import ResponsesAnswer
from api.responses.asked import Asked, asked_of
from api.responses.ids import not_found, request_id
from api.responses.objects import base_of
from api.responses.store import Kept, Stored
from api.responses.view import View
from api.routes.completions import body_of, check_encoding
from api.schemas import nested_too_deeply
from api.ticket import Ticket
from shared import errors
from shared.errors import RequestError, invalid_request
from shared.lanes import Lane
from shared.metrics import STREAMS_RESUMED, child

router = APIRouter(tags=["responses"])
Tenant = Annotated[str, Depends(tenant_of)]

_JSON = ("content-type", "application/json")
_FORWARDED = ("traceparent", "tracestate")
_CANCEL_S = 5.0
_CANCEL_PAUSE_S = 0.05
_ENDED_WELL = ("completed", "incomplete")
_NOT_FOUND = 404


@router.post("/v1/responses")
async def create(request: Request) -> Response:
    """Makes a response: whole, with `stream: true` as events, or with `background: true` later."""
    answer, how = await _admitted(request)
    if isinstance(answer, Response):
        return answer
    return answer.at_once(request) if how == "at once" else await answer.response(request)


async def _admitted(request: Request) -> tuple[ResponsesAnswer | Response, str]:
    """The answer to come, or the response itself. What was parsed ends here, as for every generation."""
    state = request.app.state
    tenant = await tenant_of(request)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
    check_encoding(headers)
    body = await body_of(request, headers.get("content-length", ""))
    try:
        asked = asked_of(body)
        before = await _before(request, asked, tenant) if asked.previous else items.NONE
        valid = asked.valid(
            before, headers.get("x-priority-lane"), state.settings.max_body_bytes, state.settings.limits
        )
    except RecursionError as error:  # it could just be read, and not be written again
        raise nested_too_deeply() from error
    terms = _terms(headers, asked, max(state.settings.responses_ttl_s, state.settings.result_ttl_s))
    forwarded = [_JSON, *((name, headers[name]) for name in _FORWARDED if name in headers)]
    ticket: Ticket = await state.door.enter(valid, tenant, forwarded, terms)
    try:
        base = base_of(asked, ticket.rid, ticket.model, ticket.lane)
        if asked.store:  # before its client can know the id
            whole = before + items.named(asked.own, ticket.rid)
            kept = Kept(base, whole.items, whole.ids, asked.stream, bool(terms.key))
            lasts_s = state.settings.request_timeouts_s[Lane(ticket.lane)]
            await state.responses.keep(ticket.keys, ticket.rid, kept, lasts_s=lasts_s)
        later = asked.background and not asked.stream
        current = await _current(request, ticket.rid, tenant) if later and not ticket.own else base
    except BaseException:
        state.door.withdraw(ticket)
        raise
    view = View(base, ticket.relay, stream=asked.stream)
    answer = ResponsesAnswer(state.door, ticket, state.settings, view, stream=asked.stream)
    if later:
        return answer.accepted(current), ""
    if asked.store:
        answer.keep_end(state.responses, keyed=bool(terms.key))
    return answer, "at once" if asked.background else "when it begins"


def _terms(headers: dict[str, str], asked: Asked, ttl_s: int) -> Terms:
    """A response in background goes on without its client; a stored one stays. Its events have their own numbers."""
    terms = terms_of(headers)
    return replace(terms, stays=terms.stays or asked.background, keep_s=ttl_s if asked.store else 0, plain=False)


async def _before(request: Request, asked: Asked, tenant: str) -> items.Items:
    """The conversation that a response goes on with. Raises RequestError (400)."""
    try:
        stored = await _stored(request, request_id(asked.previous), tenant)
        previous = await request.app.state.responses.current(stored)
    except RequestError as error:
        if error.status == _NOT_FOUND or error.code == "result_expired":
            raise errors.previous_response_not_found(asked.previous) from error
        raise
    if previous["status"] not in _ENDED_WELL:
        message = f"`previous_response_id`: that response is {previous['status']}, so it has no answer to go on with."
        raise invalid_request(message, param="previous_response_id")
    before: items.Items = stored.kept.input + items.of_output(previous["output"])
    return before


async def _stored(request: Request, rid: str, tenant: str) -> Stored:
    """A stored response of this tenant. Raises RequestError (404)."""
    facts: Facts = await request.app.state.requests.find(rid, tenant)
    stored: Stored | None = await request.app.state.responses.find(facts)
    if stored is None:
        raise not_found(rid.replace("req_", "resp_", 1))
    return stored


async def _known(request: Request, response: str, tenant: str) -> Stored:
    """As `_stored`, by the response's id."""
    try:
        return await _stored(request, request_id(response), tenant)
    except RequestError as error:
        raise (not_found(response) if error.status == _NOT_FOUND else error) from None


async def _current(request: Request, rid: str, tenant: str) -> dict[str, Any]:
    current: dict[str, Any] = await request.app.state.responses.current(await _stored(request, rid, tenant))
    return current


@router.get("/v1/responses/{response}")
async def retrieve(
    response: str,
    request: Request,
    tenant: Tenant,
    stream: bool = False,  # noqa: FBT001, FBT002 - a query parameter
    starting_after: Annotated[int | None, Query(ge=-1)] = None,
) -> Response:
    """The response as it is now; with `stream=true` its events behind number `starting_after`, then those to come."""
    stored = await _known(request, response, tenant)
    if not stream:
        return JSONResponse(await request.app.state.responses.current(stored))
    if not stored.kept.stream:
        raise invalid_request("Only a response that was created with `stream: true` can be streamed.", param="stream")
    facts = stored.facts
    if facts.terminal and not facts.kept:
        raise errors.result_expired(response)
    after = starting_after if starting_after is not None else _last_event_id(request)
    state = request.app.state
    relay = state.door.reader(facts.keys, facts.rid)
    model = stored.kept.base["model"]
    ticket = Ticket(facts.rid, model, facts.lane, relay, facts.keys, time.monotonic(), facts.stays, resumed=True)
    if ticket.exchange is not None:
        ticket.exchange.follows(facts.rid, facts.lane, "resumed", facts.trace)
    view = View(stored.kept.base, relay, stream=True, after=after)
    answer = ResponsesAnswer(state.door, ticket, state.settings, view, stream=True)
    if stored.final is None:
        answer.keep_end(state.responses, keyed=stored.kept.keyed)
    await state.door.follow(ticket)
    if after >= 0:
        child(STREAMS_RESUMED, "responses").inc()
    return answer.at_once(request)


def _last_event_id(request: Request) -> int:
    sent = request.headers.get("last-event-id", "")
    if sent and not (sent.isascii() and sent.isdecimal() and len(sent) < 10):  # noqa: PLR2004
        raise invalid_request("`Last-Event-ID` must be the number of an event.", param="Last-Event-ID")
    return int(sent) if sent else -1


@router.post("/v1/responses/{response}/cancel")
async def cancel(response: str, request: Request, tenant: Tenant) -> JSONResponse:
    """Cancels a response in background; one that has ended stays as it is."""
    stored = await _known(request, response, tenant)
    if not stored.kept.base["background"]:
        raise invalid_request("Only a response in background can be cancelled: for another one, hang up.")
    state, facts = request.app.state, stored.facts
    if not facts.terminal:
        await state.requests.cancel(facts.keys, facts.rid, "cancelled")
        facts = await _ended(request, facts)
    return JSONResponse(await state.responses.current(replace(stored, facts=facts)))


async def _ended(request: Request, facts: Facts) -> Facts:
    """The request once its worker has stopped it, or as it is when that takes long."""
    give_up_at_s = time.monotonic() + _CANCEL_S
    while not facts.terminal and time.monotonic() < give_up_at_s:
        facts = await request.app.state.requests.look(facts.keys, facts.rid) or facts
        if not facts.terminal:
            await asyncio.sleep(_CANCEL_PAUSE_S)
    return facts


@router.delete("/v1/responses/{response}")
async def delete(response: str, request: Request, tenant: Tenant) -> dict[str, Any]:
    """Cancels a response and takes it away, with its input and its events."""
    facts = (await _known(request, response, tenant)).facts
    state = request.app.state
    await state.requests.discard(facts.keys, facts.rid)  # first, as for any request
    await state.responses.forget(facts.keys, facts.rid)
    if not facts.terminal:
        await state.requests.cancel(facts.keys, facts.rid, "deleted")
    return {"id": response, "object": "response", "deleted": True}


@router.get("/v1/responses/{response}/input_items")
async def input_items(
    response: str,
    request: Request,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=items.MOST_LISTED)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> JSONResponse:
    """What went into a response: its own items and those of the responses before it."""
    stored = await _known(request, response, tenant)
    return JSONResponse(items.page(stored.kept.input, order=order, limit=limit, after=after))


DIRECT: dict[str, Callable[[Request], Awaitable[Response]]] = {"/v1/responses": create}
"""See observe.Outermost."""
