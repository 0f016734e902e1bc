"""Whether something grows: its slope, robustly, with the noise of that."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

_CONFIDENCE = 0.95
_LEAST = 8


@dataclass(frozen=True, slots=True)
class Trend:
    """A slope in per cent of the median per hour; `low` and `high` hold the true one 19 times in 20."""

    slope: float
    low: float
    high: float

    def verdict(self, most: float) -> str:
        """`flat`: surely not more than `most` per cent an hour; `grows`: surely more; else the noise is too high."""
        if self.high <= most:
            return "flat"
        return "**grows**" if self.low > most else "not clear: too short or too noisy"


def trend(times_s: Sequence[float], values: Sequence[float]) -> Trend | None:
    """Theil and Sen's slope, the median of the slopes of all pairs, with Kendall's interval around it.

    One slice that the machine has spoilt moves neither. None for fewer than eight values or a median of nought.
    """
    count = len(values)
    middle = statistics.median(values) if values else 0.0
    if count < _LEAST or not middle:
        return None
    points = list(zip(times_s, values, strict=True))
    slopes = sorted((b - a) / (t - s) for (s, a), (t, b) in combinations(points, 2) if t > s)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    half = statistics.NormalDist().inv_cdf((1 + _CONFIDENCE) / 2) * deviation / 2
    low = slopes[max(0, math.floor(len(slopes) / 2 - half))]
    high = slopes[min(len(slopes) - 1, math.ceil(len(slopes) / 2 + half))]
    factor = 3600 * 100 / middle
    return Trend(*(round(slope * factor, 2) for slope in (statistics.median(slopes), low, high)))


def since(from_s: float, times_s: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The part of a series that begins then."""
    kept = [(at_s, value) for at_s, value in zip(times_s, values, strict=True) if at_s >= from_s]
    return [at_s for at_s, _ in kept], [value for _, value in kept]
