"""From a ValidRequest to a place on the queue, and a Relay that follows it.

The relay subscribes to the request's channel just before the request is admitted; should the confirmation come late,
the relay starts from the log. `admit` is idempotent, so it is sent again when its reply is lost.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import redis.asyncio

from api.catalog import Catalog
from api.relay import Relay, RelayWatch
from api.schemas import ValidRequest
from api.settings import ApiSettings
from shared import errors
from shared.channels import Channels
from shared.errors import BrokerUnavailableError
from shared.hot import HotClient
from shared.ids import new_request_id
from shared.keys import Keys
from shared.metrics import ADMITTED, STREAMS_OPEN, child
from shared.reaper import owner_and_queue
from shared.registry import Pool
from shared.scripts import Admission, Admitted, Scripts
from shared.wire import Request, encode

_ADMIT_TRIES = 8
_ADMIT_PAUSE_S = 0.25
_CANCEL_LOOKS = 5
_RETRY_AFTER_FULL_S = 5
_RETRY_AFTER_COLD_S = 10


@dataclass(slots=True)
class Ticket:
    """An admitted request, as its route sees it."""

    rid: str
    model: str
    lane: str
    relay: Relay
    keys: Keys
    accepted_at_s: float


class Door:
    """Lets requests in, and out."""

    def __init__(
        self,
        settings: ApiSettings,
        client: HotClient,
        control: redis.asyncio.Redis,
        channels: Channels,
        catalog: Catalog,
        watch: RelayWatch,
    ) -> None:
        self._settings = settings
        self._client = client
        self._control = control
        self._channels = channels
        self._catalog = catalog
        self._watch = watch
        self._leaving: set[asyncio.Task[None]] = set()
        self.draining = False

    async def enter(self, valid: ValidRequest, tenant: str, headers: list[tuple[str, str]]) -> Ticket:
        """Admits a request and follows it. Raises RequestError, BrokerUnavailableError; then nothing is left behind."""
        accepted_at_s = time.monotonic()
        if self.draining:
            raise errors.broker_unavailable()
        model, pool = await self._catalog.pool_of(valid.model)
        if not pool.workers:
            raise errors.no_capacity(model, _RETRY_AFTER_COLD_S)
        rid = new_request_id(pool.keys.shard)
        request = Request("POST", valid.path, [*headers, ("x-request-id", rid)], valid.body, valid.lane, valid.width)
        admission = self._admission(rid, valid, tenant, encode(request))

        async def readmit() -> None:
            await self._admit(pool, admission, model)

        relay = Relay(self._client, pool.keys, rid, grace_s=self._settings.redis_grace_s, readmit=readmit)
        try:
            await self._follow_and_admit(pool, admission, model, relay)
        except BaseException:
            self._channels.unsubscribe(pool.keys.channel(rid), relay)
            raise
        self._watch.add(relay)
        STREAMS_OPEN.inc()
        child(ADMITTED, valid.lane, model).inc()
        return Ticket(rid, model, valid.lane, relay, pool.keys, accepted_at_s)

    async def _follow_and_admit(self, pool: Pool, admission: Admission, model: str, relay: Relay) -> None:
        """Both at once. A confirmation that comes after the admission may have missed a frame: the log has it."""
        confirmed = self._channels.follow(pool.keys.channel(admission.rid), relay)
        await self._admit(pool, admission, model)
        if not confirmed.done():
            await self._channels.confirmation(confirmed)
            relay.on_gap()

    def leave(self, ticket: Ticket) -> None:
        """Stops following. A request that has not ended is cancelled: nobody is there for its answer."""
        self._watch.remove(ticket.relay)
        self._channels.unsubscribe(ticket.keys.channel(ticket.rid), ticket.relay)
        STREAMS_OPEN.dec()
        if ticket.relay.end is None:
            task = asyncio.create_task(self._cancel(ticket, "client_gone"))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _admission(self, rid: str, valid: ValidRequest, tenant: str, body: bytes) -> Admission:
        now_s = time.time()
        patience_s = min(self._settings.queue_timeout_s, self._settings.request_timeout_s)
        return Admission(
            rid=rid,
            fingerprint=valid.fingerprint(tenant),
            lane=valid.lane,
            body=body,
            tenant=tenant,
            lane_cap=self._settings.queue_max,
            tenant_cap=self._settings.tenant_max,
            cost=valid.cost,
            deadline_ms=int((now_s + patience_s) * 1000),
            finish_by_ms=int((now_s + self._settings.request_timeout_s) * 1000),
        )

    async def _admit(self, pool: Pool, admission: Admission, model: str) -> None:
        scripts = self._scripts(pool.keys)
        for left in reversed(range(_ADMIT_TRIES)):
            try:
                admitted = await scripts.admit(admission)
                break
            except BrokerUnavailableError:
                if not left:
                    raise
                await asyncio.sleep(_ADMIT_PAUSE_S)
        _refuse(admitted, model)

    async def _cancel(self, ticket: Ticket, reason: str) -> None:
        scripts = self._scripts(ticket.keys)
        try:
            for _ in range(_CANCEL_LOOKS):
                owner, queue = await owner_and_queue(self._control, ticket.keys, ticket.rid)
                if await scripts.cancel(ticket.rid, owner=owner, queue=queue, reason=reason) != "RETRY":
                    return
        except BrokerUnavailableError:
            return  # its deadline ends it

    def _scripts(self, keys: Keys) -> Scripts:
        return Scripts(self._client, keys, result_ttl_ms=self._settings.result_ttl_s * 1000)


def _refuse(admitted: Admitted, model: str) -> None:
    """Raises the RequestError of an admission that did not succeed."""
    if admitted.outcome == "FULL":
        raise errors.queue_full(admitted.number, _RETRY_AFTER_FULL_S)
    if admitted.outcome == "TENANT":
        raise errors.too_many_requests(admitted.number, _RETRY_AFTER_FULL_S)
    if admitted.outcome == "EXPIRED":
        raise errors.queue_timeout()
    if admitted.outcome != "OK":
        message = f"The request for {model} was refused: {admitted.outcome}."
        raise errors.RequestError(409, "conflict", message, should_retry=False)
