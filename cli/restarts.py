"""What to do when a process has ended that should be running. Decisions only; `keeper.py` acts on them."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

WRONG_SETTINGS = 2
"""Exit status of Penstock's processes when a setting is wrong: trying again would end the same."""
MOST_FAILED_STARTS = 3
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
SETTLED_S = 60.0
"""A process that was ready and lived this long starts again without delay history."""


@dataclass(frozen=True, slots=True)
class Again:
    """Start it again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not. `why` is part of a sentence."""

    why: str


class Restarts:
    """The history of one process."""

    def __init__(self) -> None:
        self._failed_starts = 0
        self._deaths = 0

    def after(self, status: int, *, was_ready: bool, lived_s: float) -> Again | GiveUp:
        """What to do after an end with `status` (negative: the signal) of a process that lived `lived_s`."""
        if status == WRONG_SETTINGS and not was_ready:
            return GiveUp("was given a wrong setting")
        if was_ready:
            self._failed_starts = 0
            if lived_s >= SETTLED_S:
                self._deaths = 0
        else:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                return GiveUp(f"ended {MOST_FAILED_STARTS} times while starting ({describe(status)} at last)")
        delay_s = min(FIRST_DELAY_S * 2**self._deaths, LONGEST_DELAY_S)
        self._deaths += 1
        return Again(delay_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter


def describe(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
