"""Looks for batches that nobody drives, and has arq decide who shall: a job for each, under an id of its own.

The same look is what the metrics say of all batches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

import redis
from arq.connections import ArqRedis

from batch.resting import rests, waits_s
from shared.batches import Batch, Batches
from shared.errors import BrokerUnavailableError
from shared.metrics import BATCH_LEFT_SECONDS, BATCH_OLDEST_AGE, BATCH_ROWS_OPEN, BATCHES_ACTIVE, BATCHES_LATE, child

log = logging.getLogger(__name__)

LOOK_S = 0.5
_JOB_S = 10
"""For how long a job that has not begun stands for its batch; then another one does."""
_STATUSES = ("validating", "in_progress", "finalizing", "cancelling")


class Bridge:
    """A service: see `services.py`."""

    name = "bridge"

    def __init__(self, batches: Batches, arq: ArqRedis, prefix: str) -> None:
        self._batches = batches
        self._arq = arq
        self._prefix = prefix

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled."""
        started.set()
        while True:
            try:
                await self.look()
            except (BrokerUnavailableError, redis.RedisError, OSError, TimeoutError) as error:
                log.debug("bridge: %s", error)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """One look. Raises what Redis raises."""
        found = await self._batches.several(await self._batches.active())
        now_ms = await self._batches.now_ms()
        for batch in found:
            if batch.number("lease_ms") <= now_ms and not rests(batch, now_ms):
                await self._arq.enqueue_job(
                    "drive",
                    batch.id,
                    _job_id=f"{self._prefix}:drive:{batch.id}:{batch.number('epoch')}:{int(time.time()) // _JOB_S}",
                    _expires=_JOB_S,
                )
        measure(found, now_ms)


def measure(active: list[Batch], now_ms: int) -> None:
    """Says of these batches, at `now_ms` of the server (Unix ms), what the metrics say of them."""
    statuses = Counter(batch.status for batch in active)
    for status in _STATUSES:
        child(BATCHES_ACTIVE, status).set(statuses[status])
    oldest_ms = min((batch.number("created_at_ms") for batch in active), default=now_ms)
    BATCH_OLDEST_AGE.set(max(0, now_ms - oldest_ms) / 1000)
    for state in ("completed", "failed"):
        child(BATCH_ROWS_OPEN, state).set(sum(batch.number(state) for batch in active))
    child(BATCH_ROWS_OPEN, "left").set(sum(batch.left for batch in active))
    BATCH_LEFT_SECONDS.set(max((float(batch.text("left_s") or 0) for batch in active), default=0))
    BATCHES_LATE.set(sum(_is_late(batch, now_ms) for batch in active))


def _is_late(batch: Batch, now_ms: int) -> bool:
    """Whether it has more left than time. One that waits for its hours does not get on, and is not late for that."""
    left_s = float(batch.text("left_s") or 0)
    if batch.status != "in_progress" or not batch.left or now_ms + left_s * 1000 <= batch.number("expires_at_ms"):
        return False
    try:
        return waits_s(batch, now_ms) == 0
    except ValueError:  # hours of a release that we cannot read: its driver will say so
        return False
