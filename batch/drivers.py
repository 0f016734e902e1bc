"""The drivers of this process: started by arq's jobs, and independent of arq from then on.

arq decides which process takes a batch, and its main loop ends whenever Redis blinks. A driver does not: it waits, and
the fence decides whether the batch is still its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Literal

from batch.driver import Driver
from batch.owned import LostError
from batch.tools import Tools
from shared.batches import Batch
from shared.errors import ObjectMissingError, StorageUnavailableError
from shared.metrics import BATCH_DRIVERS, BATCH_TAKEOVERS

log = logging.getLogger(__name__)


class Drivers:
    """A service: see `services.py`. Its end is that of all drivers; they give their batches back."""

    name = "drivers"

    def __init__(self, tools: Tools, *, most: int, on_loss: Callable[[], None]) -> None:
        """`on_loss`: called when Redis has lost a batch that is driven here."""
        self._tools = tools
        self._most = most
        self._on_loss = on_loss
        self._running: dict[str, asyncio.Task[None]] = {}
        self.stopping = False

    def __len__(self) -> int:
        return len(self._running)

    async def start(self, batch: str) -> Literal["OK", "HELD", "ENDED", "GONE", "FULL"]:
        """Takes a batch and drives it, unless somebody does. FULL: this process has enough.

        Raises BrokerUnavailableError.
        """
        if batch in self._running:
            return "HELD"
        if self.stopping or len(self._running) >= self._most:
            return "FULL"
        token = os.urandom(8).hex()
        taken = await self._tools.batches.scripts.take(batch, token)
        if taken.outcome != "OK" or taken.record is None:
            return taken.outcome
        found = Batch(batch, taken.record)
        if taken.epoch > 1 and not found.number("not_before_ms"):  # and did not only rest
            BATCH_TAKEOVERS.inc()
            log.info("batch %s: taken over, epoch %d", batch, taken.epoch)
        driver = Driver(self._tools, found, token)
        task = self._running[batch] = asyncio.create_task(self._drive(batch, driver), name=f"batch {batch}")
        task.add_done_callback(lambda _: self._running.pop(batch, None))
        BATCH_DRIVERS.set(len(self._running))
        return "OK"

    async def _drive(self, batch: str, driver: Driver) -> None:
        try:
            await driver.run()
        except LostError as error:
            log.warning("batch %s is left: %s", batch, error)
            if error.gone:
                self._on_loss()
        except (StorageUnavailableError, ObjectMissingError) as error:
            log.warning("batch %s waits for the storage: %s", batch, error)
        except Exception:
            log.exception("batch %s", batch)
        finally:
            BATCH_DRIVERS.set(len(self._running) - 1)

    async def run(self, started: asyncio.Event) -> None:
        """Until cancelled; then ends all drivers."""
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopping = True
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
