"""What `survey` says, and what it is computed from: `enqueue`, `rate` and `claim` keep the account."""

from __future__ import annotations

import pytest

from shared.lanes import QUARANTINE, QUEUES
from shared.outcomes import Bounds, Claimed, Entry
from shared.survey import QueueSeen, Survey
from tests.integration.shard import Shard

ROOM = {"tenant_cap": 10_000, "bounds": Bounds(share=1.0)}


async def queue(shard: Shard, name: str = "standard") -> QueueSeen:
    return next(seen for seen in (await shard.scripts.survey([])).queues if seen.name == name)


async def start(shard: Shard, wid: str = "w1", attempt: str = "") -> str:
    """The next request runs. Returns its id."""
    (entry,) = await shard.scripts.pull(wid, 1)
    claimed = await shard.scripts.claim(wid, entry, attempt or f"a-{entry.rid}")
    assert isinstance(claimed, Claimed)
    return entry.rid


async def age(shard: Shard, field: str, position: int, by_ms: int) -> None:
    """Moves a moment that is kept in `sched` into the past."""
    words = (await shard.client.hget(shard.keys.sched, field)).decode().split()  # type: ignore[misc]
    words[position] = str(int(float(words[position])) - by_ms)
    await shard.client.hset(shard.keys.sched, field, " ".join(words))  # type: ignore[misc]


async def test_a_pool_that_never_had_a_request_is_empty(shard: Shard) -> None:
    survey = await shard.scripts.survey([])
    assert [seen.name for seen in survey.queues] == [*(each.name for each in QUEUES), QUARANTINE]
    nothing = QueueSeen("standard", 0, 0.0, 0, 0, 0, None, 0, paused=False, draining=False, fairness=None, retrying=0)
    assert survey.queues[1] == nothing
    assert survey == Survey(0, 0, None, 0, survey.queues, {}, frozenset(), 0)
    assert await shard.client.exists(shard.keys.sched, shard.keys.queue("standard")) == 0, "a survey writes nothing"


async def test_what_waits_is_counted_by_requests_tokens_bytes_and_tenants(shard: Shard) -> None:
    for i, tenant in enumerate(["acme", "acme", "bolt", "cave"]):
        await shard.admit(f"r{i}", tenant=tenant, cost=10 + i, body=b"x" * 100)
    seen = await queue(shard)
    assert (seen.depth, seen.tokens, seen.body_bytes, seen.tenants) == (4, 46, 400, 3)
    for rid in ("r2", "r3"):
        await shard.scripts.cancel(rid, owner="-", queue="standard", reason="cancelled")
    seen = await queue(shard)
    assert (seen.depth, seen.tokens, seen.body_bytes, seen.tenants) == (2, 21, 200, 1)


async def test_the_age_is_that_of_the_oldest_and_nobody_is_old_in_an_empty_queue(shard: Shard) -> None:
    old_ms = (await shard.client.time())[0] * 1000 - 30_000
    await shard.client.xadd(shard.keys.queue("batch"), {"rid": "old", "cost": "1"}, f"{old_ms}-0")
    await shard.admit("r1", lane="batch")
    assert 29 < (await queue(shard, "batch")).oldest_age_s < 35
    assert (await queue(shard, "standard")).oldest_age_s == 0


async def test_the_lanes_flags_and_aged_picks_are_told(shard: Shard) -> None:
    await shard.client.hset(shard.keys.lanes, mapping={"batch.paused": "1", "interactive.draining": "1"})  # type: ignore[misc]
    await shard.client.hset(shard.keys.sched, "aged:batch", 7)  # type: ignore[misc]
    seen = {each.name: each for each in (await shard.scripts.survey([])).queues}
    assert {name for name, each in seen.items() if each.paused} == {"batch"}
    assert {name for name, each in seen.items() if each.draining} == {"interactive"}
    assert {name: each.aged for name, each in seen.items() if each.aged} == {"batch": 7}


async def test_running_requests_are_the_workers_and_a_worker_without_a_lease_is_lost(shard: Shard) -> None:
    for i in range(3):
        await shard.admit(f"r{i}")
    await shard.scripts.beat("w1")
    await shard.scripts.beat("w2")
    for wid in ("w1", "w1", "w2"):
        await start(shard, wid)
    await shard.client.delete(shard.keys.lease("w2"))
    survey = await shard.scripts.survey(["w1", "w2"])
    assert (survey.running, survey.lost, survey.lost_running) == ({"w1": 2}, frozenset({"w2"}), 1)


async def test_arrivals_are_the_cost_of_what_was_admitted_and_fade(shard: Shard) -> None:
    for i in range(6):
        await shard.admit(f"r{i}", cost=100, **ROOM)
    assert (await shard.admit("r0", cost=100, **ROOM)).outcome == "OK", "sent twice, counted once"
    assert (await shard.scripts.survey([])).arriving == pytest.approx(600 / 60, rel=0.05)
    await age(shard, "arrivals", 1, 60_000)
    assert (await shard.scripts.survey([])).arriving == pytest.approx(600 / 60 / 2.718, rel=0.05)


async def test_a_workers_pace_is_measured_while_something_waits(shard: Shard) -> None:
    await shard.client.hset(shard.keys.workers, mapping={"w1": "", "w2": ""})  # type: ignore[misc]
    for i in range(8):
        await shard.admit(f"r{i}", cost=500, **ROOM)
    await start(shard)
    assert (await shard.scripts.survey([])).per_worker is None
    for _ in range(6):  # one in 200 s, by two workers: 1.25 tokens/s each
        await age(shard, "work", 2, 200_000)
        await start(shard)
    survey = await shard.scripts.survey([])
    assert survey.per_worker == pytest.approx(1.25, rel=0.05)
    assert survey.mean_cost == pytest.approx(500)


