"""Thousands of streams open at once on one replica, each with a token now and then: memory, errors, a token's way.

The tokens come from several workers, as they do where so many streams are open: a step of an engine gives a token to
each of its sequences at once, so one engine would send all of them in one burst. No two have the same pace, so their
steps meet now and then, as those of real engines do.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench import files
from scripts.bench.client import Run, load
from scripts.bench.gateways import Place, start_redis, start_replica
from scripts.bench.groups import BenchError, Group, free_ports
from scripts.bench.options import Options
from scripts.bench.sampling import Sample, Sampler
from scripts.bench.scenarios import PACED, STREAMS

_WORKERS = 16
"""Then an engine has 250 sequences, about what vLLM runs at once by itself (256)."""
_PACE_MS, _PACE_STEP_MS = 2000, 30
_ARRIVALS_S = 150.0
"""New streams per second while they are opened."""
_SETTLE_S, _WINDOW_S, _DRAIN_S = 6.0, 20.0, 20.0
_WARM_STREAMS = 64
_READY_LIMIT_S = 90.0
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """When what happens, for so many streams. All are open during the window, and none is opened twice."""

    streams: int

    @property
    def opening_s(self) -> float:
        """Until the last stream is asked for."""
        return self.streams / _ARRIVALS_S

    @property
    def warmup_s(self) -> float:
        """From the first request to the window."""
        return self.opening_s + _SETTLE_S

    @property
    def tokens(self) -> int:
        """Of each answer: at the fastest engine's pace, it lasts beyond the window."""
        return math.ceil((self.warmup_s + _WINDOW_S + _SETTLE_S) * 1000 / _PACE_MS)

    @property
    def drain_s(self) -> float:
        """From the end of the window until the last answer of the slowest engine has surely ended."""
        slowest_ms = _PACE_MS + _PACE_STEP_MS * (_WORKERS - 1)
        return self.opening_s + self.tokens * slowest_ms / 1000 - self.warmup_s - _WINDOW_S + _DRAIN_S

    @property
    def lasts_s(self) -> float:
        """About how long all of it takes."""
        return self.warmup_s + _WINDOW_S + self.drain_s

    def flags(self) -> list[str]:
        """For the load client."""
        flags = ["--concurrency", str(self.streams), "--tokens", str(self.tokens), "--ramp", str(self.opening_s)]
        return [*flags, "--drain", str(self.drain_s), "--timeout", str(self.lasts_s)]


def measure(options: Options, work: Path) -> dict[str, Any]:
    """Opens them, holds them, lets them end. Raises BenchError, also where so many files cannot be open."""
    plan = Plan(options.load_streams or STREAMS)
    files.check_limit(plan.streams)
    (port,) = free_ports(1)
    group = Group(work, "streams")
    try:
        _start(group, Place(work, options.cache, port, 0, 0, PACED, aof=options.aof), plan.streams)
        warm = ["--concurrency", str(_WARM_STREAMS), "--tokens", "2"]
        load(port, warm, warmup_s=1, seconds=5, groups={"": group})
        time.sleep(2 * _LOOK_S)
        with Sampler({role: process.pid for role, process in group.processes.items()}, _LOOK_S) as sampler:
            before = sampler.look()
            run = load(port, plan.flags(), warmup_s=plan.warmup_s, seconds=_WINDOW_S, groups={"": group})
            during = sampler.between(run["from_s"], run["from_s"] + run["seconds"])
    finally:
        group.stop()
    return figures(plan, run, before, during)


def _start(group: Group, place: Place, streams: int) -> None:
    env = start_redis(group, place)
    slots = math.ceil(streams / _WORKERS) + _WORKERS
    for number in range(_WORKERS):
        pace = ["--ttft-ms", str(PACED.ttft_ms), "--itl-ms", str(_PACE_MS + number * _PACE_STEP_MS)]
        engine = ["--engine", "sim", "--", "--text", "clock", *pace, "--slots", str(slots)]
        group.start(f"worker{number}", [sys.executable, "-m", "worker", *engine], env)
    start_replica(group, place, env)
    group.wait_ready(f"http://127.0.0.1:{place.port}/readyz", _READY_LIMIT_S)


def figures(plan: Plan, run: Run, before: Sample, during: list[Sample]) -> dict[str, Any]:
    """What is kept of a run. `before`: a sample without streams; `during`: those of the window. Raises BenchError."""
    if not during:
        msg = "no sample was taken while the streams were open"
        raise BenchError(msg)
    grown_mb = {role: _median_mb(role, during) - before.rss_mb[role] for role in before.rss_mb}
    workers_mb = sum(value for role, value in grown_mb.items() if role.startswith("worker"))
    grown_mb = {"replica": grown_mb["replica"], "redis": grown_mb["redis"], "workers": workers_mb}
    used_s = sum(run["cpu_s"].values()) + run["cpu_client_s"]
    return {
        "streams": plan.streams,
        "open": run["open"],
        "workers": _WORKERS,
        "tok_s": run["tok_s"],
        "kb_a_stream": {role: round(1024 * value / plan.streams, 1) for role, value in grown_mb.items()},
        "replica_mb": {"before": round(before.rss_mb["replica"], 1), "open": round(_median_mb("replica", during), 1)},
        "relay_ms": run["relay_ms"],
        "errors": run["errors"] + run["errors_outside"] + run["unfinished"] + plan.streams - run["open"],
        "error_kinds": {**run["error_kinds"], "outside": run["errors_outside"], "unfinished": run["unfinished"]},
        "cores": round(used_s / run["seconds"], 2),
        "other_cores": round(max(0.0, run["cpu_other_s"] / run["seconds"]), 2),
        "replica_cores": round(run["cpu_s"]["replica"] / run["seconds"], 2),
    }


def _median_mb(role: str, samples: list[Sample]) -> float:
    return statistics.median(sample.rss_mb[role] for sample in samples)
