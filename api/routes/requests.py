"""/v1/requests: the list, and each request with its answer, its events, cancel, delete. Any replica answers for any."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api.auth import tenant_of
from api.cursors import cursor_of
from api.listing import Page, Wanted
from api.polled import facts_shown, polled, told
from api.requests import Facts
from api.resume import seek
from api.shape import Shape
from api.sse import Answer
from api.ticket import Ticket
from shared import errors
from shared.lanes import Lane
from shared.metrics import STREAMS_RESUMED, child
from shared.states import State

router = APIRouter(tags=["requests"])

_MOST_LISTED = 100
Tenant = Annotated[str, Depends(tenant_of)]


@router.get("/v1/requests")
async def list_requests(
    request: Request,
    tenant: Tenant,
    state: Annotated[list[State] | None, Query()] = None,
    lane: Lane | None = None,
    model: str = "",
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 20,
    after: str = "",
) -> dict[str, Any]:
    """The caller's requests: those that wait, those that run, those that have ended, the latest first."""
    wanted = Wanted(frozenset(state or ()), lane, model)
    page: Page = await request.app.state.listing.page(tenant, wanted, limit=limit, after=after)
    shown = [facts_shown(facts) for facts in page.facts]
    return {"object": "list", "data": shown, "has_more": bool(page.following), "next": page.following or None}


@router.get("/v1/requests/{rid}")
async def retrieve(
    rid: str,
    request: Request,
    tenant: Tenant,
    partial: bool = False,  # noqa: FBT001, FBT002 - a query parameter
) -> Response:
    """What is known of a request; once it has ended, with its answer. `partial`: also what a stream has said so far."""
    return await polled(request.app.state, await request.app.state.requests.find(rid, tenant), partial=partial)


@router.get("/v1/requests/{rid}/events")
async def events(rid: str, request: Request, tenant: Tenant, starting_after: str | None = None) -> Response:
    """The events of a request behind `Last-Event-ID` (or `starting_after`), then those to come. Starts nothing."""
    state = request.app.state
    cursor = cursor_of(request.headers.get("last-event-id", starting_after))
    # what a client has seen was there: its worker may bring it back
    lost_grace_s = state.settings.lost_grace_s if cursor.mark else 0
    facts: Facts = await state.requests.find(rid, tenant, lost_grace_s=lost_grace_s)
    if facts.terminal and not facts.kept:
        raise errors.result_expired(rid)
    relay = state.door.reader(facts.keys, rid)
    relay.resume(await seek(state.client, facts.keys, rid, cursor, lost_grace_s=lost_grace_s))
    model, now_s = facts.model or facts.keys.pool, time.monotonic()
    ticket = Ticket(rid, model, facts.lane, relay, facts.keys, now_s, facts.stays, resumed=True)
    ticket.shape = Shape(relay, stream=True)
    if ticket.exchange is not None:
        ticket.exchange.follows(rid, facts.lane, "resumed", facts.trace)
    await state.door.follow(ticket)
    if cursor.mark:
        child(STREAMS_RESUMED, "events").inc()
    return await Answer(state.door, ticket, state.settings, stream=True).response(request)


@router.post("/v1/requests/{rid}/cancel")
async def cancel(rid: str, request: Request, tenant: Tenant) -> Response:
    """Cancels a request in whatever phase it is; one that has ended stays as it is."""
    requests = request.app.state.requests
    facts: Facts = await requests.find(rid, tenant)
    if not facts.terminal:
        await requests.cancel(facts.keys, rid, "cancelled")
    facts = await requests.look(facts.keys, rid) or facts
    return told(facts_shown(facts), facts)


@router.delete("/v1/requests/{rid}")
async def delete(rid: str, request: Request, tenant: Tenant) -> dict[str, Any]:
    """Cancels a request and takes its result away."""
    requests = request.app.state.requests
    facts: Facts = await requests.find(rid, tenant, to_delete=True)
    await requests.discard(facts.keys, rid)  # first, so that readers still find the end that the cancellation writes
    if not facts.terminal:
        await requests.cancel(facts.keys, rid, "deleted")
    return {"id": rid, "object": "request.deleted", "deleted": True}
