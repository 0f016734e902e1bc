"""Settings that lanes may have differently, written in one line: `600`, `600,batch=86400`, `queue,interactive=reject`.

A value without a name is that of every lane which is not named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from shared.lanes import Lane

T = TypeVar("T")
Mode = Literal["queue", "reject"]
"""What a lane does with a request that no slot is free for: let it wait, or refuse it."""


def by_lane(text: str, read: Callable[[str], T], default: T) -> dict[Lane, T]:
    """The value of each lane. `default` is that of lanes of which the text says nothing. Raises ValueError."""
    everywhere: T | None = None
    named: dict[Lane, T] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        lane, found, value = part.rpartition("=")
        name = lane.strip().lower()
        if found and name not in set(Lane):
            msg = f"{lane.strip()!r} is no lane; there are {', '.join(Lane)}"
            raise ValueError(msg)
        if (everywhere is not None) if not found else (name in named):
            msg = f"{text!r} has two values for {name or 'all lanes'}"
            raise ValueError(msg)
        if found:
            named[Lane(name)] = read(value.strip())
        else:
            everywhere = read(value)
    return {lane: named.get(lane, default if everywhere is None else everywhere) for lane in Lane}


def seconds(text: str) -> float:
    """A span of time. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        msg = f"must be a number of seconds above 0, not {text!r}"
        raise ValueError(msg)
    return value


def mode(text: str) -> Mode:
    """A lane's mode. Raises ValueError."""
    match text.strip().lower():
        case "queue":
            return "queue"
        case "reject":
            return "reject"
        case _:
            msg = f"must be queue or reject, not {text!r}"
            raise ValueError(msg)
