"""Time, as an object that tests can replace.

`monotonic_s` measures spans inside one process; `wall_ms` stamps what people read. Neither decides anything that Redis
decides: scripts use the server's clock.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a service gets its time from."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary moment of this process; never goes back."""

    def wall_ms(self) -> int:
        """Unix time in milliseconds."""


class SystemClock:
    """The real clock."""

    def monotonic_s(self) -> float:
        """See Clock."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """See Clock."""
        return time.time_ns() // 1_000_000
