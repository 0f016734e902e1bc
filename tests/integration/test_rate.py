"""How fast a lane drains, and what those are told who are refused."""

from __future__ import annotations

import pytest

from shared.outcomes import Bounds, Claimed
from tests.integration.shard import Shard, in_ms

TIGHT = {"bounds": Bounds(requests=40, share=1.0), "tenant_cap": 1_000}


async def fill(shard: Shard, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        assert (await shard.admit(f"r{number}", deadline_ms=0, **TIGHT)).outcome == "OK"


async def start(shard: Shard, count: int = 1) -> None:
    for _ in range(count):
        entry = await shard.delivered()
        assert isinstance(await shard.scripts.claim("w1", entry, f"a{entry.rid}"), Claimed)


async def kept_rate(shard: Shard, starts: float, seconds: float, ago_ms: int) -> None:
    """As if it had drained so, and nothing had been started for a while."""
    text = f"{starts} {seconds} {in_ms(-ago_ms)}"
    await shard.client.hset(shard.keys.sched, "rate:standard", text)  # type: ignore[misc]


async def test_a_refused_client_is_told_when_there_is_room_as_fast_as_the_lane_drains(shard: Shard) -> None:
    await fill(shard, 40)
    await kept_rate(shard, 4, 20, 0)
    told = [(await shard.admit("x", **TIGHT)).after_ms for _ in range(5)]
    assert told == pytest.approx([5_000, 10_000, 15_000, 20_000, 25_000], abs=3_000)


async def test_a_lane_that_stood_still_is_not_taken_for_a_slow_one_for_long(shard: Shard) -> None:
    """Ten minutes without a worker, or paused: nobody waits that long once it drains again."""
    await fill(shard, 40)
    await kept_rate(shard, 100, 10, 600_000)
    await start(shard, 20)
    told_ms = (await shard.admit("x", deadline_ms=in_ms(20_000))).after_ms
    assert told_ms is None or told_ms < 20_000


async def test_a_lane_that_drains_slowly_has_a_rate_too(shard: Shard) -> None:
    """Long answers on few slots: a start each ten seconds."""
    await fill(shard, 40)
    await kept_rate(shard, 1, 0, 0)
    for _ in range(12):
        rate = (await shard.client.hget(shard.keys.sched, "rate:standard")).decode().split()  # type: ignore[misc]
        await kept_rate(shard, float(rate[0]), float(rate[1]), 10_000)
        await start(shard)
    await fill(shard, 12, 40)
    told_ms = (await shard.admit("x", **TIGHT)).after_ms
    assert told_ms == pytest.approx(10_000, rel=0.3)


async def test_a_rate_of_other_times_does_not_refuse_for_ever_what_could_start_at_once(shard: Shard) -> None:
    """Measured on one busy slot, and now there are many: each request that is let in finds an empty queue."""
    await shard.client.hset(shard.keys.sched, "rate:standard", "4 4000 0")  # type: ignore[misc]
    for number in range(10):
        assert (await shard.admit(f"r{number}", **TIGHT)).outcome == "OK"
        last = await shard.admit(f"s{number}", **TIGHT)
        await start(shard, 1 if last.outcome == "LATE" else 2)
    assert last.outcome == "OK"
