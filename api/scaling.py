"""How many workers a pool wants. Pure arithmetic: what it is computed from comes from `survey`.

Nothing is smoothed here: scalers have windows and cooldowns of their own (docs/operations.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_SPARE = 0.1
"""Of a worker, that steady arrivals may exceed the pool's pace by before one more is wanted: measurements waver."""


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to do in a pool, and who does it.

    Attributes:
        waiting: requests that could be started now: not those of paused lanes, nor in quarantine.
        waiting_tokens: their cost.
        running: requests that workers own.
        mean_cost: tokens of a request; stands for the cost of those that run.
        arriving: tokens/s that come.
        per_worker: tokens/s that one worker takes under a backlog; None as long as that was never seen.
        live: workers that are ready and live.
        slots: sequences that one worker runs at once; 0 when that is unknown.
        oldest_interactive_s: age of the oldest interactive request that waits.
    """

    waiting: int = 0
    waiting_tokens: float = 0
    running: int = 0
    mean_cost: float = 0
    arriving: float = 0
    per_worker: float | None = None
    live: int = 0
    slots: float = 0
    oldest_interactive_s: float = 0


@dataclass(frozen=True, slots=True)
class Targets:
    """What a pool is scaled for.

    Attributes:
        least: workers that are always wanted; 0 allows a pool without work to have none.
        most: the most that are ever wanted.
        drain_s: seconds in which everything that waits or runs is to be done.
        age_s: seconds that an interactive request may wait before one more worker is wanted than there are.
    """

    least: int = 1
    most: int = 100
    drain_s: float = 60
    age_s: float = 2


def wanted_workers(load: Load, targets: Targets) -> int:
    """The most that the backlog, the arrivals and the age of the oldest interactive request each ask for, in bounds."""
    wanted = max(_for_work(load, targets.drain_s), targets.least)
    if load.oldest_interactive_s > targets.age_s:
        wanted = max(wanted, load.live + 1)
    return min(wanted, targets.most)


def _for_work(load: Load, drain_s: float) -> int:
    requests = load.waiting + load.running
    if not load.per_worker:
        if not requests:
            return 0
        # no backlog has shown yet how fast a worker is: by slots, and by one worker at a time
        return max(1, min(math.ceil(requests / (load.slots or requests)), load.live + 1))
    backlog = (load.waiting_tokens + load.running * load.mean_cost) / (load.per_worker * drain_s)
    return max(math.ceil(backlog), math.ceil(load.arriving / load.per_worker - _SPARE))
