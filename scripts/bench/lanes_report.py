"""What was measured of lanes, tenants, bursts and Redis time: its targets, and its part of the page."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from scripts.bench import burst, lanes, redis_time
from scripts.bench.lanes_scene import LANES
from scripts.bench.options import Options
from scripts.bench.tables import number, table
from scripts.bench.targets import Target

_WEIGHTS = {"interactive": 8, "standard": 3, "batch": 1}
_MOST_REPEATS = 2
_QUEUED, _QUICK_QUEUED = 50_000, 5_000
_TITLE = "### Lanes, tenants, overload"


def measure(options: Options, work: Path) -> dict[str, Any]:
    """Everything, at most twice: it takes three minutes. Raises BenchError."""
    repeats = range(min(options.repeat, _MOST_REPEATS))
    quick = options.lanes_s < 10
    queued = _QUICK_QUEUED if quick else _QUEUED
    found: dict[str, Any] = {"queued": queued, "redis": redis_time.measure(work, queued)}
    found["backlog"] = [lanes.beside_a_backlog(work, options.lanes_s, queued) for _ in repeats]
    found["flood"] = [lanes.beside_a_flood(work, options.lanes_s) for _ in repeats]
    found["burst"] = [burst.measured(work, options.lanes_s if quick else 60.0)]
    return found


def _median(runs: list[dict[str, Any]], *path: str) -> float:
    values = []
    for run in runs:
        value: Any = run
        for name in path:
            value = value[name]
        values.append(value)
    return float(statistics.median(values))


def _spread(runs: list[dict[str, Any]], *path: str) -> str:
    """Median, and least to most where there are several."""
    values = sorted(_median([run], *path) for run in runs)
    text = number(_median(runs, *path), 3 if values[-1] < 2 else 0)
    return text if len(values) < 2 else f"{text} ({number(values[0], 3)} to {number(values[-1], 3)})"


def _off_weights(run: dict[str, Any]) -> float:
    """By how much a lane's share differs from its weight at most, per cent of that."""
    total = sum(_WEIGHTS.values())
    return max(abs(run["shares"][lane] * total / _WEIGHTS[lane] - 1) for lane in LANES) * 100


def targets(found: dict[str, Any] | None) -> list[Target]:
    """The promises about lanes against one run."""
    if not found:
        return []
    backlog, flood, (storm, *_) = found["backlog"], found["flood"], found["burst"]
    result = []
    for name in ("batch", "batch, aged", "batch, 2x standard"):
        what = f"interactive queue wait p99, {found['queued']:,} batch waiting ({name})"
        result.append(Target(what, "ms", 300, _median(backlog, name, "wait_ms", "p99")))
    off: float | None = statistics.median(_off_weights(run["all backlogged"]) for run in backlog)
    result.append(Target("a lane's share of starts off its weight 8:3:1, all backlogged", "%", 5, off))
    least = min(run[name]["shares"]["batch"] for run in backlog for name in run)
    result.append(Target("starts per start of batch, at its worst", "", 12 * 1.05, 1 / max(least, 1e-9)))
    aged = max(run[name]["aged_share"] for run in backlog for name in run)
    result.append(Target("share of picks for age", "", 0.25, aged))
    result.append(Target("1 - Jain's index of 50 tenants and a flood", "", 0.05, 1 - _median(flood, "flood", "jain")))
    ratio = _median(flood, "flood", "ttft_ms", "p95") / _median(flood, "no flood", "ttft_ms", "p95")
    result.append(Target("small tenants' TTFT p95 beside a flood over that without", "", 1.5, ratio))
    result.append(
        Target("most that waited in a burst over the lane's bound", "", 1, storm["most_waiting"] / storm["bound"])
    )
    inside = storm["told"]["inside"]
    result.append(
        Target("turns told that were off by more than 30 %", "%", 10, None if inside is None else 100 * (1 - inside))
    )
    result.append(Target("recovery after a burst", "s", 10, storm["recovery_s"]))
    for server, costs in found["redis"].items():
        result.append(Target(f"Redis time of an admission, {server}", "µs", 60, costs["admit"]["median"]))
        result.append(Target(f"Redis time of a pull, per request, {server}", "µs", 40, costs["pull"]["median"]))
    return result


def section(found: dict[str, Any] | None) -> str:
    """The part of the page; empty when it was not measured."""
    if not found:
        return ""
    return "\n\n".join([_TITLE, _shares(found), _floods(found), _burst(found["burst"][0]), _redis(found)])


def _shares(found: dict[str, Any]) -> str:
    runs = found["backlog"]
    rows = []
    for name, first in runs[0].items():
        each = [run[name] for run in runs]
        wait = _spread(each, "wait_ms", "p99") if "wait_ms" in first else "-"
        shares = [_spread(each, "shares", lane) for lane in LANES]
        rows.append(
            [name, _spread(each, "starts_s"), wait, *shares, _spread(each, "aged_share"), _spread(each, "stalled_ms")]
        )
    columns = ["load", "starts/s", "interactive wait p99, ms", *LANES, "for age", "machine stalled, ms"]
    text = (
        f"Shares of starts with {found['queued']:,} batch requests waiting; medians (least to most). *aged*: every "
        "head is over its age limit. *machine stalled*: the longest that the client itself was not let run.\n\n"
    )
    return text + table(columns, rows)


def _floods(found: dict[str, Any]) -> str:
    runs = found["flood"]
    rows = []
    for name, first in runs[0].items():
        each = [run[name] for run in runs]
        latency = [_spread(each, "ttft_ms", share) for share in ("p50", "p95")]
        rows.append([name, _spread(each, "requests"), *latency, _spread(each, "jain") if "jain" in first else "-"])
    text = "Fifty small tenants, and one that has 2,000 requests waiting. *few requests*: five a second in all.\n\n"
    return text + table(["load", "requests", "TTFT p50, ms", "p95, ms", "Jain's index"], rows)


def _burst(run: dict[str, Any]) -> str:
    told, rss = run["told"], run["rss_mb"]
    share = "-" if told["inside"] is None else f"{told['inside']:.1%}"
    return (
        f"A burst of ten times {run['starts_s']} starts/s for {run['seconds']:g} s: {run['asked']:,} asked, "
        f"{run['refused']:,} refused with 429, {run['errors']} other errors; at most {run['most_waiting']} of "
        f"{run['bound']} waited; recovered after {run['recovery_s']} s. Of {told['compared']:,} turns that came true "
        f"{share} were told within 30 % (told over true, p10 {told['ratio']['p10']}, p50 {told['ratio']['p50']}, "
        f"p90 {told['ratio']['p90']}); {told['without_turn']:,} were told the most, half a minute. The replica's "
        f"memory: {rss['before']:.0f} MB before, {rss['most']:.0f} at most, {rss['after']:.0f} after."
    )


def _redis(found: dict[str, Any]) -> str:
    rows = [
        [server, *(f"{costs[name]['median']} ({costs[name]['least']} to {costs[name]['most']})" for name in costs)]
        for server, costs in found["redis"].items()
    ]
    text = (
        f"Redis time in µs by INFO commandstats, {found['queued']:,} requests of {redis_time.TENANTS:,} tenants "
        "waiting; pulls of four, per request. Median (least to most) of batches; what else the machine does shows in "
        "the most.\n\n"
    )
    return text + table(["server", "admit", "pull", "claim"], rows)
