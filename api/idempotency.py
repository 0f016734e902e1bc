"""On which terms a client sends a request, and what happens to a request that was sent before.

A key is bound to the first request that is admitted with it. Later ones with the same content join that request, or
take the key over when its end has set it free. A client that sends no key gets one anyway, made of what it asks for,
which decides only when the client says that it tries again: so the retry of an SDK joins the request whose answer it
has missed, while two people may ask the same thing at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from api.deadlines import ENDLESS, Patience, patience_of
from api.preferences import plain_events, responds_async
from api.requests import Facts
from shared import errors
from shared.errors import RequestError
from shared.metrics import IDEMPOTENCY, child
from shared.outcomes import Admitted
from shared.states import State

RETRY_TTL_S = 120
"""How long a request without a key is remembered for a client that tries again; `retries.py` makes it longer."""
_LOOKS = 5
_REFUSALS = frozenset({"idempotency_key_mismatch", "idempotency_in_progress", "result_expired"})
_CANCEL_S = 2.0
_CANCEL_PAUSE_S = 0.02
_KEY = re.compile(r'"[\x21-\x7e]{1,255}"|[\x21-\x7e]{1,255}')

Status = Literal["", "created", "attached", "replayed", "coalesced"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What the headers of a generation say.

    Attributes:
        key: the idempotency key, without quotes; empty for none.
        strict: refuse a request whose key is in progress, instead of joining it.
        retry: an SDK tries again.
        stays: the request goes on when its client is gone.
        keep_s: how long the answer stays at least, when that is longer than any answer does; 0: it need not.
        later: the client would rather come back for the answer than wait for it.
        plain: a stream shall have events alone, without ids and comments.
        until_ms: Unix ms until which it may wait and run, whatever its lane allows; 0: what its lane allows.
        remembered: without a key, whether a client that tries again may find it.
        patience: how long the client waits. A request that joins another one has that one's deadline.
    """

    key: str = ""
    strict: bool = False
    retry: bool = False
    stays: bool = False
    patience: Patience = ENDLESS
    keep_s: int = 0
    later: bool = False
    plain: bool = False
    until_ms: int = 0
    remembered: bool = True

    @property
    def joins(self) -> bool:
        """Whether the request may join one that was sent before."""
        return bool(self.key) or self.retry

    def scope(self, tenant: str, endpoint: str, fingerprint: str) -> str:
        """The name of the key in Redis: one per tenant, endpoint and key; without a key, per content."""
        what = ("key", self.key) if self.key else ("content", fingerprint)
        return hashlib.sha256("\0".join((*what, tenant, endpoint)).encode()).hexdigest()[:32]


PLAIN = Terms()
"""The terms of a client that sends no headers."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which request a client follows, and whether that is its own."""

    rid: str
    status: Status
    stays: bool
    lane: str = ""
    """Of the request that is joined."""
    trace: str = ""
    """Where that one stands in its trace."""


def terms_of(headers: Mapping[str, str]) -> Terms:
    """The terms in a request's headers; names in lower case. Raises RequestError (400)."""
    key = headers.get("idempotency-key")
    retries = headers.get("x-stainless-retry-count", "0")
    gone = _choice(headers, "x-on-disconnect", ("cancel", "continue"))
    return Terms(
        key="" if key is None else _bare(key),
        strict=_choice(headers, "idempotency-mode", ("attach", "strict")) == "strict",
        retry=retries.isascii() and retries.isdecimal() and retries.strip("0") != "",
        stays=gone == "continue" or (gone is None and key is not None),
        patience=patience_of(headers),
        later=gone != "cancel" and "prefer" in headers and responds_async(headers["prefer"]),
        plain=plain_events(_choice(headers, "x-event-stream", ("plain", "full")), headers.get("x-request-id")),
    )


def _bare(key: str) -> str:
    if not _KEY.fullmatch(key) or key == '""':
        raise errors.invalid_request(
            "`Idempotency-Key` must be 1 to 255 visible ASCII characters.", param="Idempotency-Key"
        )
    return key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key


def _choice(headers: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str | None:
    value = headers.get(name)
    if value is not None and value not in allowed:
        raise errors.invalid_request(f"`{name}` must be one of: {', '.join(allowed)}.", param=name)
    return value


async def place(
    rid: str,
    terms: Terms,
    admit: Callable[[str], Awaitable[Admitted]],
    look: Callable[[str], Awaitable[Facts | None]],
) -> Place:
    """Admits request `rid`, or finds the one that it joins.

    `admit` gets the request that may lose the key. Raises RequestError (409, 410, 422) and what the two raise.
    """
    try:
        return await _place(rid, terms, admit, look)
    except RequestError as error:
        if error.code in _REFUSALS:
            child(IDEMPOTENCY, error.code).inc()
        raise


async def _place(
    rid: str,
    terms: Terms,
    admit: Callable[[str], Awaitable[Admitted]],
    look: Callable[[str], Awaitable[Facts | None]],
) -> Place:
    replaces = missing = ""
    for _ in range(_LOOKS):
        admitted = await admit(replaces)
        if admitted.outcome == "CONFLICT" and admitted.rid != rid and terms.key:
            raise errors.idempotency_key_mismatch()
        if admitted.outcome != "DUP":
            return Place(rid, "created" if terms.key else "", terms.stays)
        holder = await _settled(admitted.rid, look)
        if holder is None and terms.key and missing != admitted.rid:
            missing = admitted.rid  # Redis may have lost everything between the two: then the key is free, too
            continue
        status = _joined(admitted.rid, holder, terms)
        if status and holder is not None:
            return Place(admitted.rid, status, holder.stays, holder.lane, holder.trace)
        replaces = admitted.rid
    raise errors.idempotency_in_progress(admitted.rid)


async def _settled(rid: str, look: Callable[[str], Awaitable[Facts | None]]) -> Facts | None:
    """What is known of a key's holder. One that is being cancelled gets the time to end: that sets the key free."""
    give_up_at_s = time.monotonic() + _CANCEL_S
    while True:
        holder = await look(rid)
        if holder is None or holder.terminal or not holder.cancel or time.monotonic() > give_up_at_s:
            return holder
        await asyncio.sleep(_CANCEL_PAUSE_S)


def _joined(rid: str, holder: Facts | None, terms: Terms) -> Status:
    """How a request joins the one that holds its key; empty when the key is free. Raises RequestError (409, 410)."""
    if not terms.key:
        return "coalesced" if holder is not None and _undelivered(holder) else ""
    if holder is None:
        raise errors.result_expired(rid)
    if _sets_key_free(holder):
        return ""
    if not holder.terminal:
        if terms.strict:
            raise errors.idempotency_in_progress(rid)
        return "attached"
    if not holder.kept:
        raise errors.result_expired(rid)
    return "replayed"


def _undelivered(holder: Facts) -> bool:
    """Whether the answer is still to come, or came when nobody listened."""
    if not holder.terminal:
        return not holder.cancel  # an SDK does not want to hear that its request was cancelled
    return holder.state is State.SUCCEEDED and holder.heard == 0 and holder.kept


def _sets_key_free(holder: Facts) -> bool:
    if holder.discarded:
        return False
    return holder.state is State.CANCELLED or holder.reason in {"worker_lost", "queue_timeout"}
