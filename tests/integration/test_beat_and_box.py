"""beat and ackbox: the lease, and control messages that no lost reply can lose."""

from __future__ import annotations

import asyncio
import time

import pytest

from shared.errors import FencedError
from shared.limits import LEASE_MS
from tests.integration.shard import Shard
from tests.support.polling import serving
from tests.support.servers import Server
from worker.identity import Identity
from worker.lease import Beat
from worker.stall import Progress, Stall


async def test_a_beat_renews_the_lease(shard: Shard) -> None:
    assert await shard.scripts.beat("w1") == []
    assert LEASE_MS - 1_000 < await shard.client.pttl(shard.keys.lease("w1")) <= LEASE_MS


async def test_a_lapsed_lease_is_revived(shard: Shard) -> None:
    await shard.scripts.beat("w1")
    await shard.client.delete(shard.keys.lease("w1"))
    await shard.scripts.beat("w1")
    assert await shard.client.exists(shard.keys.lease("w1")) == 1


async def test_a_condemned_worker_cannot_revive(shard: Shard) -> None:
    await shard.die()
    with pytest.raises(FencedError):
        await shard.scripts.beat("w1")
    assert await shard.client.exists(shard.keys.lease("w1")) == 0


async def test_control_messages_stay_until_they_are_acknowledged(shard: Shard) -> None:
    await shard.client.rpush(shard.keys.box("w1"), "cancel r1", "expire r2")  # type: ignore[misc]
    for _ in range(2):
        assert await shard.scripts.beat("w1") == [b"cancel r1", b"expire r2"]
    assert await shard.scripts.ackbox("w1", [b"cancel r1"]) == 1
    assert await shard.scripts.beat("w1") == [b"expire r2"]


async def test_acknowledging_twice_removes_nothing_that_came_meanwhile(shard: Shard) -> None:
    await shard.client.rpush(shard.keys.box("w1"), "cancel r1")  # type: ignore[misc]
    await shard.scripts.ackbox("w1", [b"cancel r1"])
    await shard.client.rpush(shard.keys.box("w1"), "cancel r2")  # type: ignore[misc]
    assert await shard.scripts.ackbox("w1", [b"cancel r1"]) == 0
    assert await shard.scripts.beat("w1") == [b"cancel r2"]


async def test_a_beat_brings_at_most_64_messages(shard: Shard) -> None:
    await shard.client.rpush(shard.keys.box("w1"), *(f"cancel r{i}" for i in range(100)))  # type: ignore[misc]
    box = await shard.scripts.beat("w1")
    assert len(box) == 64
    assert await shard.scripts.ackbox("w1", box) == 64
    assert len(await shard.scripts.beat("w1")) == 36


# ---- the thread


def beat_of(server: Server, shard: Shard) -> tuple[Beat, str]:
    identity = Identity()
    stall = Stall(60, lambda: Progress(0, 0))
    return Beat(server.url, shard.keys, identity, stall, lambda _: None), identity.wid


async def test_an_answer_that_makes_no_sense_costs_a_beat_and_not_the_worker(server: Server, shard: Shard) -> None:
    beat, wid = beat_of(server, shard)
    async with serving(beat) as running:
        await shard.client.set(shard.keys.box(wid), "a string where a list is read")
        await asyncio.sleep(1.2)  # a beat has met it
        await shard.client.delete(shard.keys.box(wid), shard.keys.lease(wid))
        end_s = time.monotonic() + 5
        while not await shard.client.exists(shard.keys.lease(wid)):
            assert time.monotonic() < end_s, "nothing renews the lease"
            await asyncio.sleep(0.05)
        assert not running.done()


async def test_a_thread_that_ends_by_itself_is_a_failed_service(
    server: Server, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError("no more threads")

    monkeypatch.setattr(Beat, "_beats", broken)
    beat, _ = beat_of(server, shard)
    with pytest.raises(RuntimeError, match="thread has ended"):
        async with asyncio.timeout(5):
            await beat.run(asyncio.Event())
