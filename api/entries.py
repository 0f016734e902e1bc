"""From a ValidRequest to what is asked of `admit`: its length counted and checked, its limits, fingerprint and body.

What comes over HTTP (`admission.py`) and the rows of batches go through here, so both are counted, priced and bounded
alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec import structs

from api.auth import salted, sharing_tenant
from api.catalog import Catalog
from api.deadlines import Limits
from api.exchange import current_exchange
from api.idempotency import Terms
from api.placing import Entry
from api.schemas import ValidRequest, check_length
from api.serverclock import ServerClock
from api.settings import ApiSettings
from api.tokens import Tokens
from shared.outcomes import Admission
from shared.registry import Pool
from shared.telemetry import Subject, subject
from shared.wire import Request, encode


class Entries:
    """Makes entries."""

    def __init__(
        self,
        settings: ApiSettings,
        catalog: Catalog,
        tokens: Tokens,
        clock: ServerClock,
        first_ttl_s: Callable[[Terms, float], float],
    ) -> None:
        """`first_ttl_s`: how long a request without a key is remembered, see `retries.Retries`."""
        self._settings = settings
        self._catalog = catalog
        self._tokens = tokens
        self._clock = clock
        self._first_ttl_s = first_ttl_s

    async def entry(
        self,
        rid: str,
        valid: ValidRequest,
        tenant: str,
        headers: list[tuple[str, str]],
        terms: Terms,
        pool: Pool,
        accepted_at_s: float = 0.0,
    ) -> Entry:
        """The entry of a request for a model of that pool, which `valid` names. Raises RequestError (400).

        `accepted_at_s`: when it came over HTTP, by the monotonic clock, for its trace.
        """
        prompt_tokens = await self._tokens.count(valid.prompt, pool.workers)
        most, context = self._settings.max_prompt_tokens, self._catalog.context_of(valid.model or "")
        check_length(valid, prompt_tokens, most, context, exact=self._tokens.exact(pool.workers))
        named = _named([*headers, ("x-request-id", rid)], rid, valid.lane, accepted_at_s)
        body = salted(valid.body, tenant, valid.salt)
        request = Request("POST", valid.path, named, body, valid.lane, valid.width, stays=terms.stays)
        admission = await self._admission(rid, valid, tenant, encode(request), terms, prompt_tokens, pool)
        filled = None if valid.pictures is None else partial(_filled, request, tenant, valid.salt)
        return Entry(pool, admission, terms, pictures=valid.pictures, filled=filled)

    async def _limits(self, valid: ValidRequest, terms: Terms, pool: Pool) -> tuple[Limits, float]:
        """Until when the request must have started and ended, and how long it may take in all, in seconds."""
        settings = self._settings
        wait_s, whole_s = settings.queue_timeouts_s[valid.lane], settings.request_timeouts_s[valid.lane]
        if terms.until_ms:
            return Limits(terms.until_ms, terms.until_ms), whole_s
        if not pool.workers and settings.cold_start_hold_s:
            wait_s = min(wait_s, settings.cold_start_hold_s)
        return terms.patience.limits(await self._clock.now_ms(), wait_s, whole_s), whole_s

    async def _admission(
        self, rid: str, valid: ValidRequest, caller: str, body: bytes, terms: Terms, prompt_tokens: int, pool: Pool
    ) -> Admission:
        settings, lane = self._settings, valid.lane
        limits, whole_s = await self._limits(valid, terms, pool)
        rejects = settings.queue_modes[lane] == "reject" and bool(pool.workers)
        tenant = sharing_tenant(caller, valid.user)
        fingerprint = valid.fingerprint(tenant)
        keep_s = max(terms.keep_s, settings.idempotency_ttl_s if terms.key else 0)
        # the key outlives the answer: a key whose answer is gone says so, instead of starting again
        ttl_s = keep_s + whole_s if terms.key else self._first_ttl_s(terms, whole_s)
        admission = Admission(
            rid=rid,
            fingerprint=fingerprint,
            lane=lane,
            body=body,
            tenant=tenant,
            tenant_cap=settings.tenant_max,
            prompt_tokens=prompt_tokens,
            output_limit=valid.output_limit,
            sequences=valid.width,
            bounds=settings.bounds,
            slots=pool.slots if rejects else None,
            workers=tuple(worker.wid for worker in pool.workers) if rejects else (),
            deadline_ms=limits.start_by_ms,
            finish_by_ms=limits.finish_by_ms,
            idempotency=terms.scope(tenant, valid.endpoint, fingerprint),
            idempotency_ttl_ms=int(ttl_s) * 1000,
            binding=terms.joins,
            keep_ms=keep_s * 1000,
            stays=terms.stays,
            endpoint=valid.endpoint,
            model=valid.model or "",
        )
        exchange = current_exchange.get()
        return admission if exchange is None else exchange.sent(admission)


def _named(headers: list[tuple[str, str]], rid: str, lane: str, accepted_at_s: float) -> list[tuple[str, str]]:
    """The headers that go to the engine. From here on the task's logs, and its trace, know the request."""
    exchange = current_exchange.get()
    if exchange is None:
        subject.set(Subject(rid))
        return headers
    subject.set(Subject(rid, "", exchange.trace_id))
    return exchange.sends(lane, headers, accepted_at_s)


def _filled(request: Request, tenant: str, salt: str | None, body: bytes) -> bytes:
    """What goes on the queue for `request` when its images stand in `body`."""
    return encode(structs.replace(request, body=salted(body, tenant, salt)))
