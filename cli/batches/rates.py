"""How fast a batch gets on, as far as a watcher sees it, and words for figures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

_OVER_S = 15.0
_MINUTE_S, _HOUR_S = 60, 3_600


class Rates:
    """Rows/s and tokens/s over the last seconds, of objects of a batch as they come."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()
        self._told_rows_per_s: float | None = None
        self._told_left_s: float | None = None
        self._told_at_s = 0.0
        self._left_rows = 0

    def add(self, found: Mapping[str, Any]) -> None:
        """The batch as it is now."""
        now_s, counts = time.monotonic(), found["request_counts"]
        done = counts["completed"] + counts["failed"]
        self._left_rows = max(0, counts["total"] - done)
        self._seen.append((now_s, done, (found.get("usage") or {}).get("total_tokens", 0)))
        while len(self._seen) > 2 and self._seen[0][0] < now_s - _OVER_S:  # noqa: PLR2004 - two make a slope
            self._seen.popleft()
        told = found.get("progress")
        if told is not None:
            self._told_rows_per_s, self._told_left_s = told.get("rows_per_s"), told.get("left_s")
            self._told_at_s = now_s

    @property
    def rows_per_s(self) -> float | None:
        """The batch process's own figure, else what was seen; None: not known yet."""
        return self._told_rows_per_s if self._told_rows_per_s is not None else self._slope(1)

    @property
    def tokens_per_s(self) -> float | None:
        """Read and written; None: not known yet."""
        return self._slope(2)

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take; None: not known."""
        if self._told_left_s is not None:
            return max(0.0, self._told_left_s - (time.monotonic() - self._told_at_s))
        rate = self.rows_per_s
        return self._left_rows / rate if rate else None

    def _slope(self, which: int) -> float | None:
        if len(self._seen) < 2:  # noqa: PLR2004 - two make a slope
            return None
        first, last = self._seen[0], self._seen[-1]
        passed_s = last[0] - first[0]
        return (last[which] - first[which]) / passed_s if passed_s > 0 else None


def span(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S:02} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S:02} min"


def count(number: float) -> str:
    """`50 000`: digits in threes; below 10 one decimal where there is one."""
    text = f"{number:.1f}" if number < 10 and number != int(number) else f"{number:,.0f}"  # noqa: PLR2004 - one digit
    return text.replace(",", " ")


def facts_of(found: Mapping[str, Any], rates: Rates) -> list[str]:
    """What is known of a batch's progress, the most wanted first."""
    counts = found["request_counts"]
    facts = [f"{count(counts['completed'] + counts['failed'])}/{count(counts['total'])} rows"]
    facts.append(f"{count(counts['failed'])} failed")
    if rates.rows_per_s is not None:
        facts.append(f"{count(rates.rows_per_s)} rows/s")
    if rates.tokens_per_s is not None:
        facts.append(f"{count(rates.tokens_per_s)} tokens/s")
    if found["status"] == "in_progress" and rates.left_s is not None:
        facts.append(f"{span(rates.left_s)} left")
    return facts
