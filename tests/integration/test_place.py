"""place: where a queued request stands, and why it waits."""

from __future__ import annotations

from shared.outcomes import Place
from tests.integration.shard import Shard


async def place(shard: Shard, rid: str, lane: str = "standard") -> Place | None:
    return await shard.scripts.place(rid, lane)


async def with_worker(shard: Shard) -> None:
    await shard.client.hset(shard.keys.workers, "w1", b"card")  # type: ignore[misc]


async def test_the_position_is_that_of_the_fair_order(shard: Shard) -> None:
    await with_worker(shard)
    for number in range(3):
        await shard.admit(f"flood{number}", tenant="flood")
    await shard.admit("small", tenant="small")
    assert await place(shard, "flood0") == Place(1, 4, None, "busy")
    assert await place(shard, "small") == Place(2, 4, None, "busy")
    assert await place(shard, "flood1") == Place(3, 4, None, "busy")


async def test_the_wait_follows_from_how_fast_the_lane_drains(shard: Shard) -> None:
    await with_worker(shard)
    await shard.client.hset(shard.keys.sched, "rate:standard", "20 10 0")  # type: ignore[misc]
    for number in range(4):
        await shard.admit(f"r{number}")
    assert await place(shard, "r3") == Place(4, 4, 2000, "busy")


async def test_a_pool_without_workers_and_a_paused_lane_say_so(shard: Shard) -> None:
    await shard.admit("r1")
    assert await place(shard, "r1") == Place(1, 1, None, "no_worker")
    await with_worker(shard)
    await shard.client.hset(shard.keys.lanes, "standard.paused", "1")  # type: ignore[misc]
    assert await place(shard, "r1") == Place(1, 1, None, "lane_paused")


async def test_what_lost_its_worker_goes_first_and_says_so(shard: Shard) -> None:
    await with_worker(shard)
    for number in range(2):
        await shard.claimed(f"r{number}", attempt=f"a{number}")
    for number in range(2):
        await shard.scripts.requeue("w1", f"r{number}", f"a{number}", how="hand_back")
    await shard.admit("new")
    assert await place(shard, "r1") == Place(2, 3, None, "retrying")
    assert await place(shard, "new") == Place(3, 3, None, "busy")
    await shard.client.hset(shard.keys.lanes, "standard.paused", "1")  # type: ignore[misc]
    assert await place(shard, "r1") == Place(2, 3, None, "retrying")
    assert await place(shard, "new") == Place(3, 3, None, "lane_paused")


async def test_what_does_not_wait_has_no_place(shard: Shard) -> None:
    await shard.claimed("r1")
    assert await place(shard, "r1") is None
    assert await place(shard, "nobody") is None
