"""How many uploads a replica takes at once: each holds some megabytes of memory while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared import file_errors

WAIT_S = 30.0


class Turns:
    """A bounded number of turns; who waits for one reads nothing of its body meanwhile."""

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """A turn. Raises RequestError (503) when none becomes free for long."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self._free.acquire()
        except TimeoutError:
            raise file_errors.uploads_busy() from None
        try:
            yield
        finally:
            self._free.release()
