"""Until when a request must have started and must have ended: what its client says, and what its lane allows.

A client says how long it waits (`X-Request-Timeout-Ms`, from the moment the request has been read) or until when
(`X-Request-Deadline`); of both, the earlier one counts. Neither makes a lane's own limits longer. All times are the
Redis server's, which is also who watches them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from shared.errors import RequestError, invalid_request

_TIMEOUT, _DEADLINE = "X-Request-Timeout-Ms", "X-Request-Deadline"
_WHOLE = re.compile(r"[0-9]{1,15}")
_EARLIEST_MS = 1_000_000_000_000
"""September 2001: a number below is seconds, or a span."""


@dataclass(frozen=True, slots=True)
class Patience:
    """What a client says about its time. None: nothing.

    Attributes:
        timeout_ms: how long the whole request may take.
        until_ms: Unix milliseconds by which it must have ended.
    """

    timeout_ms: int | None = None
    until_ms: int | None = None

    def limits(self, now_ms: int, queue_s: float, whole_s: float) -> Limits:
        """The limits of a request that comes now, in a lane that lets it wait and take so long."""
        ends = [now_ms + int(whole_s * 1000)]
        if self.timeout_ms is not None:
            ends.append(now_ms + self.timeout_ms)
        if self.until_ms is not None:
            ends.append(self.until_ms)
        finish_by_ms = min(ends)
        return Limits(min(now_ms + int(queue_s * 1000), finish_by_ms), finish_by_ms)


ENDLESS = Patience()
"""A client that says nothing: its lane's limits count."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Unix milliseconds, of the Redis server's clock."""

    start_by_ms: int
    finish_by_ms: int


def patience_of(headers: Mapping[str, str]) -> Patience:
    """What a request's headers say; names in lower case. Raises RequestError (400)."""
    timeout, deadline = headers.get(_TIMEOUT.lower()), headers.get(_DEADLINE.lower())
    if timeout is None and deadline is None:
        return ENDLESS
    return Patience(
        None if timeout is None else _timeout_ms(timeout.strip()),
        None if deadline is None else _until_ms(deadline.strip()),
    )


def _timeout_ms(text: str) -> int:
    if not _WHOLE.fullmatch(text) or int(text) == 0:
        raise _nonsense(_TIMEOUT, f"must be a whole number of milliseconds, at least 1, not {text!r}")
    return int(text)


def _until_ms(text: str) -> int:
    if _WHOLE.fullmatch(text):
        if int(text) < _EARLIEST_MS:
            raise _nonsense(_DEADLINE, f"must be Unix milliseconds; {text} looks like seconds or a span of time")
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise _nonsense(
            _DEADLINE, f"must be Unix milliseconds or RFC 3339 with a time zone (2030-01-31T12:00:00Z), not {text!r}"
        )
    return max(1, int(moment.timestamp() * 1000))  # 0 and below would say that there is no deadline


def _nonsense(header: str, what: str) -> RequestError:
    return invalid_request(f"`{header}` {what}.", param=header)
