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
    everywhere, named = default, {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        lane, found, value = part.rpartition("=")
        if not found:
            everywhere = read(value)
        elif lane.strip().lower() in set(Lane):
            named[Lane(lane.strip().lower())] = read(value.strip())
        else:
            msg = f"{lane.strip()!r} is no lane; there are {', '.join(Lane)}"
            raise ValueError(msg)
    return {lane: named.get(lane, everywhere) for lane in Lane}


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
