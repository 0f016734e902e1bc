"""GET /v1/requests/{id}, its events, cancel and delete: any replica answers for any request."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from api.auth import tenant_of
from api.cursors import cursor_of
from api.requests import Facts
from api.resume import seek
from api.shape import Shape
from api.sse import Answer
from api.ticket import Ticket
from api.waiting import shown
from shared import errors
from shared.outcomes import Place

router = APIRouter(tags=["requests"])

_LOOK_AGAIN_S = 1
Tenant = Annotated[str, Depends(tenant_of)]


@router.get("/v1/requests/{rid}")
async def retrieve(rid: str, request: Request, tenant: Tenant) -> JSONResponse:
    """What is known of a request."""
    facts: Facts = await request.app.state.requests.find(rid, tenant)
    place = await request.app.state.door.waiting.find(facts.keys, rid, facts.lane) if facts.state == "queued" else None
    return _shown(facts, place)


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
    ticket = Ticket(rid, facts.keys.pool, facts.lane, relay, facts.keys, time.monotonic(), facts.stays)
    ticket.shape = Shape(relay, stream=True)
    await state.door.follow(ticket)
    return await Answer(state.door, ticket, state.settings, stream=True).response(request)


@router.post("/v1/requests/{rid}/cancel")
async def cancel(rid: str, request: Request, tenant: Tenant) -> JSONResponse:
    """Cancels a request in whatever phase it is; one that has ended stays as it is."""
    requests = request.app.state.requests
    facts: Facts = await requests.find(rid, tenant)
    if not facts.terminal:
        await requests.cancel(facts.keys, rid, "cancelled")
    return _shown(await requests.look(facts.keys, rid) or facts)


@router.delete("/v1/requests/{rid}")
async def delete(rid: str, request: Request, tenant: Tenant) -> dict[str, Any]:
    """Cancels a request and takes its result away."""
    requests = request.app.state.requests
    facts: Facts = await requests.find(rid, tenant, to_delete=True)
    await requests.discard(facts.keys, rid)  # first, so that readers still find the end that the cancellation writes
    if not facts.terminal:
        await requests.cancel(facts.keys, rid, "deleted")
    return {"id": rid, "object": "request.deleted", "deleted": True}


def _shown(facts: Facts, place: Place | None = None) -> JSONResponse:
    usage = {
        "prompt_tokens": facts.prompt_tokens,
        "completion_tokens": facts.completion_tokens,
        "total_tokens": facts.prompt_tokens + facts.completion_tokens,
    }
    body = {
        "id": facts.rid,
        "object": "request",
        "state": facts.state,
        "reason": facts.reason or None,
        "cancel_requested": bool(facts.cancel),
        "lane": facts.lane,
        "queue": shown(place),
        "worker": facts.owner or None,
        "attempts": facts.claims,
        "queued_at_ms": facts.queued_at_ms,
        "started_at_ms": facts.started_at_ms or None,
        "finished_at_ms": facts.finished_at_ms or None,
        "usage": usage if facts.terminal else None,
    }
    return JSONResponse(body, headers={} if facts.terminal else {"Retry-After": str(_LOOK_AGAIN_S)})
