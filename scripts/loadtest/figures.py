"""What was measured: one Outcome for each request, and the figures of many."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTS = (50, 95, 99)
KEPT = 1_000
"""Outcomes that are kept of a run without an end: all that it shows is of these."""
_LATELY_S = 10.0


@dataclass
class Outcome:
    """One request, as its client saw it. Times are of the monotonic clock, 0 while there is none."""

    kind: str
    began_s: float
    first_s: float = 0.0
    ended_s: float = 0.0
    tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)
    error: str = ""
    resumes: int = 0

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.first_s - self.began_s

    @property
    def latency_s(self) -> float:
        """Time to the last."""
        return self.ended_s - self.began_s


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p95, p99 by the nearest rank, and the largest; None of nothing."""
    ranked = sorted(values)
    if not ranked:
        return None
    found = {f"p{percent}": ranked[max(0, -(-len(ranked) * percent // 100) - 1)] for percent in PERCENTS}
    return {**found, "max": ranked[-1]}


@dataclass
class Figures:
    """The outcomes of a run: all, or the last of one without an end."""

    began_s: float = field(default_factory=time.monotonic)
    outcomes: deque[Outcome] = field(default_factory=deque)
    running: int = 0
    ended: int = 0
    failed: int = 0

    @classmethod
    def endless(cls) -> Figures:
        """Of a run that may take days: keeps the last `KEPT` outcomes."""
        return cls(outcomes=deque(maxlen=KEPT))

    def add(self, outcome: Outcome) -> None:
        """Takes in a request that has ended."""
        self.outcomes.append(outcome)
        self.ended += 1
        self.failed += bool(outcome.error)

    def span_s(self) -> float:
        """Over how many seconds the outcomes that are kept have ended, until now."""
        since_s = self.began_s if self.ended == len(self.outcomes) else self.outcomes[0].ended_s
        return max(time.monotonic() - since_s, 0.001)

    def by_kind(self) -> dict[str, list[Outcome]]:
        """The outcomes of each kind, and of all under `all`."""
        found: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            found[outcome.kind].append(outcome)
        return {**dict(sorted(found.items())), "all": list(self.outcomes)}

    def lately(self) -> tuple[float, float]:
        """Requests/s and tokens/s of what has ended in the last ten seconds."""
        span_s = min(_LATELY_S, self.span_s())
        after_s = time.monotonic() - span_s
        newest_first = itertools.takewhile(lambda outcome: outcome.ended_s > after_s, reversed(self.outcomes))
        late = [outcome for outcome in newest_first if not outcome.error]
        return len(late) / span_s, sum(outcome.tokens for outcome in late) / span_s


def summary(outcomes: Iterable[Outcome], span_s: float) -> dict[str, Any]:
    """The figures of some outcomes over `span_s` seconds. Seconds throughout; errors count in no time."""
    every = list(outcomes)
    good = [outcome for outcome in every if not outcome.error]
    return {
        "requests": len(every),
        "errors": dict(Counter(outcome.error for outcome in every if outcome.error)),
        "resumed": sum(1 for outcome in every if outcome.resumes),
        "requests_per_s": len(good) / span_s,
        "tokens_per_s": sum(outcome.tokens for outcome in good) / span_s,
        "ttft_s": percentiles([outcome.ttft_s for outcome in good if outcome.first_s]),
        "itl_s": percentiles([gap_s for outcome in good for gap_s in outcome.gaps_s]),
        "latency_s": percentiles([outcome.latency_s for outcome in good]),
    }
