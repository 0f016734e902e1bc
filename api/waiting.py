"""What a client is told while its request is queued: where it stands, when it may start, why it waits."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import hiredis

from api.catalog import Catalog
from api.ticket import Ticket
from shared.errors import BrokerUnavailableError
from shared.hot import HotClient
from shared.keys import Keys
from shared.outcomes import Place
from shared.scripts import Scripts

log = logging.getLogger(__name__)

PLAIN = b": queued\n\n"
"""What is said when Redis cannot be asked."""
RUNNING = b": running\n\n"
"""A worker has it, and its first token is yet to come."""
_AT_ONCE = 64
_OF_TURN = 0.5
"""A client is told each `every_s`; what it is told is at most half as old."""


def comment(place: Place) -> bytes:
    """An SSE comment, such as `: queued position=12 depth=40 eta_s=8.4 reason=busy`."""
    eta = "" if place.eta_ms is None else f" eta_s={place.eta_ms / 1000:.1f}"
    return f": queued position={place.position} depth={place.depth}{eta} reason={place.reason}\n\n".encode()


def shown(place: Place | None) -> dict[str, object] | None:
    """The same for an object that is polled."""
    if place is None:
        return None
    eta_s = None if place.eta_ms is None else round(place.eta_ms / 1000, 1)
    return {"position": place.position, "depth": place.depth, "eta_s": eta_s, "reason": place.reason}


class Waiting:
    """Keeps what waiting clients are told up to date. A service: see `services.py`.

    A stream comes here once it was opened before its answer: after `header_hold_s`. What it is told goes out with the
    next comment (see `outlet.py`).
    """

    name = "waiting"

    def __init__(self, client: HotClient, catalog: Catalog, every_s: float) -> None:
        """`every_s`: how often a client is told."""
        self._client = client
        self._catalog = catalog
        self._every_s = every_s
        self._tickets: set[Ticket] = set()
        self._some = asyncio.Event()

    async def find(self, keys: Keys, rid: str, lane: str) -> Place | None:
        """Where a request stands; None when it is not queued. Raises BrokerUnavailableError.

        The script sees cards, and a dead worker's card stays as long as nobody lives who sweeps up what it has left.
        """
        place = await Scripts(self._client, keys).place(rid, lane)
        if place is None or place.reason == "suspect" or not await self._catalog.deserted(keys.pool):
            return place
        return replace(place, eta_ms=None, reason="no_worker")

    async def add(self, ticket: Ticket) -> None:
        """Tells this client from now on, until `remove`; the first comment is there on return."""
        self._tickets.add(ticket)
        self._some.set()
        ticket.relay.comment = PLAIN
        await self._renew(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Its answer comes, or its client has gone. Safe to call twice."""
        self._tickets.discard(ticket)
        if not self._tickets:
            self._some.clear()

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled; sleeps while nobody waits."""
        started.set()
        while True:
            await self._some.wait()
            await asyncio.sleep(self._every_s * _OF_TURN)
            tickets = list(self._tickets)
            for first in range(0, len(tickets), _AT_ONCE):
                await asyncio.gather(*map(self._renew, tickets[first : first + _AT_ONCE]))

    async def _renew(self, ticket: Ticket) -> None:
        relay = ticket.relay
        try:
            place = await self.find(ticket.keys, ticket.rid, ticket.lane)
        except (BrokerUnavailableError, hiredis.ReplyError) as error:  # a comment is not worth a stream, or the replica
            log.debug("request %s: %s", ticket.rid, error)
            return
        if relay.head is not None or ticket not in self._tickets:
            return
        relay.comment = RUNNING if place is None else comment(place)
