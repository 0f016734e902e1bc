"""Pre-emption: a batch attempt gives its slot to an interactive request that has waited too long.

Only a worker without room looks, and only while it runs a batch attempt that may yield. What it looks for is an
interactive head that has waited LEAST_WAIT_MS; `pull` delivers it to this worker in the same step, so of several
workers without room only one makes room for it. Then the attempt that loses least is stopped and waits in its lane
again, and the entry is claimed as soon as that one is out of the way.

An attempt may yield when its client sees nothing but a pause: its stream can be continued behind its tokens, or nothing
of it is visible. What would have to be generated again and compared stays: the comparison could fail.

Interactive requests take no more of a worker's slots in this way than their lane's part by weight, and at least one.
When there are more of them than there is room for, batch keeps its part, instead of starting each request four times.
"""

from __future__ import annotations

import math
import random
import time
from typing import Final

from shared.lanes import Lane
from shared.outcomes import Entry
from shared.scripts import Scripts
from worker.attempt import Attempt
from worker.attempts import Attempts

LOOK_S: Final = 0.1
"""How often a worker without room looks."""
LEAST_WAIT_MS: Final = 150
"""How long an interactive head waits before somebody makes room for it."""
MOST_PREEMPTIONS: Final = 3
"""How often one request may have to yield."""
_MOST_AT_ONCE = 4


class Preemption:
    """Finds who waits, and who makes room."""

    def __init__(self, scripts: Scripts, attempts: Attempts, slots: int) -> None:
        """`slots`: most sequences that the worker runs at once."""
        self._scripts = scripts
        self._attempts = attempts
        self._slots = slots
        self._look_at_s = 0.0

    def due_in_s(self) -> float:
        """When to look; infinite while nothing runs here that could make room."""
        if not any(_may_yield_at_all(attempt) for attempt in self._attempts.running()):
            return math.inf
        return max(0.0, self._look_at_s - time.monotonic())

    async def look(self, wid: str) -> list[tuple[Entry, Attempt | None]]:
        """What was delivered to this worker, each with the attempt to be stopped for it; None where there is room.

        Raises FencedError, BrokerUnavailableError.
        """
        self._look_at_s = time.monotonic() + LOOK_S * random.uniform(0.8, 1)  # noqa: S311 - jitter
        want = min(_MOST_AT_ONCE, len(self._yielding()))
        if not want:
            return []
        lane = Lane.INTERACTIVE
        held = sum(attempt.width for attempt in self._attempts.running() if attempt.lane == lane)
        waited_ms, slots = LEAST_WAIT_MS, self._slots
        entries = await self._scripts.pull(wid, want, only=lane, waited_ms=waited_ms, slots=slots, held=held)
        if not entries:
            return []
        makers: list[Attempt | None] = [*self._yielding()]  # fewer, where one has ended meanwhile: then there is room
        makers += [None] * len(entries)
        return list(zip(entries, makers, strict=False))

    def _yielding(self) -> list[Attempt]:
        """Who may yield now, first who loses least, and of those the newest."""
        newest_first = (attempt for attempt in reversed(self._attempts.running()) if _may_yield_at_all(attempt))
        losses = [(attempt, loss) for attempt in newest_first if (loss := attempt.loss) is not None]
        return [attempt for attempt, _ in sorted(losses, key=lambda one: one[1])]


def _may_yield_at_all(attempt: Attempt) -> bool:
    return attempt.lane == Lane.BATCH and attempt.preempted < MOST_PREEMPTIONS
