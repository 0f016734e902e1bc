"""The reaper: whose requests it takes away, and when."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio

from shared.errors import BrokerUnavailableError
from shared.limits import LEASE_MS
from shared.metrics import REAPER_CONDEMNED
from shared.outcomes import Claimed
from shared.reaper import Reaper
from shared.registry import Registry
from shared.wire import WorkerCard
from tests.integration.shard import Shard, delta, in_ms
from tests.support.clocks import HandClock

LEASE_S = LEASE_MS / 1000


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
    assert (await shard.record())["queue"] == "standard"
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
    assert await shard.client.xlen(shard.keys.queue("standard")) == 2


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


async def test_all_that_is_due_ends_in_one_round_though_nobody_else_looks(reaper: Reaper, shard: Shard) -> None:
    """A pool without workers, and requests whose time is up faster than one at a time."""
    past_ms = in_ms(-1_000)
    for number in range(100):
        await shard.admit(f"r{number}", tenant_cap=1_000)
        await shard.client.hset(shard.keys.record(f"r{number}"), "deadline_ms", past_ms)  # type: ignore[misc]
        await shard.client.zadd(shard.keys.deadlines, {f"r{number}": past_ms})
    await reaper.tick()
    assert await shard.client.zcard(shard.keys.deadlines) == 0
    assert await shard.client.xlen(shard.keys.queue("standard")) == 0
    assert len(await shard.finished()) == 100


async def test_a_deadline_that_is_due_by_its_place_alone_does_not_keep_the_reaper(reaper: Reaper, shard: Shard) -> None:
    for number in range(25):
        await shard.admit(f"r{number}")
        await shard.client.zadd(shard.keys.deadlines, {f"r{number}": in_ms(-1_000)})
    async with asyncio.timeout(5):
        await reaper.tick()
    assert await shard.finished() == []


async def test_the_tags_of_very_many_tenants_that_are_gone_go_soon(reaper: Reaper, shard: Shard) -> None:
    """As when each request names a tenant of its own: they come faster than one slice each few seconds could hold."""
    ledger = shard.keys.ledger("standard")
    await shard.admit()
    await shard.client.hset(ledger, mapping={"v": 10**9, **{f"f:gone{i}": i for i in range(3_000)}})  # type: ignore[misc]
    for _ in range(5):
        await reaper.tick()
    assert await shard.client.hlen(ledger) < 100  # type: ignore[misc]


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
    assert await shard.client.xlen(shard.keys.queue("standard")) == 1
    assert (await shard.record())["kills"] == "1"


async def consumers(shard: Shard, queue: str = "standard") -> set[str]:
    return {entry["name"].decode() for entry in await shard.client.xinfo_consumers(shard.keys.queue(queue), "g")}


async def test_a_buried_worker_leaves_no_card_no_box_and_no_consumer(reaper: Reaper, shard: Shard) -> None:
    await shard.claimed()
    await shard.client.rpush(shard.keys.box("w1"), "cancel r9")  # type: ignore[misc]
    assert await consumers(shard) == {"w1"}
    await shard.die()
    assert await reaper.bury(shard.keys, shard.scripts, "w1")
    assert await consumers(shard) == set()
    assert await shard.client.exists(shard.keys.workers, shard.keys.box("w1"), shard.keys.run("w1")) == 0


async def test_a_consumer_with_a_pending_entry_stays_until_somebody_has_taken_it(reaper: Reaper, shard: Shard) -> None:
    await shard.admit()
    entry = await shard.delivered("w1")
    await shard.die()
    assert not await reaper.bury(shard.keys, shard.scripts, "w1")
    assert await consumers(shard) == {"w1"}
    assert await shard.client.hexists(shard.keys.workers, "w1")  # type: ignore[misc]
    await shard.client.xautoclaim(shard.keys.queue("standard"), "g", "w2", 0, "0-0")
    assert await reaper.bury(shard.keys, shard.scripts, "w1")
    assert await consumers(shard) == {"w2"}
    assert isinstance(await shard.scripts.claim("w2", entry, "a2"), Claimed)


async def test_a_living_worker_is_not_buried(shard: Shard, reaper: Reaper) -> None:
    await shard.claimed()
    assert not await reaper.bury(shard.keys, shard.scripts, "w1")
    assert await shard.scripts.bury("w1") == "ALIVE"
    assert await consumers(shard) == {"w1"}


async def test_a_consumer_that_no_card_and_no_lease_stands_for_is_removed_once_it_is_idle(
    reaper: Reaper, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shard.claimed(wid="stranger")
    await shard.scripts.done(
        "stranger", "r1", "a1", state="succeeded", reason="completed", frame=delta("a1"), expected=0
    )
    await shard.client.hdel(shard.keys.workers, "stranger")  # type: ignore[misc]
    monkeypatch.setattr("shared.reaper._STRANGER_IDLE_MS", 0)
    await reaper._bury_strangers(shard.keys, shard.scripts)
    assert await consumers(shard) == {"stranger"}, "its lease lives"
    await shard.client.delete(shard.keys.lease("stranger"))
    await reaper._bury_strangers(shard.keys, shard.scripts)
    assert await consumers(shard) == set()


async def test_a_worker_that_takes_long_to_bury_is_counted_once(reaper: Reaper, shard: Shard, clock: HandClock) -> None:
    await shard.admit()
    await shard.delivered("w1")
    before = REAPER_CONDEMNED._value.get()
    clock.now_s += LEASE_S
    for _ in range(4):
        await reaper.tick()
    assert REAPER_CONDEMNED._value.get() == before + 1


async def test_a_pool_whose_model_has_moved_to_another_is_reaped_and_then_forgotten(
    reaper: Reaper, client: redis.asyncio.Redis, shard: Shard, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.reaper._STRANGERS_EVERY_TICKS", 1)
    registry = Registry(client, shard.keys.prefix)
    await shard.claimed()
    await registry.register("other", WorkerCard("w9", "sim", "1", 4, []), ["llama"])
    await shard.client.delete(shard.keys.lease("w1"))
    clock.now_s += LEASE_S
    for _ in range(2):
        await reaper.tick()
    assert (await shard.record())["queue"] == "standard"
    await shard.client.hset(shard.keys.record("r1"), "deadline_ms", in_ms(-1_000))  # type: ignore[misc]
    await shard.client.zadd(shard.keys.deadlines, {"r1": in_ms(-1_000)})
    assert await registry.known() == {"pool", "other"}
    await reaper.tick()
    assert await shard.state() == "expired"
    assert await registry.known() == {"other"}


async def test_a_pool_with_a_dead_letter_is_not_forgotten(client: redis.asyncio.Redis, shard: Shard) -> None:
    registry = Registry(client, shard.keys.prefix)
    await registry.write("pool")
    entry = await client.xadd(shard.keys.dead_letters, {"rid": "r1"})
    assert not await registry.forget("pool")
    await client.xdel(shard.keys.dead_letters, entry)
    assert await registry.forget("pool")
    assert await registry.known() == set()


async def test_the_tags_of_tenants_that_are_gone_go_though_the_lane_is_never_empty(
    reaper: Reaper, shard: Shard
) -> None:
    for i in range(4):
        await shard.admit(f"once-{i}", tenant=f"t{i}")
        await shard.admit(f"s{i}", tenant="steady")
    await shard.admit("last", tenant="steady")
    for i in range(8):
        assert isinstance(await shard.scripts.claim("w1", await shard.delivered(), f"a{i}"), Claimed)
    ledger = shard.keys.ledger("standard")
    assert await shard.client.hexists(ledger, "f:t1")  # type: ignore[misc]
    more = {f"{field}{i}": 1 for i in range(1_000) for field in ("f:gone", "n:waits", "c:waits")}
    await shard.client.hset(ledger, mapping=more)  # type: ignore[misc]
    for _ in range(5 * 30):  # a slice in five rounds
        await reaper.tick()
    left = {name.decode() for name in await shard.client.hkeys(ledger)}  # type: ignore[misc]
    assert {name for name in left if name.startswith("f:")} == {"f:steady"}
