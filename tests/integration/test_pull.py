"""pull: which entries a worker gets."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from shared.errors import FencedError
from shared.keys import Keys
from shared.outcomes import Bounds, Claimed, Entry
from shared.scripts import Scripts
from tests.integration.shard import Shard

NEVER_AGED = dict.fromkeys(("interactive", "standard", "batch"), 99_999_999)
ENDLESS = Bounds(requests=100_000, share=1.0)


async def backlog(shard: Shard, **counts: int) -> None:
    """So many requests on each queue, of equal cost."""
    for queue, count in counts.items():
        for i in range(count):
            await shard.admit(f"{queue}{i}", lane=queue, bounds=ENDLESS, tenant_cap=100_000)


async def handed_back(shard: Shard, **counts: int) -> None:
    """So many requests of each lane, `<lane> again <number>`, had started and were handed back by their worker."""
    rids = [f"{lane} again {number}" for lane, count in counts.items() for number in range(count)]
    for rid in rids:
        await shard.admit(rid, lane=rid.partition(" ")[0], bounds=ENDLESS, tenant_cap=100_000)
        assert isinstance(await shard.scripts.claim("w0", await shard.delivered("w0"), f"a of {rid}"), Claimed)
    for rid in rids:
        assert await shard.scripts.requeue("w0", rid, f"a of {rid}", how="hand_back") == "OK"


async def started(shard: Shard, want: int) -> list[str]:
    """What a worker gets with one pull, all of it claimed."""
    entries = await shard.scripts.pull("w1", want)
    for entry in entries:
        assert isinstance(await shard.scripts.claim("w1", entry, f"b of {entry.rid}"), Claimed)
    return [entry.rid for entry in entries]


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


@pytest.mark.parametrize("lane", NEVER_AGED)
async def test_what_had_started_goes_before_what_has_not_in_the_order_in_which_it_came_back(
    shard: Shard, lane: str
) -> None:
    await handed_back(shard, **{lane: 12})
    await backlog(shard, **{lane: 3})
    taken = [rid for _ in range(4) for rid in await started(shard, 4)]
    assert taken == [f"{lane} again {number}" for number in range(12)] + [f"{lane}{number}" for number in range(3)]


async def test_newcomers_start_where_the_lane_is_and_not_before_what_had_started(shard: Shard) -> None:
    await backlog(shard, batch=3)
    assert await started(shard, 2) == ["batch0", "batch1"]
    assert await shard.scripts.requeue("w1", "batch0", "b of batch0", how="hand_back") == "OK"
    await shard.admit("newcomer", lane="batch", tenant="new")
    assert await started(shard, 3) == ["batch0", "batch2", "newcomer"]


async def test_what_comes_back_in_the_same_millisecond_keeps_its_order(shard: Shard) -> None:
    rids = [f"r{number}" for number in range(100)]
    for rid in rids:
        await shard.claimed(rid, attempt=f"a of {rid}", tenant_cap=1_000)
    await asyncio.gather(*(shard.scripts.requeue("w1", rid, f"a of {rid}", how="hand_back") for rid in rids))
    order = [fields[b"rid"].decode() for _, fields in await shard.client.xrange(shard.keys.queue("standard"))]
    assert sorted(order) == sorted(rids)
    assert [entry.rid for entry in await shard.scripts.pull("w1", 100)] == order


async def test_interactive_work_does_not_wait_behind_batch_that_was_handed_back(shard: Shard) -> None:
    await handed_back(shard, batch=60)
    await backlog(shard, interactive=120)
    picks: Counter[str] = Counter()
    for _ in range(45):
        picks.update(await pull(shard, 2, NEVER_AGED))
    assert picks == {"interactive": 80, "batch": 10}


async def test_interactive_work_that_was_handed_back_goes_before_all_that_is_new(shard: Shard) -> None:
    await handed_back(shard, interactive=6)
    await backlog(shard, interactive=20, standard=20, batch=20)
    taken = await started(shard, 12)
    assert [rid for rid in taken if rid.startswith("interactive")] == [
        *(f"interactive again {number}" for number in range(6)),
        *(f"interactive{number}" for number in range(2)),
    ]


async def test_no_batch_is_taken_for_the_slot_of_a_preempted_one_but_interactive_that_came_back_is(
    shard: Shard,
) -> None:
    await handed_back(shard, batch=3)
    assert await shard.scripts.pull("w1", 4, only="interactive", slots=100) == []
    await handed_back_beside(shard, "interactive")
    assert [entry.rid for entry in await shard.scripts.pull("w1", 4, only="interactive", slots=100)] == ["came back"]


async def handed_back_beside(shard: Shard, lane: str) -> None:
    """One more, although others wait."""
    await shard.admit("came back", lane=lane)
    (entry,) = await shard.scripts.pull("w0", 1, only=lane, slots=100)
    await shard.scripts.claim("w0", entry, "a")
    await shard.scripts.requeue("w0", "came back", "a", how="hand_back")


async def test_batch_that_was_handed_back_is_not_starved(shard: Shard) -> None:
    """Whatever comes: it gets its lane's weight, one start in nine beside interactive work."""
    await handed_back(shard, batch=5)
    await backlog(shard, interactive=10)
    await pull(shard, 1, NEVER_AGED)
    taken: list[str] = []
    for number in range(50):
        await shard.admit(f"more{number}", lane="interactive", bounds=ENDLESS, tenant_cap=100_000)
        taken += await started(shard, 1)
    assert sum(rid.startswith("batch again") for rid in taken) == 5


