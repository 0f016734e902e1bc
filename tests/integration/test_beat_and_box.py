"""beat and ackbox: the lease, and control messages that no lost reply can lose."""

from __future__ import annotations

import pytest

from shared.errors import FencedError
from shared.scripts import LEASE_MS
from tests.integration.shard import Shard


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