async def test_time_in_which_nothing_could_be_started_is_not_counted(shard: Shard) -> None:
    for i in range(4):
        await shard.admit(f"r{i}", cost=500, **ROOM)
    await start(shard)
    for _ in range(3):
        await age(shard, "work", 2, 200_000)
        await start(shard)
    before = (await shard.scripts.survey([])).per_worker
    assert before == pytest.approx(2.5, rel=0.05)
    await shard.client.hset(shard.keys.lanes, "batch.paused", "1")  # type: ignore[misc]
    await shard.admit("paused", lane="batch", cost=500)
    await shard.admit("late", cost=500)
    await start(shard)
    assert (await shard.client.hget(shard.keys.sched, "work")).split()[2] == b"0", "a paused lane is no backlog"  # type: ignore[misc]
    await shard.admit("later", cost=500)
    await start(shard)
    assert (await shard.scripts.survey([])).per_worker == pytest.approx(before, rel=0.05)


async def test_a_claim_that_is_sent_twice_is_work_once(shard: Shard) -> None:
    await shard.admit("r1", cost=500)
    await shard.admit("r2", cost=500)
    entry = await shard.delivered()
    await shard.scripts.claim("w1", entry, "a1")
    kept = await shard.client.hgetall(shard.keys.sched)  # type: ignore[misc]
    await shard.scripts.claim("w1", entry, "a1")
    assert await shard.client.hgetall(shard.keys.sched) == kept  # type: ignore[misc]


async def flooded(shard: Shard, tenants: int = 4, each: int = 30) -> None:
    """So many tenants, one after the other, each with so many requests of 10 tokens."""
    for tenant in range(tenants):
        for i in range(each):
            await shard.admit(f"r{tenant}-{i}", tenant=f"t{tenant}", cost=10, **ROOM)


async def test_fair_turns_have_an_index_of_one(shard: Shard) -> None:
    await flooded(shard)
    for _ in range(12):
        await start(shard)
    assert (await queue(shard)).fairness is None, "too little was served to compare"
    for _ in range(40):
        await start(shard)
    assert (await queue(shard)).fairness == pytest.approx(1, abs=0.01)


async def test_a_flood_that_is_served_in_order_of_arrival_shows(shard: Shard) -> None:
    await flooded(shard)
    for i in range(20):  # as a pull would that knows no tenants: the first tenant's, and its tag is the lane's time
        entry, _ = (await shard.client.xrange(shard.keys.queue("standard"), count=1))[0]
        await shard.client.xgroup_setid(shard.keys.queue("standard"), "g", "0")
        found = await shard.client.xreadgroup("g", "w1", {shard.keys.queue("standard"): ">"}, count=1)
        assert found[0][1][0][0] == entry
        tag = await shard.client.zscore(shard.keys.fair("standard"), entry)
        await shard.client.hset(shard.keys.ledger("standard"), "v", int(tag))  # type: ignore[misc]
        await shard.scripts.claim("w1", Entry("standard", entry.decode(), f"r0-{i}"), f"a{i}")
    assert (await queue(shard)).fairness == pytest.approx(0.25, abs=0.01), "one of four gets everything"


async def test_a_tenant_that_comes_later_is_owed_from_then_on(shard: Shard) -> None:
    await flooded(shard, tenants=2)
    for _ in range(30):
        await start(shard)
    for i in range(20):
        await shard.admit(f"late-{i}", tenant="late", cost=10, **ROOM)
    for _ in range(24):
        await start(shard)
    assert (await queue(shard)).fairness == pytest.approx(1, abs=0.02)


async def test_the_account_of_a_tenant_goes_with_its_last_request(shard: Shard) -> None:
    await shard.admit("r1", tenant="acme")
    await shard.admit("r2", tenant="bolt")
    assert await start(shard) == "r1"
    left = {name.decode() for name in await shard.client.hkeys(shard.keys.ledger("standard"))}  # type: ignore[misc]
    assert "a:acme" not in left
    assert "a:bolt" in left


async def test_prune_drops_the_tags_that_lie_behind_and_no_others(shard: Shard) -> None:
    ledger = shard.keys.ledger("standard")
    for i in range(300):
        await shard.admit(f"r{i}", tenant=f"t{i}", cost=10, **ROOM)
    for i in range(60):
        await shard.admit(f"s{i}", tenant="steady", cost=10, **ROOM)
    for _ in range(330):
        await start(shard)
    await shard.admit("r0-again", tenant="t0", cost=10, **ROOM)
    await shard.client.hset(ledger, "f:ahead", 10**9)  # type: ignore[misc]
    assert await shard.client.hexists(ledger, "f:t7"), "a tenant that is gone has left its tag"  # type: ignore[misc]
    before = await shard.client.hgetall(ledger)  # type: ignore[misc]

    cursor, dropped, slices = "0", 0, 0
    while slices == 0 or cursor != "0":
        cursor, some = await shard.scripts.prune("standard", cursor, 50)
        dropped, slices = dropped + some, slices + 1
    assert slices > 3, "a slice is a part of it"
    after = await shard.client.hgetall(ledger)  # type: ignore[misc]
    gone = {name.decode() for name in before.keys() - after.keys()}
    tags = {name.decode(): float(tag) for name, tag in before.items() if name.startswith(b"f:")}
    behind = {name for name, tag in tags.items() if tag <= float(before[b"v"])}
    waiting = {f"f:{name.decode()[2:]}" for name in before if name.startswith(b"n:")}
    assert behind & waiting, "some of those that lie behind still wait"
    assert gone == behind - waiting
    assert len(gone) > 100
    assert dropped == len(gone)
    assert {name: before[name] for name in after} == after
