"""condemn: the only way a worker id dies."""

from __future__ import annotations

from shared.limits import DEAD_MARKER_MS
from tests.integration.shard import Shard


async def test_a_worker_with_a_lease_is_not_condemned(shard: Shard) -> None:
    await shard.scripts.beat("w1")
    assert not await shard.scripts.condemn("w1")
    assert await shard.client.exists(shard.keys.dead("w1")) == 0


async def test_a_worker_without_a_lease_is_condemned_for_an_hour_and_twice_is_as_good_as_once(shard: Shard) -> None:
    for _ in range(2):
        assert await shard.scripts.condemn("w1")
    assert DEAD_MARKER_MS - 5_000 < await shard.client.pttl(shard.keys.dead("w1")) <= DEAD_MARKER_MS


async def test_a_process_that_is_known_to_have_ended_is_condemned_whatever_its_lease_says(shard: Shard) -> None:
    await shard.scripts.beat("w1")
    assert await shard.scripts.condemn("w1", process_ended=True)
    assert await shard.client.exists(shard.keys.lease("w1")) == 0


async def test_other_workers_live_on(shard: Shard) -> None:
    await shard.scripts.condemn("w1")
    assert await shard.scripts.beat("w2") == []
