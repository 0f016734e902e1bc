"""/v1/batches: create, retrieve, list, cancel; results while it runs, and its progress as events.

What a batch does, the batch processes do (`batch/`); any replica answers for any batch.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse

from api.auth import tenant_of
from api.batching import batch_of
from api.idempotency import terms_of
from api.results import Results, page_of, place_of
from api.routes.completions import body_of, check_encoding
from shared import errors, file_errors
from shared.batches import Batch, Batches
from shared.errors import BrokerUnavailableError
from shared.ids import new_batch_id

router = APIRouter(tags=["batches"])
Tenant = Annotated[str, Depends(tenant_of)]

_MOST_LISTED = 100
_MOST_RESULTS = 1_000
_LOOK_S = 1.0
_HEARTBEAT_LOOKS = 10
_AWAY_S = 30
"""Seconds for which a progress stream waits for a Redis that is away."""
_SCOPE_DIGITS = 32


def _batches(request: Request) -> Batches:
    batches: Batches = request.app.state.batches
    return batches


async def _found(request: Request, batch: str, tenant: str) -> Batch:
    """A batch of this tenant. Raises RequestError (404)."""
    found = await _batches(request).find(batch)
    if found is None or found.text("tenant") != tenant:
        raise file_errors.batch_not_found(batch)
    return found


@router.post("/v1/batches")
async def create(request: Request, tenant: Tenant) -> dict[str, Any]:
    """Makes a batch of the rows of a file. It is looked at, and run, by a batch process."""
    if request.app.state.storage is None:
        raise file_errors.no_storage()
    headers = dict(request.headers)
    check_encoding(headers)
    body = await body_of(request, headers.get("content-length", ""))
    new, key = batch_of(body, request.app.state.settings.hook_rules), terms_of(headers).key
    scope = hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()[:_SCOPE_DIGITS] if key else ""
    batches, batch = _batches(request), new_batch_id()
    closed = await request.app.state.door.memory.refusal()
    content = msgspec.json.encode(new.facts, order="sorted") + new.secret.encode()
    outcome, batch = await batches.scripts.create(
        batch,
        tenant,
        new.facts,
        window_ms=new.window_s * 1000,
        scope=scope,
        fingerprint=hashlib.sha256(content).hexdigest(),
        secret=new.secret,
        full=closed is not None,
    )
    if closed is not None and outcome == "FULL":
        raise closed
    if outcome == "CONFLICT":
        raise errors.idempotency_key_mismatch()
    return (await _found(request, batch, tenant)).shown()


@router.get("/v1/batches")
async def list_batches(
    request: Request,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 20,
    after: str = "",
) -> dict[str, Any]:
    """The caller's batches, the newest first, behind the id `after`."""
    found, more = await _batches(request).page(tenant, after=after, limit=limit)
    shown = [batch.shown() for batch in found]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {"object": "list", "data": shown, "first_id": first, "last_id": last, "has_more": more}


@router.get("/v1/batches/{batch}")
async def retrieve(batch: str, request: Request, tenant: Tenant) -> dict[str, Any]:
    """A batch as it is now."""
    return (await _found(request, batch, tenant)).shown()


@router.post("/v1/batches/{batch}/cancel")
async def cancel(batch: str, request: Request, tenant: Tenant) -> dict[str, Any]:
    """Ends a batch early: rows that have not started are dropped, those that are done are delivered."""
    await _found(request, batch, tenant)
    outcome, status = await _batches(request).scripts.cancel(batch)
    if outcome == "ENDED":
        raise file_errors.batch_not_cancellable(status)
    return (await _found(request, batch, tenant)).shown()


@router.get("/v1/batches/{batch}/results")
async def results(
    batch: str,
    request: Request,
    tenant: Tenant,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=_MOST_RESULTS)] = 100,
) -> Response:
    """Rows that are done by now, in the order in which they were committed; `next` is the `after` of the next page."""
    place = place_of(after)
    found = await _found(request, batch, tenant)
    page: Results = await page_of(request.app.state.storage, _batches(request), found, place, limit)
    body = b'{"object":"list","data":[%b],"has_more":%b,"next":%b,"status":%b}' % (
        b",".join(page.lines),
        b"true" if page.more else b"false",
        msgspec.json.encode(str(page.place)),
        msgspec.json.encode(found.status),
    )
    return Response(body, media_type="application/json")


@router.get("/v1/batches/{batch}/events")
async def events(batch: str, request: Request, tenant: Tenant) -> Response:
    """The batch as server-sent events: now, whenever its counts or its status change, and at its end."""
    found = await _found(request, batch, tenant)
    stream = _progress(_batches(request), found, request)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _progress(batches: Batches, batch: Batch, request: Request) -> AsyncIterator[bytes]:
    """Looks once a second. The last event is `done`; where the replica stops, or the batch is lost, there is none."""
    said, quiet, away = b"", 0, 0
    found: Batch | None = batch
    while found is not None:
        body = msgspec.json.encode(_progress_shown(found))
        if body != said:
            yield b"event: %b\ndata: %b\n\n" % (b"done" if found.ended else b"progress", body)
            said, quiet = body, 0
        elif quiet >= _HEARTBEAT_LOOKS:
            yield b": heartbeat\n\n"
            quiet = 0
        if found.ended or away > _AWAY_S or request.app.state.door.draining:
            return
        quiet += 1
        await asyncio.sleep(_LOOK_S)
        try:
            found, away = await batches.find(batch.id), 0
        except BrokerUnavailableError:
            away += 1


def _progress_shown(batch: Batch) -> dict[str, Any]:
    """The object, with what only the progress is asked for: rows/s and the seconds that are left, as far as known."""
    rate, left = batch.text("rows_per_s"), batch.text("left_s")
    known = not batch.ended
    progress = {
        "rows_per_s": float(rate) if rate and known else None,
        "left_s": float(left) if left and known else None,
    }
    return {**batch.shown(), "progress": progress}
