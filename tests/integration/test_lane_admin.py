"""Pausing, draining, purging a lane and changing its settings, on the scripts and on everything that waits."""

from __future__ import annotations

from typing import Literal

import pytest
import redis.asyncio

from shared.errors import RequestError
from shared.lane_admin import InForce, LaneAdmin
from shared.lane_settings import DRAIN, PAUSE, RESUME
from shared.lanes import Lane
from shared.outcomes import Bounds, Claimed, Entry, Unclaimed
from shared.registry import Registry
from shared.wire import WorkerCard, split_log
from tests.integration.shard import RESULT_TTL_MS, Shard, delta, ending, in_ms

STANDARD = Lane.STANDARD


@pytest.fixture
def admin(client: redis.asyncio.Redis, prefix: str) -> LaneAdmin:
    return LaneAdmin(client, prefix, result_ttl_ms=RESULT_TTL_MS, bounds=Bounds(10, 20, 30))


async def read(shard: Shard, wid: str = "w1") -> list[Entry]:
    """What a read of an idle worker is given at once."""
    key = shard.keys.queue(STANDARD)
    reply = await shard.client.xreadgroup("g", wid, {key: ">"}, count=1)
    return [Entry(STANDARD, entry.decode(), fields[b"rid"].decode()) for _, found in reply for entry, fields in found]


async def pulled(shard: Shard, want: int = 10) -> list[str]:
    return [entry.rid for entry in await shard.scripts.pull("w1", want)]


async def purge(admin: LaneAdmin, tenant: str | None = None, older_than_s: float = 0) -> int:
    return sum([count async for count in admin.purge("pool", STANDARD, tenant=tenant, older_than_s=older_than_s)])


# ---- pause and resume


async def test_of_a_paused_lane_nothing_is_pulled_and_after_it_everything_in_its_order(shard: Shard) -> None:
    for rid in ("r1", "r2", "r3"):
        await shard.admit(rid)
    await shard.admit("b1", lane="batch")
    assert await shard.scripts.setlane(STANDARD, PAUSE) == 1
    assert await pulled(shard) == ["b1"]
    assert (await shard.admit("r4")).outcome == "OK"
    assert await pulled(shard) == []
    assert await shard.scripts.setlane(STANDARD, RESUME) == 1
    assert await pulled(shard) == ["r1", "r2", "r3", "r4"]
    assert await shard.client.exists(shard.keys.lanes) == 0


async def test_what_a_blocking_read_gets_of_a_paused_lane_goes_back_to_its_place(shard: Shard) -> None:
    await shard.scripts.setlane(STANDARD, PAUSE)
    for rid in ("r1", "r2"):
        await shard.admit(rid)
    (entry,) = await read(shard)
    assert await shard.scripts.claim("w1", entry, "a1") == Unclaimed("PAUSED", "")
    assert await shard.scripts.claim("w1", entry, "a1") == Unclaimed("PAUSED", ""), "sent again"
    assert await shard.state() == "queued"
    assert (await shard.client.xpending(shard.keys.queue(STANDARD), "g"))["pending"] == 0
    await shard.scripts.setlane(STANDARD, RESUME)
    assert await pulled(shard) == ["r1", "r2"]
    assert isinstance(await shard.scripts.claim("w1", entry, "a1"), Claimed)


async def test_a_pause_spares_idle_workers_the_backlog(shard: Shard) -> None:
    for rid in ("r1", "r2", "r3"):
        await shard.admit(rid)
    await shard.scripts.setlane(STANDARD, PAUSE)
    assert await read(shard) == []
    await shard.scripts.setlane(STANDARD, RESUME)
    assert await read(shard) == []
    assert await pulled(shard) == ["r1", "r2", "r3"]


