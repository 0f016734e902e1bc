"""What `penstock up` does for its workers: sees a process end, condemns it at once, starts it again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from cli.cards import Cards
from shared.connection import connect
from tests.support.stack import Stack, Worker

_LOOK_S = 0.01


class Supervisor:
    """`buried` counts worker ids, `restarted` processes."""

    def __init__(self, stack: Stack, *, restart: bool) -> None:
        self._stack = stack
        self._restart = restart
        self.buried = 0
        self.restarted = 0
        self.enabled = True

    async def run(self) -> None:
        """Until cancelled."""
        client = connect(self._stack.redis_url)
        cards = Cards(client, "ps", result_ttl_ms=600_000)
        seen: set[int] = set()
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                for worker in list(self._stack.workers):
                    if worker.popen.poll() is not None and worker.pid not in seen and self.enabled:
                        seen.add(worker.pid)
                        await self._mourn(cards, worker)
        finally:
            await client.aclose()

    async def _mourn(self, cards: Cards, worker: Worker) -> None:
        self.buried += await cards.bury(worker.pid, since_ms=worker.started_at_ms)
        if self._restart:
            self._stack.again(worker)
            self.restarted += 1


@contextlib.asynccontextmanager
async def supervised(stack: Stack, *, restart: bool = False) -> AsyncIterator[Supervisor]:
    """Watches the workers while the block runs."""
    supervisor = Supervisor(stack, restart=restart)
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
