"""How many uploads a replica takes at once: each holds some megabytes of memory while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from shared import file_errors

WAIT_S = 30.0


class Turns:
    """A bounded number of turns; who waits for one reads nothing of its body meanwhile."""

    def __init__(self, most: int, *, each: int) -> None:
        """`each`: how many of them one tenant may have at once."""
        self._free = asyncio.Semaphore(most)
        self._each = each
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # of those who are here

    @asynccontextmanager
    async def taken(self, tenant: str) -> AsyncIterator[None]:
        """A turn. Raises RequestError (503) when none becomes free for long."""
        own = self._own.setdefault(tenant, asyncio.Semaphore(self._each))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(WAIT_S):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._free)
            except TimeoutError:
                raise file_errors.uploads_busy() from None
            yield
