"""What has happened to a request's attempts: the field `history` of its record, which `lua/dead_letter.lua` writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """The end of an attempt that was not the request's end: when (Unix ms), what, and whose worker and attempt it was.

    `started_at_ms`: when the attempt was claimed; 0 where that is not known.
    """

    at_ms: int
    what: str
    wid: str
    attempt: str
    started_at_ms: int = 0


WITHOUT_WORKER = frozenset({"worker_died", "beside_a_suspect"})
"""What others have found out: the attempt's own worker could not tell anybody."""


def events_of(history: str) -> tuple[Event, ...]:
    """The events, the first one first. Raises ValueError when this is no history."""
    return tuple(_event(line) for line in history.splitlines())


def _event(line: str) -> Event:
    at_ms, what, wid, attempt, *started_at_ms = line.split(" ")
    return Event(int(at_ms), what, wid, attempt, int(started_at_ms[0]) if started_at_ms else 0)
