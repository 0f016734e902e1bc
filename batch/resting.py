"""When a batch can do nothing for a while, it is given back: who only waits holds no place that others need.

It waits for its start, for its hours of the day, or for a worker of its model. Whoever has a place for it takes it when
that is over (`bridge.py`); a batch that is cancelled meanwhile at once.
"""

from __future__ import annotations

import time

from shared.batch_windows import Hours, hours_of
from shared.batches import Batch

PATIENCE_S = 5.0
"""Shorter waits are waited for."""
NO_WORKER_S = 15.0
"""Until somebody looks again whether there is a worker."""


class Rest:
    """Of one batch.

    Attributes:
        left_s: seconds for which nothing can be done, as far as is known; 0: something can.
    """

    def __init__(self) -> None:
        self.left_s = 0.0
        self._since_s = float("inf")

    def saw(self, closed_s: float, *, served: bool, flying: bool) -> None:
        """How it stands: seconds until rows may start, whether there is a worker, whether rows are on their way.

        Rows that nobody can run need no driver: one who comes later finds them. Those that run are waited for.
        """
        if flying:
            self.left_s = 0.0 if served else NO_WORKER_S
        else:
            self.left_s = closed_s or (0.0 if served else NO_WORKER_S)

    def due(self, *, busy: bool) -> bool:
        """Whether the batch has waited for a while and has more of that before it. `busy`: with what has ended."""
        if not self.left_s or busy:
            self._since_s = float("inf")
            return False
        self._since_s = min(self._since_s, time.monotonic())
        return self.left_s > PATIENCE_S and time.monotonic() - self._since_s >= PATIENCE_S


def waits_s(batch: Batch, now_ms: int) -> float:
    """Seconds until rows may be started: the start time and the hours of the day that the batch asks for."""
    after_s = batch.number("start_after") - now_ms / 1000
    hours: Hours | None = hours_of(batch.parsed("start_window")) if batch.text("start_window") else None
    return max(0.0, after_s, hours.opens_in_s(now_ms) if hours else 0.0)


def rests(batch: Batch, now_ms: int) -> bool:
    """Whether its driver has said that nothing can be done yet, and nobody has cancelled it since."""
    return batch.status == "in_progress" and batch.number("not_before_ms") > now_ms
