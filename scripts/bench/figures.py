"""From runs to figures: medians of repeats."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from scripts.bench.client import Run, other_cores

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Summary:
    """One gateway in one scenario: medians of its repeats. Times in ms; CPU is that of the gateway's processes."""

    req_s: float
    tok_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    relay_p50_ms: float
    relay_p99_ms: float
    cpu_s_per_mtok: float
    cpu_s_per_kreq: float
    roles_cpu_s_per_mtok: dict[str, float]
    tokens_per_read: float
    rss_mb: float
    errors: int
    spread_ratio: float
    other_cores: float
    repeats: int


def _median(runs: list[Run], pick: Callable[[Run], float | None]) -> float:
    values = [value for run in runs if (value := pick(run)) is not None]
    return statistics.median(values) if values else float("nan")


def _at(name: str, share: str) -> Callable[[Run], float | None]:
    def pick(run: Run) -> float | None:
        value: float | None = run[name][share]
        return value

    return pick


def _cpu_s(run: Run) -> float:
    return float(sum(run["cpu_s"].values()))


def _cpu_s_per_kreq(run: Run) -> float | None:
    """None when no request ended in the window, as behind a gateway that is far too slow."""
    return 1e3 * _cpu_s(run) / run["requests"] if run["requests"] else None


def per_mtok(cpu_s: float, tokens: float) -> float:
    """CPU seconds per million tokens, which is also µs per token."""
    return 1e6 * cpu_s / max(1.0, tokens)


def summarise(runs: list[Run]) -> Summary:
    """The medians of at least one run."""
    costs = [per_mtok(_cpu_s(run), run["tokens"]) for run in runs]
    roles = runs[0]["cpu_s"]
    return Summary(
        req_s=_median(runs, lambda run: run["req_s"]),
        tok_s=_median(runs, lambda run: run["tok_s"]),
        ttft_p50_ms=_median(runs, _at("ttft_ms", "p50")),
        ttft_p99_ms=_median(runs, _at("ttft_ms", "p99")),
        itl_p50_ms=_median(runs, _at("itl_ms", "p50")),
        itl_p99_ms=_median(runs, _at("itl_ms", "p99")),
        relay_p50_ms=_median(runs, _at("relay_ms", "p50")),
        relay_p99_ms=_median(runs, _at("relay_ms", "p99")),
        cpu_s_per_mtok=statistics.median(costs),
        cpu_s_per_kreq=_median(runs, _cpu_s_per_kreq),
        roles_cpu_s_per_mtok={
            role: round(statistics.median(per_mtok(run["cpu_s"][role], run["tokens"]) for run in runs), 2)
            for role in roles
        },
        tokens_per_read=_median(runs, lambda run: run["tokens_per_read"]),
        rss_mb=_median(runs, lambda run: sum(run["rss_mb"].values())),
        errors=sum(run["errors"] + run["unfinished"] for run in runs),
        spread_ratio=max(costs) / max(_TINY, min(costs)) if max(costs) else 1.0,
        other_cores=max(map(other_cores, runs)),
        repeats=len(runs),
    )


@dataclass(frozen=True, slots=True)
class EngineCost:
    """What the simulated engine inside Penstock's worker costs in one scenario."""

    cpu_s_per_mtok: float
    cpu_s_per_kreq: float


def engine_cost(runs: list[Run]) -> EngineCost:
    """The medians of at least one run of the engine alone."""
    return EngineCost(
        statistics.median(per_mtok(run["cpu_s"], run["tokens"]) for run in runs),
        statistics.median(1e3 * run["cpu_s"] / max(1, run["requests"]) for run in runs),
    )
