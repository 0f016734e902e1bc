"""The cards of this machine's workers: which are ready, and the burial of one whose process has ended.

Its requests are taken back at once, without waiting for its lease: `up` has seen the process end, which is the best
evidence there is; everybody else has to wait until the lease runs out.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Mapping

import msgspec
import redis.asyncio

from shared.connection import RedisCaller
from shared.errors import BrokerUnavailableError
from shared.keys import Keys
from shared.reaper import Reaper
from shared.registry import Registry
from shared.scripts import Scripts
from shared.wire import WorkerCard, decode_card

log = logging.getLogger(__name__)


class Cards:
    """The cards of the workers that run on this machine."""

    def __init__(self, client: redis.asyncio.Redis, prefix: str, *, result_ttl_ms: int) -> None:
        self._client = client
        self._prefix = prefix
        self._ttl_ms = result_ttl_ms
        self._registry = Registry(client, prefix)

    async def ready(self, processes: Mapping[int, int]) -> set[int]:
        """Which of these processes (id → start, Unix ms) are workers that take work. Raises BrokerUnavailableError."""
        return {
            card.pid
            async for _, card in self._local()
            if card.state == "ready" and card.started_at_ms >= processes.get(card.pid, card.started_at_ms + 1)
        }

    async def bury(self, pid: int, *, since_ms: int) -> int:
        """Condemns what the ended process `pid`, started at `since_ms` (Unix), was as a worker. Returns how many ids.

        Without a reachable Redis nothing happens: the reapers will see the lease run out.
        """
        buried = 0
        try:
            async for keys, card in self._local():
                if card.pid == pid and card.started_at_ms >= since_ms:
                    scripts = Scripts(RedisCaller(self._client), keys, result_ttl_ms=self._ttl_ms)
                    await scripts.condemn(card.wid, process_ended=True)
                    await Reaper(self._client, self._prefix).bury(keys, scripts, card.wid)
                    buried += 1
        except BrokerUnavailableError as error:
            log.warning("process %d has ended; its requests are free once its lease has run out: %s", pid, error)
        return buried

    async def _local(self) -> AsyncIterator[tuple[Keys, WorkerCard]]:
        here = socket.gethostname()
        for pool in sorted(await self._registry.known()):
            keys = Keys(pool, prefix=self._prefix)
            for raw in (await self._registry.workers(keys)).values():
                try:
                    card = decode_card(raw)
                except msgspec.MsgspecError:  # a release that we cannot read; not one that we started
                    continue
                if card.host == here:
                    yield keys, card
