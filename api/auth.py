"""Who is calling. A FastAPI dependency, so a refusal precedes everything else."""

from __future__ import annotations

import hashlib
import hmac

from fastapi import Request

from shared.errors import RequestError

ANONYMOUS = "anonymous"


async def tenant_of(request: Request) -> str:
    """The tenant of a request: made from its API key; `anonymous` when no keys are set. Raises RequestError (401)."""
    keys: tuple[str, ...] = request.app.state.keys
    if not keys:
        return ANONYMOUS
    sent = sent_key(request)
    if sent is None:
        message = "No API key was sent. Send it as `Authorization: Bearer <key>` or `X-API-Key: <key>`."
        raise RequestError(401, "invalid_api_key", message, should_retry=False)
    matches = [hmac.compare_digest(sent.encode(), key.encode()) for key in keys]  # all of them: no timing to learn from
    if not any(matches):
        raise RequestError(401, "invalid_api_key", "The API key is not valid.", should_retry=False)
    return "key-" + hashlib.sha256(sent.encode()).hexdigest()[:16]


def sent_key(request: Request) -> str | None:
    """The key that came with a request."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.headers.get("x-api-key")
