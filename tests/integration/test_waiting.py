"""What waiting clients are told, when the server has something to say that no release of ours has written."""

from __future__ import annotations

from api.catalog import Catalog
from api.relay import Relay
from api.ticket import Ticket
from api.waiting import PLAIN, Waiting
from shared.clock import SystemClock
from shared.hot import HotClient
from shared.limits import LEASE_MS
from shared.reaper import Reaper
from shared.registry import Registry
from shared.wire import WorkerCard
from tests.integration.shard import Shard
from tests.support.clocks import HandClock
from tests.support.polling import eventually, serving


def ticket(hot: HotClient, shard: Shard, rid: str) -> Ticket:
    relay = Relay(hot, shard.keys, rid, grace_s=1, lost_grace_s=1, readmit=None)
    return Ticket(rid, "m", "standard", relay, shard.keys, 0.0)


def catalog(shard: Shard) -> Catalog:
    return Catalog(Registry(shard.client, shard.keys.prefix), SystemClock())


async def test_a_request_whose_place_cannot_be_told_costs_neither_its_stream_nor_the_replica(
    hot: HotClient, shard: Shard
) -> None:
    waiting = Waiting(hot, catalog(shard), 0.01)
    for rid in ("r1", "r2"):
        await shard.admit(rid)
    await shard.client.hset(shard.keys.workers, "w1", b"card")  # type: ignore[misc]
    await shard.client.hset(shard.keys.sched, "rate:standard", "nonsense")  # type: ignore[misc]
    async with serving(waiting) as task:
        told = ticket(hot, shard, "r1")
        await waiting.add(told)
        assert told.relay.comment == PLAIN
        await shard.client.hset(shard.keys.sched, "rate:standard", "20 10 0")  # type: ignore[misc]
        await eventually(lambda: b"position=1" in told.relay.comment, "its place, once there is one")
        assert not task.done()


async def test_who_waits_is_told_that_no_worker_lives_though_the_last_one_died_before_it_could_claim(
    hot: HotClient, shard: Shard
) -> None:
    """What it was delivered keeps it from being buried: only living workers sweep that up."""
    clock = HandClock()
    reaper = Reaper(shard.client, shard.keys.prefix, clock)
    await Registry(shard.client, shard.keys.prefix).register("pool", WorkerCard("w1", "sim", "1", 4, []), ["llama"])
    await shard.scripts.beat("w1")
    for rid in ("r1", "r2"):
        await shard.admit(rid)
    await shard.delivered("w1")
    alive = await Waiting(hot, catalog(shard), 1).find(shard.keys, "r2", "standard")
    assert alive is not None
    assert alive.reason == "busy"
    await shard.client.delete(shard.keys.lease("w1"))
    clock.now_s += LEASE_MS / 1000
    for _ in range(3):
        await reaper.tick()
    assert await shard.client.hlen(shard.keys.workers) == 1, "it is buried: this proves nothing"  # type: ignore[misc]
    for rid in ("r1", "r2"):
        dead = await Waiting(hot, catalog(shard), 1).find(shard.keys, rid, "standard")
        assert dead is not None
        assert (dead.reason, dead.eta_ms) == ("no_worker", None)
