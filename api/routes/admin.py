"""/v1/admin/dlq: the dead letters, for operators. Closed unless an admin key is set."""

from __future__ import annotations

import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from api.auth import sent_key
from shared.dead_letters import DeadLetters, Letter
from shared.errors import RequestError, invalid_api_key, not_found
from shared.metrics import AUTH_FAILURES, child

_MOST_LISTED = 1_000


async def operator(request: Request) -> None:
    """Lets callers with an admin key pass. Raises RequestError (401, 403)."""
    keys: tuple[str, ...] = request.app.state.settings.admins
    if not keys:
        message = "The admin routes are closed: set PENSTOCK_ADMIN_KEYS (or --admin-keys) on the replicas to open them."
        raise RequestError(403, "admin_closed", message, should_retry=False)
    sent = (sent_key(request) or "").encode()
    matches = [hmac.compare_digest(sent, key.encode()) for key in keys]  # all of them: no timing to learn from
    if not any(matches):
        child(AUTH_FAILURES, "not_admin").inc()
        raise invalid_api_key("This needs an admin key.")


async def _letters(request: Request) -> DeadLetters:
    letters: DeadLetters = request.app.state.dead_letters
    return letters


router = APIRouter(prefix="/v1/admin/dlq", tags=["admin"], dependencies=[Depends(operator)])
Letters = Annotated[DeadLetters, Depends(_letters)]


async def _found(letters: DeadLetters, name: str) -> Letter:
    letter = await letters.find(name)
    if letter is None:
        raise not_found(f"The dead letter {name}")
    return letter


async def _redrive(letters: DeadLetters, letter: Letter) -> dict[str, Any]:
    outcome, rid = await letters.redrive(letter)
    if outcome == "GONE":
        raise not_found(f"The dead letter {letter.entry}")
    return {"id": letter.entry, "request": letter.rid, "redriven_as": rid, "new": outcome == "OK"}


@router.get("")
async def list_letters(letters: Letters, limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 100) -> dict[str, Any]:
    """The dead letters, the latest of each pool first, without their bodies."""
    return {"object": "list", "data": [letter.facts() for letter in await letters.all(most=limit)]}


@router.post("/redrive")
async def redrive_all(letters: Letters) -> dict[str, Any]:
    """Admits every dead letter again that has not been."""
    waiting = [letter for letter in await letters.all() if not letter.redriven_as]
    return {"object": "list", "data": [await _redrive(letters, letter) for letter in waiting]}


@router.delete("")
async def drop_all(letters: Letters) -> dict[str, Any]:
    """Deletes every dead letter for good."""
    return {"dropped": sum([await letters.drop(letter) for letter in await letters.all()])}


@router.get("/{name}")
async def show_letter(name: str, letters: Letters) -> dict[str, Any]:
    """One dead letter by its own id or its request's, with the body that the client sent."""
    letter = await _found(letters, name)
    request = letter.request
    body = letter.body if request is None else request.body
    return {**letter.facts(), "path": request.path if request else None, "body": body.decode(errors="replace")}


@router.post("/{name}/redrive")
async def redrive_letter(name: str, letters: Letters) -> dict[str, Any]:
    """Admits its request again, under a new id. A second time answers with that id."""
    return await _redrive(letters, await _found(letters, name))


@router.delete("/{name}")
async def drop_letter(name: str, letters: Letters) -> dict[str, Any]:
    """Deletes a dead letter for good."""
    return {"dropped": int(await letters.drop(await _found(letters, name)))}
