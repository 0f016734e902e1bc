"""Times of a batch: how long it may take, from when on it may start, and at which hours of the day."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

LEAST_WINDOW_S = 3_600
MOST_WINDOW_S = 7 * 86_400
_UNIT_S = {"h": 3_600, "d": 86_400}
_SPAN = re.compile(r"([1-9][0-9]{0,3})([hd])")
_HOUR = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
_FIELDS = {"from", "to", "timezone"}


def window_s(text: object) -> int | None:
    """Seconds of a completion window such as `24h` or `7d`; None for what is none, or out of bounds."""
    match = _SPAN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    seconds = int(match[1]) * _UNIT_S[match[2]]
    return seconds if LEAST_WINDOW_S <= seconds <= MOST_WINDOW_S else None


@dataclass(frozen=True, slots=True)
class Hours:
    """Hours of each day, as `22:00` to `06:00`: from `begin` on, until before `end`, by the clocks of a place."""

    begin: time
    end: time
    zone: tzinfo

    def opens_in_s(self, now_ms: int) -> float:
        """Seconds from a moment (Unix ms) until they begin; 0 while they last."""
        now = datetime.fromtimestamp(now_ms / 1000, self.zone)
        at = now.time()
        inside = self.begin <= at < self.end if self.begin < self.end else at >= self.begin or at < self.end
        if inside:
            return 0.0
        start = now.replace(hour=self.begin.hour, minute=self.begin.minute, second=0, microsecond=0)
        if start <= now:
            start += timedelta(days=1)
        return max(0.0, start.timestamp() - now.timestamp())


def hours_of(value: Any) -> Hours:
    """From `{"from": "22:00", "to": "06:00", "timezone": "Europe/Berlin"}`. Raises ValueError with what is wrong."""
    if not isinstance(value, dict) or set(value) - _FIELDS or not {"from", "to"} <= set(value):
        raise ValueError('it must be an object such as {"from": "22:00", "to": "06:00", "timezone": "Europe/Berlin"}')
    begin, end = (_time(value[name]) for name in ("from", "to"))
    if begin == end:
        raise ValueError("`from` and `to` must differ")
    name = value.get("timezone", "UTC")
    try:
        zone = UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError("`timezone` must be the name of a time zone, such as Europe/Berlin") from error
    return Hours(begin, end, zone)


def _time(text: object) -> time:
    match = _HOUR.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError("`from` and `to` must be times of the day, such as 22:00")
    return time(int(match[1]), int(match[2]))
