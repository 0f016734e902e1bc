"""What a load client counts, and the window of time in which it counts."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def percentile_ms(values: Sequence[float], share: float, zeros: int = 0) -> float | None:
    """A percentile in ms of `values` (seconds, sorted) with `zeros` more zeros before them. None without values."""
    count = len(values) + zeros
    if not count:
        return None
    at = min(count - 1, int(count * share)) - zeros
    return round(values[at] * 1e3, 3) if at >= 0 else 0.0


def overlap_ratio(began_s: float, ended_s: float, from_s: float, to_s: float) -> float:
    """The share of [began_s, ended_s] that lies in [from_s, to_s]: 0..1."""
    length_s = max(ended_s - began_s, 1e-9)
    return max(0.0, min(ended_s, to_s) - max(began_s, from_s)) / length_s


class Window:
    """Counters of the events between `from_s` and `to_s`, seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.from_s = self.to_s = float("inf")
        self.ttft, self.itl, self.relay, self.total = array("d"), array("d"), array("d"), array("d")
        self.zero_gaps = self.reads = self.done = 0
        self.tokens = 0.0
        self.errors: Counter[str] = Counter()
        self.errors_outside = 0
        self._marks: list[tuple[float, ...]] = []

    def inside(self, at_s: float) -> bool:
        """Whether a moment lies in the window."""
        return self.from_s <= at_s < self.to_s

    def error(self, kind: str, at_s: float) -> None:
        """Counts an error; those outside the window apart."""
        if self.inside(at_s):
            self.errors[kind] += 1
        else:
            self.errors_outside += 1

    def mark(self, at_s: float) -> None:
        """One slice of the window ends here, the next begins. Costs nothing: what lies between is told at the end."""
        lengths = (len(self.ttft), len(self.itl), len(self.relay))
        self._marks.append((at_s, *lengths, self.zero_gaps, self.tokens, self.done, self.errors.total()))

    def slices(self) -> list[dict[str, Any]]:
        """The figures of each slice; its times in ms, `at_s` of its end."""
        return [self._slice(before, after) for before, after in pairwise(self._marks)]

    def _slice(self, before: tuple[float, ...], after: tuple[float, ...]) -> dict[str, Any]:
        seconds = after[0] - before[0]
        lists = zip((self.ttft, self.itl, self.relay), before[1:4], after[1:4], strict=True)
        ttft, itl, relay = (sorted(values[int(begin) : int(end)]) for values, begin, end in lists)
        zeros, tokens, done, errors = (now - then for then, now in zip(before[4:], after[4:], strict=True))
        return {
            "at_s": round(after[0], 3),
            "tok_s": round(tokens / seconds),
            "req_s": round(done / seconds, 1),
            "ttft_ms": {"p50": percentile_ms(ttft, 0.5), "p99": percentile_ms(ttft, 0.99)},
            "itl_ms": {"p50": percentile_ms(itl, 0.5, int(zeros)), "p99": percentile_ms(itl, 0.99, int(zeros))},
            "relay_ms": {"p50": percentile_ms(relay, 0.5), "p99": percentile_ms(relay, 0.99)},
            "errors": int(errors),
        }

    def figures(self) -> dict[str, Any]:
        """Everything counted; times in ms."""
        seconds = self.to_s - self.from_s
        ttft, itl, relay, total = (sorted(values) for values in (self.ttft, self.itl, self.relay, self.total))
        return {
            "seconds": round(seconds, 3),
            "requests": self.done,
            "tokens": round(self.tokens),
            "req_s": round(self.done / seconds, 1),
            "tok_s": round(self.tokens / seconds),
            "ttft_ms": {"p50": percentile_ms(ttft, 0.5), "p99": percentile_ms(ttft, 0.99)},
            "itl_ms": {
                "p50": percentile_ms(itl, 0.5, self.zero_gaps),
                "p99": percentile_ms(itl, 0.99, self.zero_gaps),
            },
            "relay_ms": {"p50": percentile_ms(relay, 0.5), "p99": percentile_ms(relay, 0.99)},
            "total_ms": {"p50": percentile_ms(total, 0.5), "p99": percentile_ms(total, 0.99)},
            "tokens_per_read": round(self.tokens / self.reads, 2) if self.reads else None,
            "errors": self.errors.total(),
            "error_kinds": dict(self.errors),
            "errors_outside": self.errors_outside,
        }
