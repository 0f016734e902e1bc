"""How fast a batch gets on, and how long it will take."""

from __future__ import annotations

import math
import time

_OVER_S = 30.0


class Pace:
    """Rows/s of late, each end weighing less the longer it is ago."""

    def __init__(self) -> None:
        self._rows = 0.0
        self._seconds = 0.0
        self._at_s = time.monotonic()

    def done(self) -> None:
        """A row has ended."""
        self._forward()
        self._rows += 1

    def _forward(self) -> None:
        now_s = time.monotonic()
        passed_s, self._at_s = now_s - self._at_s, now_s
        keep = math.exp(-passed_s / _OVER_S)
        self._rows, self._seconds = self._rows * keep, self._seconds * keep + passed_s

    @property
    def rows_per_s(self) -> float:
        """0 as long as nothing has ended."""
        self._forward()
        return self._rows / self._seconds if self._seconds > 0 else 0.0

    def left_s(self, rows: int) -> float | None:
        """Seconds that so many rows will take; None when that is not known."""
        rate = self.rows_per_s
        return rows / rate if rate > 0 else None
