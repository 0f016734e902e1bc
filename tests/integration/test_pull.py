"""pull: which entries a worker gets."""

from __future__ import annotations

from collections import Counter

import pytest

from shared.errors import FencedError
from shared.keys import Keys
from shared.lanes import RETRY
from shared.outcomes import Bounds, Entry
from shared.scripts import Scripts
from tests.integration.shard import Shard

NEVER_AGED = dict.fromkeys(("interactive", "standard", "batch"), 99_999_999)
ENDLESS = Bounds(requests=100_000, share=1.0)


async def backlog(shard: Shard, **counts: int) -> None:
    """So many requests on each queue, of equal cost."""
    for queue, count in counts.items():
        for i in range(count):
            lane = "interactive" if queue == RETRY else queue
            await shard.admit(f"{queue}{i}", lane=lane, bounds=ENDLESS, tenant_cap=100_000)
        if queue == RETRY:
            for entry in await shard.scripts.pull("w1", count):
                await shard.scripts.claim("w1", entry, f"a of {entry.rid}")
            for i in range(count):
                assert await shard.scripts.requeue("w1", f"{queue}{i}", f"a of {queue}{i}", how="hand_back") == "OK"


async def pull(shard: Shard, want: int, ages: dict[str, int] | None = None, wid: str = "w1") -> list[str]:
    """As Scripts.pull, with other age limits (ms). Returns the queues' names."""
    if ages:
        settings = {f"{lane}.age_limit_ms": limit for lane, limit in ages.items()}
        await shard.client.hset(shard.keys.lanes, mapping=settings)  # type: ignore[misc]
    return [entry.queue for entry in await shard.scripts.pull(wid, want)]


async def test_empty_queues_give_nothing_and_change_nothing(shard: Shard) -> None:
    assert await shard.scripts.pull("w1", 4) == []
    assert await shard.client.keys(f"{shard.keys.prefix}:*") == []


async def test_a_pulled_entry_stays_queued_and_goes_to_nobody_else(shard: Shard) -> None:
    await shard.admit()
    entry_id = (await shard.record())["entry"]
    assert await shard.scripts.pull("w1", 4) == [Entry("standard", entry_id, "r1")]
    assert await shard.scripts.pull("w2", 4) == []
    assert await shard.state() == "queued"
    assert await shard.client.xlen(shard.keys.queue("standard")) == 1
    pending = await shard.client.xpending_range(shard.keys.queue("standard"), "g", "-", "+", 10)
    assert [(found["message_id"].decode(), found["consumer"]) for found in pending] == [(entry_id, b"w1")]


async def test_no_more_than_wanted_and_first_come_first_served_inside_a_lane(shard: Shard) -> None:
    for rid in ("r1", "r2", "r3"):
        await shard.admit(rid)
    assert [entry.rid for entry in await shard.scripts.pull("w1", 2)] == ["r1", "r2"]
    assert [entry.rid for entry in await shard.scripts.pull("w1", 2)] == ["r3"]


async def test_a_backlog_is_shared_eight_to_three_to_one(shard: Shard) -> None:
    await backlog(shard, interactive=300, standard=300, batch=300)
    picks: Counter[str] = Counter()
    for _ in range(20):
        picks.update(await pull(shard, 12, NEVER_AGED))
    assert picks == {"interactive": 160, "standard": 60, "batch": 20}


async def test_the_retry_queue_goes_first(shard: Shard) -> None:
    await backlog(shard, retry=3, interactive=5)
    assert await pull(shard, 5, NEVER_AGED) == [RETRY] * 3 + ["interactive"] * 2


async def test_a_lane_that_slept_gets_no_credit_for_it(shard: Shard) -> None:
    await backlog(shard, interactive=200)
    await pull(shard, 100, NEVER_AGED)
    await backlog(shard, batch=100)
    assert (await pull(shard, 18, NEVER_AGED)).count("batch") <= 3


async def test_aged_heads_go_first_but_only_one_pick_in_four(shard: Shard) -> None:
    await backlog(shard, interactive=100, batch=100)
    picks = await pull(shard, 40, {**NEVER_AGED, "batch": -1})
    assert picks[0] == "batch"
    assert 9 <= picks.count("batch") <= 14


async def test_what_takes_a_preempted_slot_takes_nobodys_turn(shard: Shard) -> None:
    await backlog(shard, interactive=180, standard=20)
    picks: Counter[str] = Counter()
    for _ in range(33):
        assert len(await shard.scripts.pull("w1", 4, only="interactive")) == 4
        picks.update(await pull(shard, 1, NEVER_AGED))
    assert picks["standard"] == pytest.approx(9, abs=1)


async def test_a_condemned_worker_gets_nothing(shard: Shard) -> None:
    await shard.admit()
    await shard.die("w1")
    with pytest.raises(FencedError):
        await shard.scripts.pull("w1", 1)
    assert await shard.client.xlen(shard.keys.queue("standard")) == 1


async def test_pools_do_not_see_each_other(shard: Shard, scripts: Scripts) -> None:
    await shard.admit()
    other = Scripts(scripts._caller, Keys("other", prefix=shard.keys.prefix))
    assert await other.pull("w1", 4) == []
