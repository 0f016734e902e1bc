"""Who is calling. A FastAPI dependency, so a refusal precedes everything else.

With API keys set, a tenant is a key. Without, everybody is `anonymous` and may look at everything that came without a
key; the `user` that a body names only decides with whom its request shares the queue.
"""

from __future__ import annotations

import hashlib
import hmac
import re

import msgspec
from fastapi import Request

from shared.errors import invalid_api_key
from shared.metrics import AUTH_FAILURES, child

ANONYMOUS = "anonymous"
_KEYED = "key-"
_PLAIN_NAME = re.compile(r"[\x21-\x7e]{1,64}")


async def tenant_of(request: Request) -> str:
    """The tenant of a request: made from its API key; `anonymous` when no keys are set. Raises RequestError (401)."""
    keys: tuple[str, ...] = request.app.state.keys
    if not keys:
        return ANONYMOUS
    sent = sent_key(request)
    if sent is None:
        child(AUTH_FAILURES, "missing").inc()
        message = "No API key was sent. Send it as `Authorization: Bearer <key>` or `X-API-Key: <key>`."
        raise invalid_api_key(message)
    matches = [hmac.compare_digest(sent.encode(), key.encode()) for key in keys]  # all of them: no timing to learn from
    if not any(matches):
        child(AUTH_FAILURES, "invalid").inc()
        raise invalid_api_key("The API key is not valid.")
    return _KEYED + _digest(sent)


def sharing_tenant(caller: str, user: str) -> str:
    """Under which tenant's name a request queues: its caller's, and among the anonymous the `user` that it names.

    A name becomes a part of fields in Redis, of log lines and of what operators read: one that is long or not plain
    ASCII without blanks stands there as its hash.
    """
    if caller != ANONYMOUS or not user:
        return caller
    return "user-" + (user if _PLAIN_NAME.fullmatch(user) else _digest(user))


def salted(body: bytes, caller: str, own: str | None) -> bytes:
    """A body with the salt of the engine's prefix cache, which parts what one tenant's prompts have in it from others'.

    `own` is the salt that the client has sent: it parts a tenant's prompts further. Without keys there are no tenants
    that could be kept from each other, and it stands alone. None: the engine's route knows no salt. `body` is a JSON
    object that is not empty, without a salt.
    """
    salt = own
    if own is not None and caller.startswith(_KEYED):
        salt = hashlib.sha256(f"{caller}\0{own}".encode("utf-8", "surrogatepass")).hexdigest() if own else caller
    if not salt:
        return body
    start = body.index(b"{") + 1
    return b'%b"cache_salt":%b,%b' % (body[:start], msgspec.json.encode(salt), body[start:])


def may_see(caller: str, tenant: str) -> bool:
    """Whether this caller may see the requests of this tenant."""
    return caller == tenant or (caller == ANONYMOUS and not tenant.startswith(_KEYED))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sent_key(request: Request) -> str | None:
    """The key that came with a request."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.headers.get("x-api-key")
