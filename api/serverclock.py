"""The Redis server's clock, as a replica reads it: deadlines are set and watched by the same clock.

The server is asked once in a while, when somebody wants to know the time; in between its time goes on with this
process's monotonic clock. So a replica whose own clock is wrong, or is set, gives nobody too little time.
"""

from __future__ import annotations

import asyncio

import hiredis

from shared.clock import Clock
from shared.errors import BrokerUnavailableError
from shared.hot import HotClient

_RETRY_S = 1.0
_FRESH_S = 30.0
_TIMEOUT_S = 5.0


class ServerClock:
    """Tells the server's time, to half a round trip."""

    def __init__(self, client: HotClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._ahead_s: float | None = None
        self._asked_at_s = float("-inf")
        self._asking = asyncio.Lock()

    async def now_ms(self) -> int:
        """Unix time in milliseconds. This machine's own clock, as long as the server has never said."""
        if self._clock.monotonic_s() - self._asked_at_s >= _FRESH_S:
            async with self._asking:
                if self._clock.monotonic_s() - self._asked_at_s >= _FRESH_S:
                    await self._ask()
        if self._ahead_s is None:
            return self._clock.wall_ms()
        return int((self._clock.monotonic_s() + self._ahead_s) * 1000)

    async def _ask(self) -> None:
        before_s = self._clock.monotonic_s()
        try:
            seconds, micros = await self._client.call("TIME", timeout_s=_TIMEOUT_S)
        except (BrokerUnavailableError, hiredis.ReplyError):
            # whoever asks finds out, with the admission itself; the next ones need not wait for that answer, too
            self._asked_at_s = self._clock.monotonic_s() - _FRESH_S + _RETRY_S
            return
        after_s = self._clock.monotonic_s()
        self._ahead_s = int(seconds) + int(micros) / 1_000_000 - (before_s + after_s) / 2
        self._asked_at_s = after_s
