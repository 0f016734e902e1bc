"""Lets an SDK's retry find the request that it repeats, however long that takes.

A request without an idempotency key is remembered by its content for a while (`idempotency.py`). Here that while is
made longer for as long as somebody follows the request: what nobody follows ends soon by itself. Requests that go on
without a follower (`stays`) are remembered for all their time at once. So a request that is over within `RENEW_S`, as
most are, costs nothing more.
"""

from __future__ import annotations

import asyncio
import logging

import hiredis

from api.idempotency import RETRY_TTL_S, Terms
from api.ticket import Ticket
from shared.errors import BrokerUnavailableError
from shared.hot import HotClient

log = logging.getLogger(__name__)

RENEW_S = 30.0
"""How often; well within RETRY_TTL_S, so that a Redis that is away for a while makes nobody forgotten."""
_AT_ONCE = 64
_TIMEOUT_S = 5.0


class Retries:
    """Renews what is remembered of the requests that are followed here. A service: see `services.py`."""

    name = "retries"

    def __init__(self, client: HotClient, grace_s: float) -> None:
        """`grace_s`: how long a request lives on when its client is gone."""
        self._client = client
        self._ttl_s = RETRY_TTL_S + grace_s
        self._keys: dict[Ticket, str] = {}

    def first_ttl_s(self, terms: Terms, whole_s: float) -> float:
        """How long a request that comes on these terms, and may take `whole_s`, is remembered at first."""
        if not terms.remembered:
            return 0
        return RETRY_TTL_S + whole_s if terms.stays else self._ttl_s

    def add(self, ticket: Ticket, terms: Terms, key: str) -> None:
        """A request that came on these terms is remembered under `key`, until `remove`. Hot path: once per request."""
        if not terms.key and not ticket.stays:
            self._keys[ticket] = key

    def remove(self, ticket: Ticket) -> None:
        """Its client has its answer, or has gone. Safe to call twice."""
        self._keys.pop(ticket, None)

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled."""
        started.set()
        while True:
            await asyncio.sleep(RENEW_S)
            await self._renew()

    async def _renew(self) -> None:
        keys = list(dict.fromkeys(self._keys.values()))
        for first in range(0, len(keys), _AT_ONCE):
            try:
                await asyncio.gather(*map(self._renew_one, keys[first : first + _AT_ONCE]))
            except (BrokerUnavailableError, hiredis.ReplyError) as error:  # the next round comes in time
                log.debug("retries: %s", error)
                return

    async def _renew_one(self, key: str) -> None:
        await self._client.call("PEXPIRE", key, str(round(self._ttl_s * 1000)), timeout_s=_TIMEOUT_S)
