"""The reaper: whose requests it takes away, and when."""

from __future__ import annotations

import pytest
import redis.asyncio

from shared.errors import BrokerUnavailableError
from shared.reaper import Reaper
from shared.registry import Registry
from shared.scripts import LEASE_MS
from shared.wire import WorkerCard
from tests.integration.shard import Shard, delta, in_ms

LEASE_S = LEASE_MS / 1000


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return int(self.now_s * 1000)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def reaper(client: redis.asyncio.Redis, shard: Shard, clock: HandClock) -> Reaper:
    """A reaper of a pool with worker w1, which is registered."""
    await Registry(client, shard.keys.prefix).register("pool", WorkerCard("w1", "sim", "1", 4, []), ["llama"])
    return Reaper(client, shard.keys.prefix, clock)


async def test_a_worker_dies_at_the_second_miss_of_a_reaper_that_was_undisturbed_for_a_lease(
    reaper: Reaper, shard: Shard, clock: HandClock
) -> None:
    await shard.claimed()
    await shard.client.delete(shard.keys.lease("w1"))
    clock.now_s += LEASE_S
    await reaper.tick()
    assert await shard.client.exists(shard.keys.dead("w1")) == 0
    await reaper.tick()
    assert await shard.client.exists(shard.keys.dead("w1")) == 1
    assert (await shard.record())["queue"] == "retry"
    assert await shard.client.exists(shard.keys.run("w1"), shard.keys.workers) == 0


async def test_a_young_reaper_condemns_nobody(reaper: Reaper, shard: Shard, clock: HandClock) -> None:
    await shard.claimed()
    await shard.client.delete(shard.keys.lease("w1"))
    clock.now_s += LEASE_S - 0.1
    for _ in range(5):
        await reaper.tick()
    assert await shard.client.exists(shard.keys.dead("w1")) == 0
    clock.now_s += 0.2
    await reaper.tick()
    assert await shard.client.exists(shard.keys.dead("w1")) == 1


async def test_a_worker_that_is_back_between_two_ticks_lives(reaper: Reaper, shard: Shard, clock: HandClock) -> None:
    clock.now_s += LEASE_S
    for _ in range(3):
        await reaper.tick()
        await shard.scripts.beat("w1")
        await reaper.tick()
        await shard.client.delete(shard.keys.lease("w1"))
    assert await shard.client.exists(shard.keys.dead("w1")) == 0


async def test_an_outage_makes_the_reaper_wait_for_a_lease_again(
    reaper: Reaper, shard: Shard, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> dict[str, str]:
        raise BrokerUnavailableError("away")

    clock.now_s += LEASE_S
    await reaper.tick()
    with monkeypatch.context() as outage:
        outage.setattr(reaper._registry, "pools", away)
        await reaper.tick()
    for _ in range(3):
        await reaper.tick()
    assert await shard.client.exists(shard.keys.dead("w1")) == 0
    clock.now_s += LEASE_S
    await reaper.tick()
    assert await shard.client.exists(shard.keys.dead("w1")) == 1


async def test_burying_queues_everything_again_whether_it_was_visible_or_not(reaper: Reaper, shard: Shard) -> None:
    await shard.claimed("r1", attempt="a1")
    await shard.claimed("r2", attempt="a2")
    await shard.scripts.step("w1", [("r1", "a1", 0, delta("a1"))])
    await shard.die()
    await reaper.bury(shard.keys, shard.scripts, "w1")
    assert [await shard.state(rid) for rid in ("r1", "r2")] == ["queued", "queued"]
    await reaper.bury(shard.keys, shard.scripts, "w1")
    assert await shard.client.xlen(shard.keys.queue("retry")) == 2


async def test_burying_the_living_takes_nothing_and_keeps_its_card(reaper: Reaper, shard: Shard) -> None:
    await shard.claimed()
    await reaper.bury(shard.keys, shard.scripts, "w1")
    assert await shard.state() == "running"
    assert await shard.client.hexists(shard.keys.workers, "w1")  # type: ignore[misc]


async def test_the_sweep_expires_what_waits_and_tells_the_owner_of_what_runs(reaper: Reaper, shard: Shard) -> None:
    await shard.claimed("runs")
    await shard.admit("waits", lane="batch")
    await shard.admit("patient")
    for rid in ("runs", "waits"):
        await shard.client.hset(shard.keys.record(rid), "deadline_ms", in_ms(-1_000))  # type: ignore[misc]
        await shard.client.zadd(shard.keys.deadlines, {rid: in_ms(-1_000)})
    await reaper.tick()
    assert [await shard.state(rid) for rid in ("runs", "waits", "patient")] == ["running", "expired", "queued"]
    assert await shard.scripts.beat("w1") == [b"expire runs"]
    assert await shard.client.zrange(shard.keys.deadlines, 0, -1) == [b"patient"]


async def test_two_reapers_at_once_do_it_once(
    reaper: Reaper, client: redis.asyncio.Redis, shard: Shard, clock: HandClock
) -> None:
    other = Reaper(client, shard.keys.prefix, clock)
    await shard.claimed()
    await shard.client.delete(shard.keys.lease("w1"))
    clock.now_s += LEASE_S
    for _ in range(2):
        await reaper.tick()
        await other.tick()
    assert await shard.client.xlen(shard.keys.queue("retry")) == 1
    assert (await shard.record())["kills"] == "1"
