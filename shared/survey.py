"""What `survey` answers: a pool's queues and workers at one moment, as the server saw them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class QueueSeen:
    """One queue.

    Attributes:
        depth: requests that wait.
        oldest_age_s: how long the first of them has been there; 0 for an empty queue.
        tokens: what they will cost.
        body_bytes: what their bodies take.
        tenants: whose they are.
        per_s: requests/s that it drains by, as last measured under a backlog; None while that is unknown.
        aged: picks because of age, since Redis has its data.
        fairness: Jain's index over its tenants, 0 to 1; None where fewer than two can be compared. See `survey.lua`.
        retrying: those that had started before and wait for another worker.
    """

    name: str
    depth: int
    oldest_age_s: float
    tokens: float
    body_bytes: float
    tenants: int
    per_s: float | None
    aged: int
    paused: bool
    draining: bool
    fairness: float | None
    retrying: int


@dataclass(frozen=True, slots=True)
class Survey:
    """A pool.

    Attributes:
        dead_letters: requests that were given up and are kept.
        arriving: tokens/s that were admitted in the last minute.
        per_worker: tokens/s that a worker takes under a backlog; None as long as there was none.
        mean_cost: tokens of a request, as of late.
        queues: the lanes and quarantine.
        running: requests of each worker that lives.
        lost: workers without a lease whose death nobody has noticed yet.
        lost_running: their requests.
    """

    dead_letters: int
    arriving: float
    per_worker: float | None
    mean_cost: float
    queues: tuple[QueueSeen, ...]
    running: dict[str, int]
    lost: frozenset[str]
    lost_running: int


def read_survey(wids: list[str], reply: list[Any]) -> Survey:
    """The script's reply, for the workers that it was asked about."""
    now_ms, dead_letters, arriving, per_worker, mean_cost, queues, workers = reply
    seen = dict(zip(wids, workers, strict=True))
    return Survey(
        dead_letters=int(dead_letters),
        arriving=float(arriving),
        per_worker=_known(per_worker),
        mean_cost=float(mean_cost),
        queues=tuple(_queue(int(now_ms), row) for row in queues),
        running={wid: int(owned) for wid, (lives, owned) in seen.items() if lives},
        lost=frozenset(wid for wid, (lives, _) in seen.items() if not lives),
        lost_running=sum(int(owned) for lives, owned in seen.values() if not lives),
    )


def _queue(now_ms: int, row: list[Any]) -> QueueSeen:
    name, depth, oldest_ms, tokens, body_bytes, tenants, per_s, aged, paused, draining, fairness, retrying = row
    return QueueSeen(
        name=name.decode(),
        depth=int(depth),
        oldest_age_s=max(0, now_ms - int(oldest_ms)) / 1000 if oldest_ms else 0.0,
        tokens=float(tokens),
        body_bytes=float(body_bytes),
        tenants=int(tenants),
        per_s=_known(per_s),
        aged=int(aged),
        paused=paused == b"1",
        draining=draining == b"1",
        fairness=_known(fairness),
        retrying=int(retrying),
    )


def _known(number: bytes) -> float | None:
    return float(number) if number else None
