"""How a worker leaves: what it still owns then, and what that counts as."""

from __future__ import annotations

import pytest

from shared.errors import BrokerUnavailableError
from shared.limits import MOST_KILLS
from shared.reaper import Reaper
from tests.integration.shard import Shard
from worker.app import farewell


@pytest.fixture
def reaper(shard: Shard) -> Reaper:
    return Reaper(shard.client, shard.keys.prefix)


async def gone(shard: Shard, wid: str) -> bool:
    """Whether nothing is left of a worker but the mark of its end."""
    keys = shard.keys
    return bool(await shard.client.exists(keys.dead(wid))) and not await shard.client.exists(
        keys.lease(wid), keys.run(wid), keys.workers
    )


async def test_what_a_worker_that_leaves_in_order_could_not_hand_back_is_no_kill(reaper: Reaper, shard: Shard) -> None:
    await shard.claimed()
    for n in range(1, 2 * MOST_KILLS):
        await farewell(shard.scripts, reaper, shard.keys, f"w{n}", failed=False)
        assert await gone(shard, f"w{n}")
        record = await shard.record()
        assert (record["state"], record["queue"], record["kills"]) == ("queued", "standard", "0")
        await shard.scripts.beat(f"w{n + 1}")
        await shard.scripts.claim(f"w{n + 1}", await shard.delivered(f"w{n + 1}"), f"a{n + 1}")


async def test_what_a_worker_that_has_failed_still_owned_is_a_kill(reaper: Reaper, shard: Shard) -> None:
    await shard.claimed()
    await farewell(shard.scripts, reaper, shard.keys, "w1", failed=True)
    assert await gone(shard, "w1")
    assert (await shard.record())["kills"] == "1"


async def test_a_worker_that_leaves_in_order_waits_a_little_for_a_redis_that_is_away(
    reaper: Reaper, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shard.claimed()
    suspect, outages = reaper._suspect, iter([BrokerUnavailableError("away")] * 2)

    async def away_at_first(keys: object) -> str:
        for outage in outages:
            raise outage
        return await suspect(keys)  # type: ignore[arg-type]

    monkeypatch.setattr(reaper, "_suspect", away_at_first)
    await farewell(shard.scripts, reaper, shard.keys, "w1", failed=False)
    assert await gone(shard, "w1")
    assert (await shard.record())["kills"] == "0"
