"""From a ValidRequest to a place on the queue, and a Relay that follows it.

The relay subscribes to the request's channel just before the request is admitted; should the confirmation come late,
the relay starts from the log. `admit` is idempotent, so it is sent again when its reply is lost. Where the request
turns out to have been sent before, the relay follows the one that holds its key (`idempotency.py`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from api.catalog import Catalog
from api.entries import Entries
from api.idempotency import PLAIN, Place, Terms
from api.images import Images
from api.memory import Memory
from api.placing import Places, turned_away
from api.prompts import NOTHING
from api.relay import Relay
from api.requests import Requests
from api.retries import Retries
from api.schemas import ValidRequest
from api.serverclock import ServerClock
from api.settings import ApiSettings
from api.shape import Shape
from api.ticket import Ticket
from api.timing import Timing
from api.tokens import Tokens
from api.waiting import Waiting
from api.watch import RelayWatch
from shared import errors
from shared.channels import Channels
from shared.clock import SystemClock
from shared.errors import BrokerUnavailableError, RequestError
from shared.hot import HotClient
from shared.ids import new_request_id
from shared.keys import Keys
from shared.lanes import Lane, at_most
from shared.metrics import ADMITTED, IDEMPOTENCY, JOINED, STREAMS_OPEN, child
from shared.registry import Pool

log = logging.getLogger(__name__)


class Door:
    """Lets requests in, and out."""

    def __init__(
        self,
        settings: ApiSettings,
        client: HotClient,
        requests: Requests,
        channels: Channels,
        catalog: Catalog,
        watch: RelayWatch,
        tokens: Tokens,
        waiting: Waiting,
        images: Images,
    ) -> None:
        self._settings = settings
        self._client = client
        self._requests = requests
        self._channels = channels
        self._catalog = catalog
        self._watch = watch
        self._images = images
        self.memory = Memory(client, SystemClock(), limit=settings.memory_limit)
        self.waiting = waiting
        self.retries = Retries(client, settings.disconnect_grace_s)
        self._clock = ServerClock(client, SystemClock())
        self._entries = Entries(settings, catalog, tokens, self._clock, self.retries.first_ttl_s)
        self._places = Places(client, requests, images, self._clock, result_ttl_ms=settings.result_ttl_s * 1000)
        self._leaving: set[asyncio.Task[None]] = set()
        self.draining = False

    async def enter(
        self, valid: ValidRequest, tenant: str, headers: list[tuple[str, str]], terms: Terms = PLAIN
    ) -> Ticket:
        """Admits a request, or joins the one that holds its key, and follows it.

        Raises RequestError; then nothing is left behind. Raises BrokerUnavailableError; then it may have got in, waits
        for its client to come again, and is cancelled like one whose client has gone.
        """
        accepted_at_s = time.monotonic()
        valid = self._accepted(valid)
        model, pool = await self._catalog.pool_of(valid.model)
        valid = valid if valid.model else replace(valid, model=model)
        cold = not pool.workers
        held = self._settings.cold_start_hold_s > 0
        closed = self._no_capacity(model, pool) if cold and not held else await self.memory.refusal()
        if closed is not None and not terms.joins:
            turned_away(closed.code, valid.lane, pool)
            raise closed
        rid = new_request_id(pool.keys.shard)
        entry = await self._entries.entry(rid, valid, tenant, headers, terms, pool, accepted_at_s)
        entry.closed = closed
        admission = entry.admission
        if terms.key and await self._requests.known_elsewhere(pool.keys, admission.idempotency):
            raise errors.idempotency_key_mismatch()
        # counted: its texts need not stay as long as the request
        valid = replace(valid, prompt=NOTHING, pictures=None)

        async def readmit() -> None:
            await self._join(ticket, valid, await self._places.place(entry))
            if ticket.exchange is not None:
                ticket.exchange.readmitted()

        relay = self._relay(pool.keys, rid, readmit)
        relay.plain = terms.plain
        shape = Shape(relay, stream=True, timing=Timing(accepted_at_s)) if valid.timing else None
        ticket = Ticket(rid, model, valid.lane, relay, pool.keys, accepted_at_s, shape=shape, cold=cold)
        try:
            # Both at once. A confirmation that comes after the admission may have missed a frame: the log has it.
            confirmed = self._channels.follow(pool.keys.channel(rid), relay)
            where = await self._places.place(entry)
            await self._join(ticket, valid, where)
            if where.rid == rid and not confirmed.done():
                await self._channels.confirmation(confirmed)
                relay.on_gap()
        except BaseException as error:
            self._channels.unsubscribe(pool.keys.channel(ticket.rid), relay)
            relay.readmit = None
            if not isinstance(error, RequestError) and not terms.stays:
                self._cancel_after_grace(pool.keys, rid)  # it may have got in, and its client is told to come again
            raise
        if ticket.exchange is not None:
            ticket.exchange.entered()
        self._watch.add(relay)
        self.retries.add(ticket, terms, pool.keys.idempotency(admission.idempotency))
        STREAMS_OPEN.inc()
        (child(ADMITTED, valid.lane, pool.keys.pool) if ticket.rid == rid else child(JOINED, ticket.status)).inc()
        if ticket.status:
            child(IDEMPOTENCY, ticket.status).inc()
        return ticket

    async def _join(self, ticket: Ticket, valid: ValidRequest, found: Place) -> None:
        """Lets the ticket's client follow the request that was found, if that is another one than before."""
        ticket.stays, ticket.status = found.stays, found.status
        relay, keys = ticket.relay, ticket.keys
        if found.rid == relay.rid:
            return
        ticket.lane = found.lane or ticket.lane
        if ticket.exchange is not None:
            ticket.exchange.follows(found.rid, ticket.lane, found.status, found.trace)
        before = relay.rid
        self._channels.unsubscribe(keys.channel(before), relay)
        relay.rid = ticket.rid = found.rid
        if ticket.shape is None or not ticket.shape.stays:
            ticket.shape = Shape(relay, stream=valid.stream, usage=valid.usage)
        relay.send_now = None  # what comes from now on has to be brought into shape
        try:
            await self._channels.subscribe(keys.channel(found.rid), relay)
        except BaseException:
            relay.rid = ticket.rid = before  # who looks again joins again, instead of listening to nothing
            raise
        relay.on_gap()

    def reader(self, keys: Keys, rid: str) -> Relay:
        """A relay for a request that was admitted before; it never admits it again."""
        return self._relay(keys, rid, None)

    def _relay(self, keys: Keys, rid: str, readmit: Callable[[], Awaitable[None]] | None) -> Relay:
        settings = self._settings
        graces = {"grace_s": settings.redis_grace_s, "lost_grace_s": settings.lost_grace_s}
        return Relay(self._client, keys, rid, **graces, readmit=readmit)

    async def follow(self, ticket: Ticket) -> None:
        """Follows a request that was admitted before. Raises BrokerUnavailableError; then nothing is left behind."""
        await self._channels.subscribe(ticket.keys.channel(ticket.rid), ticket.relay)
        ticket.relay.on_gap()
        self._watch.add(ticket.relay)
        STREAMS_OPEN.inc()

    def leave(self, ticket: Ticket) -> None:
        """Stops following. A request that has not ended waits a while for somebody to follow it, and is cancelled then.

        A replica that drains cancels nothing: it has sent its clients to other replicas. If they do not come, the
        worker's orphan timer ends the request.
        """
        if self._let_go(ticket) and not ticket.stays:
            self._cancel_after_grace(ticket.keys, ticket.rid)

    def withdraw(self, ticket: Ticket) -> None:
        """Stops following a request whose client is told of a failure instead of the request's id.

        One that it has joined is left as by any follower: it is somebody else's. Its own is cancelled after the grace,
        also where it would stay, unless a client that has come again has it stored by then.
        """
        if not ticket.own:
            self.leave(ticket)
        elif self._let_go(ticket):
            self._cancel_after_grace(ticket.keys, ticket.rid, unless_stored=ticket.stays)

    def _let_go(self, ticket: Ticket) -> bool:
        """Stops following. Returns whether the request goes on, and this replica may see to its end."""
        ticket.relay.readmit = None  # it knows the ticket, and both would wait for the rare full collection
        self._watch.remove(ticket.relay)
        self.retries.remove(ticket)
        going_on = ticket.relay.end is None
        self._channels.unsubscribe(ticket.keys.channel(ticket.rid), ticket.relay, at_once=going_on)
        STREAMS_OPEN.dec()
        return going_on and not self.draining

    def _cancel_after_grace(self, keys: Keys, rid: str, *, unless_stored: bool = False) -> None:
        again = functools.partial(self._grace_over, keys, rid, unless_stored=unless_stored)
        asyncio.get_running_loop().call_later(self._settings.disconnect_grace_s, again)

    def _grace_over(self, keys: Keys, rid: str, *, unless_stored: bool) -> None:
        if not self.draining:
            task = asyncio.create_task(self._cancel_unless_followed(keys, rid, unless_stored=unless_stored))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _cancel_unless_followed(self, keys: Keys, rid: str, *, unless_stored: bool) -> None:
        try:
            wanted = await self._requests.followed(keys, rid)
            if not wanted and not (unless_stored and await self._requests.stored(keys, rid)):
                await self._requests.cancel(keys, rid, "client_gone")
        except BrokerUnavailableError as error:
            log.debug("request %s is left to its worker: %s", rid, error)

    def _accepted(self, valid: ValidRequest) -> ValidRequest:
        """The request as this replica takes it, before anybody is asked. Raises RequestError (400, 403, 503)."""
        if self.draining:
            raise errors.replica_stopping()
        if valid.pictures is not None:
            self._images.check(valid.pictures)
        return self._in_its_lane(valid)

    def _in_its_lane(self, valid: ValidRequest) -> ValidRequest:
        """The request in the lane that it asks for, or the highest one that it may have. Raises RequestError (403)."""
        lane = at_most(valid.lane, Lane(self._settings.max_lane))
        if lane == valid.lane:
            return valid
        if self._settings.max_lane_strict and valid.lane_asked:
            raise errors.lane_not_allowed(valid.lane, lane)
        return replace(valid, lane=lane)

    def _no_capacity(self, model: str, pool: Pool) -> RequestError:
        return errors.no_capacity(model, pool.cold_start_ms / 1000 or self._settings.cold_start_s)

    async def nobody_came(self, ticket: Ticket) -> RequestError | None:
        """The error for a request that waited for a worker of a model that had none, if there still is none."""
        model, pool = await self._catalog.pool_of(ticket.model)
        return None if pool.workers else self._no_capacity(model, pool)
