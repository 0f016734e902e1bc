"""A long run at 70 % of what one replica carries: do memory and latency stay flat?"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from scripts.bench.client import Run, load
from scripts.bench.groups import BenchError
from scripts.bench.options import Budget, Options
from scripts.bench.ramp import Ramp
from scripts.bench.sampling import Sample, Sampler
from scripts.bench.scenarios import PACED, ramp_step
from scripts.bench.sessions import opened
from scripts.bench.trend import since, trend

MINUTES = 32.0
MOST_MEMORY_PERCENT, MOST_LATENCY_PERCENT = 10.0, 40.0
"""Growth per hour up to which a figure is called flat: 2.5 % and 10 % in a quarter of one."""
_SHARE = 0.7
_SLICE_S = 10.0
_LEAST_S = 30.0
_TIMED = 64
"""Connections of which times are kept: all of them would be a hundred million figures."""
_KEPT_S = 60
LEVEL_S = _KEPT_S + 600.0 + 30.0
"""When Redis drops as much as it gets: answers, and ten minutes later their records; what has expired stays a while."""
_ENDS_S = 40.0
"""Start, warm-up and drain."""


def measure(options: Options, budget: Budget, work: Path) -> dict[str, Any]:
    """Finds the load, holds it. Raises BenchError."""
    began_s = time.monotonic()
    found = None if options.load_streams else _bearable(options, budget, work)
    streams = options.load_streams or int(_SHARE * (found or 0))
    wanted_s = 60 * (options.minutes or MINUTES)
    if options.minutes:
        wanted_s -= time.monotonic() - began_s + _ENDS_S
    seconds = max(_LEAST_S, wanted_s // _SLICE_S * _SLICE_S)
    print(f"  {streams} streams for {seconds:.0f} s", flush=True)
    scenario = ramp_step(streams)
    flags = [*scenario.shape_flags(), "--slice", str(_SLICE_S), "--timed-each", str(max(1, streams // _TIMED))]
    with opened("penstock", PACED, options, work, {"PENSTOCK_RESULT_TTL_S": str(_KEPT_S)}) as (port, groups):
        pids = {role: process.pid for role, process in groups[""].processes.items()}
        with Sampler(pids, _SLICE_S) as sampler:
            run = load(port, flags, warmup_s=scenario.warmup_s, seconds=seconds, groups=groups)
        during = sampler.between(run["from_s"], run["from_s"] + run["seconds"])
    return figures(streams, run, during, found=found)


def _bearable(options: Options, budget: Budget, work: Path) -> int:
    ramp = Ramp(options, budget, ["penstock"], work)
    ramp.climb("penstock")
    if not (most := ramp.most("penstock")):
        msg = "not even the first step of the ramp was in time, so there is no load to hold"
        raise BenchError(msg)
    return most


def figures(streams: int, run: Run, samples: list[Sample], *, found: int | None = None) -> dict[str, Any]:
    """What is kept of a run: everything by slice, and the trend of each series once caches and Redis have filled up.

    That is after `LEVEL_S`. A run that is not twice as long is judged from its second quarter on, too soon for Redis.
    `found`: the most streams in time, of which these are 70 %; None when they were asked for.
    """
    from_s = run["from_s"]
    judged_from_s = LEVEL_S if run["seconds"] >= 2 * LEVEL_S else run["seconds"] / 4
    series: dict[str, dict[str, Any]] = {}

    def add(name: str, unit: str, most: float, points: list[tuple[float, float | None]]) -> None:
        known = [(at_s - from_s, value) for at_s, value in points if value is not None]
        times_s, values = [round(at_s, 1) for at_s, _ in known], [value for _, value in known]
        series[name] = {"unit": unit, "most": most, "times_s": times_s, "values": values}

    for role in samples[0].rss_mb if samples else ():
        points: list[tuple[float, float | None]] = [(each.at_s, round(each.rss_mb[role], 2)) for each in samples]
        add(f"memory of {role}", "MB", MOST_MEMORY_PERCENT, points)
    for name, key in (("TTFT p99", "ttft_ms"), ("ITL p99", "itl_ms"), ("token's way p99", "relay_ms")):
        points = [(each["at_s"], each[key]["p99"]) for each in run["slices"]]
        add(name, "ms", MOST_LATENCY_PERCENT, points)
    return {
        "streams": streams,
        "found": found,
        "seconds": run["seconds"],
        "judged_from_s": judged_from_s,
        "tok_s": run["tok_s"],
        "requests": run["requests"],
        "tokens": run["tokens"],
        "errors": run["errors"] + run["errors_outside"] + run["unfinished"],
        "cpu_s": run["cpu_s"],
        "cores": round((sum(run["cpu_s"].values()) + run["cpu_client_s"]) / run["seconds"], 2),
        "other_cores": round(max(0.0, run["cpu_other_s"] / run["seconds"]), 2),
        "series": {name: {**each, **_judged(each, judged_from_s)} for name, each in series.items()},
    }


def _judged(series: dict[str, Any], from_s: float) -> dict[str, Any]:
    times_s, values = since(from_s, series["times_s"], series["values"])
    if (found := trend(times_s, values)) is None:
        return {"slope": None, "verdict": "not clear: too short"}
    third = max(1, len(values) // 3)
    return {
        "slope": [found.slope, found.low, found.high],
        "verdict": found.verdict(series["most"]),
        "first_third": round(statistics.median(values[:third]), 2),
        "last_third": round(statistics.median(values[-third:]), 2),
    }