@pytest.mark.parametrize("how", ["hand_back", "preempt"])
async def test_of_a_paused_lane_only_what_had_started_is_given_out(
    shard: Shard, how: Literal["hand_back", "preempt"]
) -> None:
    for rid in ("r1", "r2"):
        await shard.claimed(rid, attempt=f"a of {rid}")
    await shard.admit("waits")
    await shard.scripts.setlane(STANDARD, PAUSE)
    for rid in ("r1", "r2"):
        assert await shard.scripts.requeue("w1", rid, f"a of {rid}", how=how) == "OK"
    (read_first,) = await read(shard)
    for entry in (read_first, *await shard.scripts.pull("w1", 4)):
        assert isinstance(await shard.scripts.claim("w1", entry, f"b of {entry.rid}"), Claimed)
    assert await shard.scripts.pull("w1", 4) == []
    assert await read(shard) == []
    assert [await shard.state(rid) for rid in ("r1", "r2", "waits")] == ["running", "running", "queued"]
    await shard.scripts.setlane(STANDARD, RESUME)
    assert await pulled(shard) == ["waits"]


async def test_what_runs_goes_on_while_its_lane_is_paused_also_on_another_worker(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.setlane(STANDARD, PAUSE)
    assert (await shard.scripts.step("w1", [("r1", "a1", 0, delta("a1"))])).refused == {}
    await shard.die()
    assert await shard.scripts.requeue("w1", "r1", "a1") == "OK"
    (entry,) = await shard.scripts.pull("w2", 1)
    assert isinstance(await shard.scripts.claim("w2", entry, "a2"), Claimed)
    done = await shard.scripts.done(
        "w2", "r1", "a2", state="succeeded", reason="completed", frame=ending("a2"), expected=len(await shard.log())
    )
    assert done.outcome == "OK"


async def test_who_waits_in_a_paused_lane_still_has_a_deadline_and_can_be_cancelled(shard: Shard) -> None:
    await shard.scripts.setlane(STANDARD, PAUSE)
    await shard.admit("r1")
    await shard.admit("r2", deadline_ms=in_ms(1_000))
    assert await shard.scripts.cancel("r1", owner="-", queue=STANDARD, reason="client_gone") == "DONE"
    await shard.client.hset(shard.keys.record("r2"), "deadline_ms", in_ms(-1))  # type: ignore[misc]
    assert await shard.scripts.expire("r2", owner="-", queue=STANDARD) == "DONE"


async def test_a_pause_is_no_time_in_which_the_lane_could_have_drained(shard: Shard) -> None:
    async def measured_after(*changes: dict[str, str]) -> float:
        """Seconds of backlog after a claim, when the one before was a minute ago."""
        kept = f"100 10 {in_ms(-60_000)}"
        await shard.client.hset(shard.keys.sched, "rate:standard", kept)  # type: ignore[misc]
        for change in changes:
            await shard.scripts.setlane(STANDARD, change)
        entry = await shard.delivered()
        assert isinstance(await shard.scripts.claim("w1", entry, f"a of {entry.rid}"), Claimed)
        text = await shard.client.hget(shard.keys.sched, "rate:standard")  # type: ignore[misc]
        return float(text.split()[1])

    for rid in ("r1", "r2", "r3"):
        await shard.admit(rid)
    assert await measured_after() > 15
    assert await measured_after(PAUSE, RESUME) == 10


async def test_a_change_that_changes_nothing_leaves_the_rate_alone(shard: Shard) -> None:
    await shard.scripts.setlane(STANDARD, PAUSE)
    await shard.client.hset(shard.keys.sched, "rate:standard", "10 5 77")  # type: ignore[misc]
    assert await shard.scripts.setlane(STANDARD, PAUSE) == 0
    assert await shard.scripts.setlane(STANDARD, {"weight": "5"}) == 1
    assert await shard.client.hget(shard.keys.sched, "rate:standard") == b"10 5 77"  # type: ignore[misc]


# ---- drain and settings


async def test_a_draining_lane_takes_nothing_new_and_runs_out(shard: Shard) -> None:
    await shard.admit("r1", idempotency="k", idempotency_ttl_ms=60_000)
    assert await shard.scripts.setlane(STANDARD, DRAIN) == 1
    assert (await shard.admit("r2")).outcome == "CLOSED"
    assert (await shard.admit("r3", lane="batch")).outcome == "OK"
    joined = await shard.admit("r4", idempotency="k", idempotency_ttl_ms=60_000, fingerprint="fp-r1")
    assert (joined.outcome, joined.rid) == ("DUP", "r1")
    assert set(await pulled(shard)) == {"r1", "r3"}
    assert await shard.scripts.setlane(STANDARD, RESUME) == 1
    assert (await shard.admit("r2")).outcome == "OK"


async def test_a_weight_is_in_force_with_the_next_pull(shard: Shard) -> None:
    await shard.scripts.setlane("batch", {"weight": "8", "age_limit_ms": "99999999"})
    for number in range(8):
        for lane in ("interactive", "batch"):
            await shard.admit(f"{lane}{number}", lane=lane)
    picks = [entry.queue for entry in await shard.scripts.pull("w1", 8)]
    assert picks.count("batch") == 4
    assert await shard.scripts.setlane("batch", {"weight": ""}) == 1
    assert [entry.queue for entry in await shard.scripts.pull("w1", 4)].count("batch") <= 1


async def test_a_lane_that_had_next_to_no_weight_does_not_pay_for_it_when_it_is_given_one(shard: Shard) -> None:
    await shard.scripts.setlane("batch", {"weight": "0.001", "age_limit_ms": "99999999"})
    for number in range(12):
        await shard.admit(f"batch{number}", lane="batch")
    assert len(await shard.scripts.pull("w1", 4)) == 4
    await shard.scripts.setlane("batch", {"weight": "8"})
    for number in range(8):
        await shard.admit(f"interactive{number}", lane="interactive")
    assert [entry.queue for entry in await shard.scripts.pull("w1", 8)].count("batch") >= 3


async def test_a_bound_is_in_force_with_the_next_admission_until_it_is_taken_back(shard: Shard) -> None:
    await shard.admit("r1")
    await shard.scripts.setlane(STANDARD, {"max_requests": "1"})
    assert (await shard.admit("r2")).outcome == "FULL"
    await shard.scripts.setlane(STANDARD, {"max_requests": ""})
    assert (await shard.admit("r2")).outcome == "OK"


# ---- purge


async def test_a_purge_ends_all_that_waits_and_nothing_that_runs(shard: Shard, admin: LaneAdmin) -> None:
    await shard.claimed("running", tenant="acme")
    for number in range(205):
        await shard.admit(f"r{number}", tenant=("acme", "other")[number % 2], tenant_cap=1_000)
    await shard.admit("b1", lane="batch", tenant="acme", tenant_cap=1_000)
    delivered = await shard.scripts.pull("w1", 3)
    assert await purge(admin) == 205
    for number in (0, 204):
        record = await shard.record(f"r{number}")
        assert (record["state"], record["reason"]) == ("cancelled", "purged")
        ((_, end),) = split_log(await shard.log(f"r{number}"), 0)
        assert end.meta is not None
        assert end.meta.reason == "purged"
    assert len(await shard.finished()) == 205
    assert (await shard.state("running"), await shard.state("b1")) == ("running", "queued")
    assert await shard.client.hgetall(shard.keys.tenants) == {b"acme": b"2"}  # type: ignore[misc]
    assert await shard.client.exists(shard.keys.ledger(STANDARD), shard.keys.fair(STANDARD)) == 0
    assert await shard.client.xlen(shard.keys.queue(STANDARD)) == 0
    for entry in delivered:
        if entry.queue == STANDARD:
            assert await shard.scripts.claim("w1", entry, "late") == Unclaimed("SKIP", "cancelled")
    assert await purge(admin) == 0


async def test_a_purge_can_be_of_one_tenant(shard: Shard, admin: LaneAdmin) -> None:
    for rid, tenant in (("r1", "acme"), ("r2", "other"), ("r3", "acme")):
        await shard.admit(rid, tenant=tenant)
    assert await purge(admin, tenant="acme") == 2
    assert await shard.client.hgetall(shard.keys.tenants) == {b"other": b"1"}  # type: ignore[misc]
    assert await pulled(shard) == ["r2"]


async def test_a_purge_can_be_of_what_is_older(shard: Shard, admin: LaneAdmin) -> None:
    for rid, age_s in (("r1", 31), ("r2", 29), ("r3", 0)):
        await shard.admit(rid)
        await shard.client.hset(shard.keys.record(rid), "queued_at_ms", in_ms(-1_000 * age_s))  # type: ignore[misc]
    assert await purge(admin, older_than_s=30) == 1
    assert await pulled(shard) == ["r2", "r3"]


async def test_what_comes_during_a_purge_is_left_alone(shard: Shard, admin: LaneAdmin) -> None:
    for number in range(20):
        await shard.admit(f"r{number}")
    ends = admin.purge("pool", STANDARD)
    purged = await anext(ends)
    # an id of the next moment, as the server gives it to who comes then
    while (await shard.record("r19"))["queued_at_ms"] == str(await admin._now_ms()):
        continue
    await shard.admit("late")
    purged += sum([count async for count in ends])
    assert purged == 20
    assert await shard.state("late") == "queued"


async def test_who_is_claimed_before_its_turn_is_left_alone(shard: Shard, admin: LaneAdmin) -> None:
    for number in range(12):
        await shard.admit(f"r{number}")
    ends = admin.purge("pool", STANDARD)
    purged = await anext(ends)
    entry = await shard.delivered()
    assert isinstance(await shard.scripts.claim("w1", entry, "a1"), Claimed)
    purged += sum([count async for count in ends])
    assert purged == 11
    assert await shard.state(entry.rid) == "running"
    assert "cancel" not in await shard.record(entry.rid)


async def test_a_request_that_lost_its_worker_is_not_purged_with_its_lane(shard: Shard, admin: LaneAdmin) -> None:
    await shard.claimed()
    await shard.scripts.requeue("w1", "r1", "a1", how="hand_back")
    await shard.scripts.claim("w1", await shard.delivered(), "a2")
    await shard.scripts.requeue("w1", "r1", "a2", how="preempt")
    await shard.admit("r2")
    assert await purge(admin) == 1
    assert (await shard.state("r1"), await shard.state("r2")) == ("queued", "cancelled")


# ---- what is shown


async def test_a_look_says_what_waits_and_where_each_setting_comes_from(shard: Shard, admin: LaneAdmin) -> None:
    await shard.admit("r1", cost=40)
    await shard.admit("r2", cost=2)
    await admin.change("pool", STANDARD, {"weight": "0.5", "max_tokens": "99", **PAUSE, **DRAIN})
    _, standard, batch = await admin.look("pool")
    assert (standard.lane, standard.depth, standard.work_tokens) == (STANDARD, 2, 42)
    assert (standard.retrying, batch.retrying) == (0, 0)
    assert 0 <= standard.oldest_age_ms < 10_000
    assert (standard.paused, standard.draining) == (True, True)
    assert standard.settings == {
        "weight": InForce(0.5, "live"),
        "age_limit_ms": InForce(10_000, "default"),
        "max_requests": InForce(10, "replica"),
        "max_bytes": InForce(20, "replica"),
        "max_tokens": InForce(99, "live"),
    }
    assert (batch.depth, batch.oldest_age_ms, batch.work_tokens, batch.paused, batch.draining) == (
        0,
        0,
        0,
        False,
        False,
    )
    assert batch.settings["weight"] == InForce(1, "default")


async def test_a_look_counts_what_had_started_before(shard: Shard, admin: LaneAdmin) -> None:
    await shard.claimed("r1", lane="batch")
    await shard.admit("r2", lane="batch")
    await shard.scripts.requeue("w1", "r1", "a1", how="hand_back")
    assert [(state.depth, state.retrying) for state in await admin.look("pool")] == [(0, 0), (0, 0), (2, 1)]


async def test_outside_of_a_replica_its_bounds_are_not_known(client: redis.asyncio.Redis, prefix: str) -> None:
    states = await LaneAdmin(client, prefix, result_ttl_ms=RESULT_TTL_MS).look("pool")
    assert {state.settings["max_bytes"] for state in states} == {InForce(None, "replica")}


async def test_pools_are_found_by_model_and_by_name(client: redis.asyncio.Redis, prefix: str, admin: LaneAdmin) -> None:
    with pytest.raises(RequestError, match="no worker has ever registered"):
        await admin.pools()
    registry = Registry(client, prefix)
    await registry.register("old", WorkerCard("w2", "sim", "1", 4, []), ["llama"])
    await registry.register("big", WorkerCard("w1", "sim", "1", 4, []), ["llama", "big"])
    assert await admin.pools() == ["big", "old"]
    assert await admin.pools("llama") == ["big"]
    assert await admin.pools("old") == ["old"]
    with pytest.raises(RequestError) as unknown:
        await admin.pools("nobody")
    assert (unknown.value.status, unknown.value.code) == (404, "model_not_found")
