"""A burst of ten times what can be served: is the queue bounded, are the refused told the truth, does it recover?

The truth: who is refused stands in line behind those who were refused before. There would have been room for a client
when as many requests had been started since as stood in that line, itself included; each start shortens it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.bench import procs
from scripts.bench.lanes_scene import Reply, Scene, scene
from scripts.bench.scenarios import Pacing
from scripts.bench.window import percentile_ms

_SLOTS, _QUEUE, _OVERLOAD = 4, 32, 10
_PACING = Pacing(100, 20)
_LANE = "standard"
_CAPACITY_S = 5.0
_LOOK_S = 0.02
_MOST_TOLD_S = 20.0
"""Whose turn comes later is told some moment before half a minute has passed (`api/problems.py`): no prediction."""
_TOLERANCE = 0.3
_TOO_MANY = 429
_PATIENCE_S = 60.0


@dataclass(slots=True)
class Watch:
    """What is looked at all the time. `starts`: (when, how many so far)."""

    starts: list[tuple[float, int]] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)

    async def run(self, site: Scene) -> None:
        """Looks until it is cancelled."""
        while True:
            self.depths.append(await site.depth(_LANE))
            self.starts.append((time.monotonic(), sum((await site.starts()).values())))
            self.rss_mb.append(procs.rss_mb(site.group.processes["replica"].pid))
            await asyncio.sleep(_LOOK_S)

    def begun_by(self, at_s: float) -> int:
        """Starts so far, at a moment."""
        return max((count for seen_s, count in self.starts if seen_s <= at_s), default=0)

    def when(self, count: int) -> float | None:
        """The moment at which so many had been started."""
        return next((seen_s for seen_s, so_far in self.starts if so_far >= count), None)


def measured(work: Path, seconds: float) -> dict[str, Any]:
    """One burst of so many seconds. Raises BenchError."""
    return asyncio.run(_measure(work, seconds))


async def _measure(work: Path, seconds: float) -> dict[str, Any]:
    watch = Watch()
    async with scene(work, slots=_SLOTS, pacing=_PACING, flags=("--queue-max", str(_QUEUE))) as site:
        rate = await _capacity(site)
        task = asyncio.create_task(watch.run(site))
        replies = await _burst(site, _OVERLOAD * rate, seconds)
        recovery_s = await _recovery(site, max(reply.sent_s for reply in replies))
        task.cancel()
    refused = [reply for reply in replies if reply.status == _TOO_MANY]
    return {
        "seconds": seconds,
        "starts_s": round(rate, 1),
        "asked": len(replies),
        "refused": len(refused),
        "errors": sum(reply.status not in {200, _TOO_MANY} for reply in replies),
        "most_waiting": max(watch.depths),
        "bound": _QUEUE,
        "recovery_s": round(recovery_s, 2),
        "rss_mb": {"before": watch.rss_mb[0], "most": max(watch.rss_mb), "after": watch.rss_mb[-1]},
        "told": honesty(refused, watch),
    }


async def _capacity(site: Scene) -> float:
    """Starts a second while there is a backlog."""
    await site.backlog(_LANE, _QUEUE + 60, "warm")
    before, began_s = sum((await site.starts()).values()), time.monotonic()
    await asyncio.sleep(_CAPACITY_S)
    rate = (sum((await site.starts()).values()) - before) / (time.monotonic() - began_s)
    await _until_empty(site)
    return rate


async def _until_empty(site: Scene) -> None:
    end_s = time.monotonic() + _PATIENCE_S
    while await site.depth(_LANE) and time.monotonic() < end_s:  # noqa: ASYNC110 - the queue is in another process
        await asyncio.sleep(_LOOK_S)


async def _burst(site: Scene, per_s: float, seconds: float) -> list[Reply]:
    """Requests at this rate from clients that do not come back. Raises BenchError."""
    tasks: list[asyncio.Task[Reply]] = []
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < seconds:
        while len(tasks) < passed_s * per_s:
            tasks.append(asyncio.create_task(site.ask(f"user{len(tasks) % 40}", _LANE)))
        await asyncio.sleep(0.005)
    return list(await asyncio.gather(*tasks))


async def _recovery(site: Scene, from_s: float) -> float:
    """Seconds from a moment until nothing waits and a request is served at once."""
    await _until_empty(site)
    while (reply := await site.ask("after", _LANE)).ttft_s > 2 * _PACING.ttft_ms / 1000:
        if reply.sent_s - from_s > _PATIENCE_S:
            break
    return reply.sent_s - from_s


def _told_s(reply: Reply) -> float | None:
    """When the client was told to come back."""
    text = reply.headers.get("retry-after-ms")
    return float(text) / 1000 if text else None


def honesty(refused: list[Reply], watch: Watch) -> dict[str, Any]:
    """What the refused were told over what was true, where both are known."""
    line, seen, ratios, capped = 0.0, watch.starts[0][1], [], 0
    for reply in sorted(refused, key=lambda reply: reply.first_s):
        begun = watch.begun_by(reply.first_s)
        line, seen = max(0.0, line - (begun - seen)), begun
        told = _told_s(reply)
        if told is None or told > _MOST_TOLD_S:
            capped += 1
            continue
        line += 1
        if (true_s := watch.when(begun + int(line))) is not None:
            ratios.append(told / max(true_s - reply.first_s, 1e-3))
    ratios.sort()
    inside = sum(abs(ratio - 1) <= _TOLERANCE for ratio in ratios)
    return {
        "compared": len(ratios),
        "without_turn": capped,
        "inside": round(inside / len(ratios), 3) if ratios else None,
        "ratio": {f"p{share}": round((percentile_ms(ratios, share / 100) or 0) / 1e3, 2) for share in (10, 50, 90)},
    }
