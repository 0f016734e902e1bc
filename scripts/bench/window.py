"""What a load client counts, and the window of time in which it counts."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
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

    def inside(self, at_s: float) -> bool:
        """Whether a moment lies in the window."""
        return self.from_s <= at_s < self.to_s

    def error(self, kind: str, at_s: float) -> None:
        """Counts an error."""
        if self.inside(at_s):
            self.errors[kind] += 1

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
        }