async def test_batch_that_was_handed_back_ages_with_its_lane(shard: Shard) -> None:
    await handed_back(shard, batch=12)
    await backlog(shard, interactive=50)
    picks = await pull(shard, 40, {**NEVER_AGED, "batch": -1})
    assert picks[0] == "batch"
    assert 9 <= picks.count("batch") <= 12


async def test_starting_once_more_is_charged_to_neither_the_lane_nor_the_tenant(shard: Shard) -> None:
    await handed_back(shard, batch=2)
    for rid, tenant in (("others", "other"), ("next", "acme")):
        await shard.admit(rid, lane="batch", tenant=tenant)
    paid = await charged(shard)
    assert await started(shard, 2) == ["batch again 0", "batch again 1"]
    assert await charged(shard) == paid
    assert await started(shard, 2) == ["others", "next"]
    assert (await charged(shard))[0] > paid[0]


async def charged(shard: Shard) -> tuple[float, list[bytes | None]]:
    """The pass of the batch lane; its virtual time, where the tenant of `handed_back` ends and what it was served."""
    passed = await shard.client.hget(shard.keys.sched, "pass:batch")  # type: ignore[misc]
    return float(passed), await shard.client.hmget(shard.keys.ledger("batch"), "v", "f:acme", "a:acme")  # type: ignore[misc]


async def test_a_lane_whose_work_was_handed_back_keeps_its_turns_for_new_work(shard: Shard) -> None:
    """Half of what standard starts comes back once; its new work still gets its share."""
    await backlog(shard, interactive=200, standard=200)
    begun: Counter[str] = Counter()
    for _ in range(110):
        for entry in await shard.scripts.pull("w1", 1):
            claimed = await shard.scripts.claim("w1", entry, f"c{begun.total()} of {entry.rid}")
            assert isinstance(claimed, Claimed)
            if claimed.claims == 1:
                begun[entry.queue] += 1
                if entry.queue == "standard" and begun["standard"] % 2:
                    attempt = (await shard.record(entry.rid))["attempt"]
                    assert await shard.scripts.requeue("w1", entry.rid, attempt, how="preempt") == "OK"
    assert begun["standard"] == pytest.approx(begun["interactive"] * 3 / 8, abs=2)


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


async def test_the_lane_pays_for_what_takes_a_preempted_slot(shard: Shard) -> None:
    await backlog(shard, interactive=180, standard=40)
    picks: Counter[str] = Counter()
    for _ in range(12):
        assert len(await shard.scripts.pull("w1", 4, only="interactive", slots=100)) == 4
        picks.update(await pull(shard, 2, NEVER_AGED))
    taken = 48 + picks["interactive"]
    assert picks["standard"] == pytest.approx(taken * 3 / 8, abs=2), (
        "what interactive took out of turn, standard gets back"
    )


@pytest.mark.parametrize(
    ("slots", "held", "weight", "gets"),
    [(4, 0, 8, 2), (4, 1, 8, 1), (4, 2, 8, 0), (4, 4, 8, 0), (1, 0, 8, 1), (1, 1, 8, 0), (5, 2, 96, 2), (5, 1, 1, 0)],
)
async def test_a_lane_that_has_its_part_of_the_slots_takes_no_more_out_of_turn(
    shard: Shard, slots: int, held: int, weight: int, gets: int
) -> None:
    await backlog(shard, interactive=10, batch=10)
    await shard.scripts.setlane("interactive", {"weight": str(weight)})
    assert len(await shard.scripts.pull("w1", 4, only="interactive", slots=slots, held=held)) == gets
    assert len(await shard.scripts.pull("w1", 4)) == 4, "in turn it may"


@pytest.mark.parametrize(
    ("workers", "waiting", "gets"), [(1, 40, 32), (2, 40, 20), (4, 40, 10), (20, 40, 4), (4, 3, 3)]
)
async def test_a_worker_gets_its_part_of_what_waits(shard: Shard, workers: int, waiting: int, gets: int) -> None:
    await backlog(shard, interactive=waiting // 2, batch=waiting - waiting // 2)
    await shard.client.hset(shard.keys.workers, mapping={f"w{number}": "" for number in range(workers)})
    assert len(await shard.scripts.pull("w1", 32)) == gets


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
