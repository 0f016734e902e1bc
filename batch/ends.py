"""Who has ended: the pools' outboxes, read for the requests that somebody here waits for.

One reader for all batches of a process, without a consumer group: a message that is missed costs a few seconds, since
drivers look at the records of what they wait for as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import hiredis

from shared.errors import BrokerUnavailableError
from shared.hot import HotClient
from shared.keys import Keys

log = logging.getLogger(__name__)

POLL_S = 0.02
"""How often it is looked while somebody waits: what has ended makes room for the next row."""
_RETRY_S = 0.25
_AT_ONCE = 2_000
_TIMEOUT_S = 5.0


class Ends:
    """Tells of ends. A service: see `services.py`."""

    name = "ends"

    def __init__(self, client: HotClient) -> None:
        self._client = client
        self._waiting: dict[str, Callable[[str], None]] = {}
        self._last: dict[str, str] = {}
        self._some = asyncio.Event()

    async def open(self, keys: Keys) -> None:
        """Reads a pool's outbox from now on. Raises BrokerUnavailableError."""
        if keys.finished in self._last:
            return
        found = await self._client.call("XREVRANGE", keys.finished, "+", "-", "COUNT", "1", timeout_s=_TIMEOUT_S)
        self._last.setdefault(keys.finished, found[0][0].decode() if found else "0-0")

    def watch(self, rid: str, on_end: Callable[[str], None]) -> None:
        """`on_end(rid)` is called when a request has ended, once at most. Its pool must have been opened."""
        self._waiting[rid] = on_end
        self._some.set()

    def forget(self, rid: str) -> None:
        """Nobody waits for it any more. Safe to call twice."""
        self._waiting.pop(rid, None)
        if not self._waiting:
            self._some.clear()

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled; sleeps while nobody waits."""
        started.set()
        while True:
            await self._some.wait()
            try:
                more = await self._read()
            except (BrokerUnavailableError, hiredis.ReplyError) as error:
                log.debug("ends: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            if not more:
                await asyncio.sleep(POLL_S)

    async def _read(self) -> bool:
        """Reads once. Whether there may be more."""
        streams = list(self._last)
        last = [self._last[stream] for stream in streams]
        command = ("XREAD", "COUNT", str(_AT_ONCE), "STREAMS", *streams, *last)
        more = False
        for name, entries in await self._client.call(*command, timeout_s=_TIMEOUT_S) or ():
            self._last[name.decode()] = entries[-1][0].decode()
            more |= len(entries) >= _AT_ONCE
            for _, fields in entries:
                rid = fields[1].decode()
                if (on_end := self._waiting.get(rid)) is not None:
                    self.forget(rid)
                    on_end(rid)
        return more
