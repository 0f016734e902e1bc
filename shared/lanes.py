"""Lanes: the priority classes of a pool's queue, and how a request gets into one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shared.errors import invalid_request


class Lane(StrEnum):
    """A priority class that clients can ask for."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


QUARANTINE = "quarantine"
"""Where requests wait under which two workers have died. Nobody pulls from it: `release` lets one at a time out."""


@dataclass(frozen=True, slots=True)
class Queue:
    """One stream of a pool, the queue of a lane.

    `weight` is its share under backlog (relative). A head older than `age_limit_ms` goes first, one pick in four.
    `engine_priority` is what the engine's own scheduler is told; smaller is earlier.
    """

    name: str
    weight: int
    age_limit_ms: int
    engine_priority: int


QUEUES: tuple[Queue, ...] = (
    Queue(Lane.INTERACTIVE, 8, 2_000, 0),
    Queue(Lane.STANDARD, 3, 10_000, 10),
    Queue(Lane.BATCH, 1, 60_000, 20),
)
"""The queues of a pool from which workers take: one for each lane, what had started before first."""

FAIR = frozenset(queue.name for queue in QUEUES)
"""Queues whose tenants share them by cost."""

ENGINE_PRIORITY: dict[str, int] = {queue.name: queue.engine_priority for queue in QUEUES}

_BY_SERVICE_TIER: dict[str, Lane | None] = {
    "priority": Lane.INTERACTIVE,
    "auto": None,
    "default": Lane.STANDARD,
    "flex": Lane.BATCH,
    "scale": Lane.STANDARD,
}
_ANTHROPIC_TIER = "standard_only"
"""Comes with a lane: the routes that know it have looked at it."""


def at_most(lane: Lane, most: Lane) -> Lane:
    """The lane itself, or `most` when it is a higher one."""
    lanes = list(Lane)
    return max(lane, most, key=lanes.index)


SERVICE_TIER = {Lane.INTERACTIVE: "priority", Lane.STANDARD: "default", Lane.BATCH: "flex"}
"""OpenAI's word for what a request was served as."""


def asked_lane(header: str | None, service_tier: object) -> Lane | None:
    """The lane that a request asks for: by the `X-Priority-Lane` header if sent, else by the body's `service_tier`.

    None leaves it to the server: neither was sent, or the tier `auto`. Raises RequestError (400) for what is no lane
    and no tier.
    """
    known = isinstance(service_tier, str) and (
        service_tier in _BY_SERVICE_TIER or (header is not None and service_tier == _ANTHROPIC_TIER)
    )
    if service_tier is not None and not known:
        tiers = ", ".join(sorted(_BY_SERVICE_TIER))
        raise invalid_request(f"service_tier must be one of {tiers}, not {service_tier!r}.", param="service_tier")
    if header is not None:
        try:
            return Lane(header.strip().lower())
        except ValueError:
            lanes = ", ".join(Lane)
            raise invalid_request(
                f"X-Priority-Lane must be one of {lanes}, not {header!r}.", param="X-Priority-Lane"
            ) from None
    return _BY_SERVICE_TIER[service_tier] if isinstance(service_tier, str) else None
