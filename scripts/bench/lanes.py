"""Lanes and tenants under load: waits beside a backlog, shares, fairness. Real processes, the simulated engine."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

from scripts.bench.lanes_scene import LANES, Reply, Scene, scene
from scripts.bench.window import percentile_ms

_SLOTS, _FEW_SLOTS = 16, 8
_NEVER_MS = 1 << 40
_INTERACTIVE_S = 0.2
_SMALL, _STREAMS = 50, 2
"""Small tenants, and how many requests each has under way: while one is answered, another waits."""
_KEPT = 400
_LOOK_S = 0.1
_STALL_LOOK_S = 0.02
_CREDIT = 2
"""Picks for age that may have been saved up before."""


async def _regularly(site: Scene, every_s: float, until_s: float, lane: str = "interactive") -> list[Reply]:
    """A request each `every_s`, whatever became of those before."""
    tasks = []
    number = 0
    while time.monotonic() < until_s:
        tasks.append(asyncio.create_task(site.ask(f"user{number % 5}", lane)))
        number += 1
        await asyncio.sleep(every_s)
    return list(await asyncio.gather(*tasks))


async def _keep(site: Scene, lane: str, tenant: str, until_s: float) -> None:
    """A lane never has fewer than some hundred requests of this tenant waiting."""
    while time.monotonic() < until_s:
        if (depth := await site.depth(lane)) < _KEPT:
            await site.backlog(lane, 2 * _KEPT - depth, tenant)
        await asyncio.sleep(_LOOK_S)


async def _feed(site: Scene, lane: str, per_s: float, until_s: float) -> None:
    """So many requests a second join a lane."""
    began_s, sent = time.monotonic(), 0
    while (now_s := time.monotonic()) < until_s:
        due = int((now_s - began_s) * per_s)
        await site.backlog(lane, due - sent)
        sent = due
        await asyncio.sleep(_LOOK_S)


async def _stalls(found: list[float]) -> None:
    """For how long at a time this process did not get to run, seconds: what the machine does to everybody."""
    while True:
        began_s = time.monotonic()
        await asyncio.sleep(_STALL_LOOK_S)
        found.append(time.monotonic() - began_s - _STALL_LOOK_S)


async def _window(site: Scene, seconds: float, *loads: Any) -> dict[str, Any]:
    """Starts by lane and picks for age while the loads run; what the first load returns."""
    before, aged, began_s = await site.starts(), await site.aged(), time.monotonic()
    stalled: list[float] = [0.0]
    watch = asyncio.create_task(_stalls(stalled))
    results = await asyncio.gather(*loads, asyncio.sleep(seconds))
    watch.cancel()
    lasted_s = time.monotonic() - began_s
    starts = await site.starts()
    starts.subtract(before)
    total = max(1, sum(starts.values()))
    run = {
        "starts_s": round(total / lasted_s, 1),
        "shares": {lane: round(starts[lane] / total, 4) for lane in LANES},
        "stalled_ms": round(1e3 * max(stalled)),
        "aged_share": round(max(0, await site.aged() - aged - _CREDIT) / total, 4),
    }
    if loads and isinstance(results[0], list):
        waits = await site.wait_s(results[0])
        run["wait_ms"] = {"p50": percentile_ms(waits, 0.5), "p99": percentile_ms(waits, 0.99), "count": len(waits)}
    return run


def beside_a_backlog(work: Path, seconds: float, queued: int) -> dict[str, Any]:
    """Interactive requests beside a long batch backlog, then also beside more standard than there is room for."""
    return asyncio.run(_beside_a_backlog(work, seconds, queued))


def beside_a_flood(work: Path, seconds: float) -> dict[str, Any]:
    """Fifty tenants, each with two clients that send one request after the other, without and with a flood.

    And the same with little to do: each sends one now and then, so that without the flood hardly anybody waits.
    """
    return asyncio.run(_beside_a_flood(work, seconds))


async def _beside_a_backlog(work: Path, seconds: float, queued: int) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    async with scene(work, slots=_SLOTS) as site:
        await site.backlog("batch", queued)
        await site.age_limits(_NEVER_MS)
        end_s = time.monotonic() + seconds
        runs["batch"] = await _window(site, seconds, _regularly(site, _INTERACTIVE_S, end_s))
        await site.age_limits(0)  # the oldest possible backlog
        end_s = time.monotonic() + seconds
        runs["batch, aged"] = await _window(site, seconds, _regularly(site, _INTERACTIVE_S, end_s))
        await site.age_limits(_NEVER_MS)
        end_s, rate = time.monotonic() + seconds, 2 * runs["batch"]["starts_s"]
        loads = (_regularly(site, _INTERACTIVE_S, end_s), _feed(site, "standard", rate, end_s))
        runs["batch, 2x standard"] = await _window(site, seconds, *loads)
        for name, limit_ms in (("all backlogged", _NEVER_MS), ("all backlogged, aged", 0)):
            await site.age_limits(limit_ms)
            await asyncio.gather(*(site.backlog(lane, _KEPT) for lane in LANES))
            end_s = time.monotonic() + seconds
            runs[name] = await _window(site, seconds, *(_keep(site, lane, "backlog", end_s) for lane in LANES))
    return runs


async def _beside_a_flood(work: Path, seconds: float) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    async with scene(work, slots=_FEW_SLOTS) as site:
        for flooded in (False, True):
            name = "flood" if flooded else "no flood"
            if flooded:
                await site.backlog("standard", 2_000, "flood")
            before = await site.starts()
            end_s = time.monotonic() + seconds
            clients = [f"small{at % _SMALL}" for at in range(_STREAMS * _SMALL)]
            replies = await asyncio.gather(*(_one_by_one(site, tenant, end_s) for tenant in clients))
            starts = await site.starts()
            each = [one for some in replies for one in some]
            served = Counter(reply.tenant for reply in each)
            if flooded:
                served["flood"] = starts["standard"] - before["standard"] - len(each)
            runs[name] = {**_latency(each), "jain": round(jain(served), 4)}
            await asyncio.sleep(1)
            end_s = time.monotonic() + seconds
            few = await _regularly(site, _INTERACTIVE_S, end_s, "standard")
            runs[f"{name}, few requests"] = _latency(few)
    return runs


async def _one_by_one(site: Scene, tenant: str, until_s: float) -> list[Reply]:
    replies = []
    while time.monotonic() < until_s:
        replies.append(await site.ask(tenant, "standard"))
    return replies


def _latency(replies: list[Reply]) -> dict[str, Any]:
    spans = sorted(reply.ttft_s for reply in replies)
    return {"requests": len(spans), "ttft_ms": {"p50": percentile_ms(spans, 0.5), "p95": percentile_ms(spans, 0.95)}}


def jain(served: dict[str, int]) -> float:
    """Jain's index: 1 when all got the same, 1/n when one got all."""
    values = list(served.values())
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0
