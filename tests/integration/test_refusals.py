"""What admit refuses, and when it tells those whom it has refused to come again."""

from __future__ import annotations

import pytest

from shared.outcomes import Admitted, Bounds
from tests.integration.shard import Shard, in_ms


async def fill(shard: Shard, count: int, tenant: str = "acme", bounds: Bounds | None = None) -> list[str]:
    """Lets so many requests of a tenant in, or tries to; returns what admit says."""
    first = await shard.client.hget(shard.keys.tenants, tenant)  # type: ignore[misc]
    numbers = range(int(first or 0), int(first or 0) + count)
    asked = [await shard.admit(f"{tenant}-{n}", tenant=tenant, bounds=bounds or Bounds(share=1.0)) for n in numbers]
    return [admitted.outcome for admitted in asked]


async def drains(shard: Shard, per_s: float, lane: str = "standard") -> None:
    """The lane has drained at this rate for the last hundred seconds of a backlog."""
    await shard.client.hset(shard.keys.sched, f"rate:{lane}", f"{per_s * 100:g} 100 {in_ms(0)}")  # type: ignore[misc]


@pytest.mark.parametrize(("share", "most"), [(0.9, 9), (0.5, 5)])
async def test_a_tenant_alone_fills_its_share_of_the_lane_and_another_one_still_finds_room(
    shard: Shard, share: float, most: int
) -> None:
    bounds = Bounds(requests=10, share=share)
    assert await fill(shard, most + 2, bounds=bounds) == ["OK"] * most + ["SHARE", "SHARE"]
    assert await shard.admit("more", bounds=bounds) == Admitted("SHARE", "", most)
    assert await fill(shard, 1, "other", bounds) == ["OK"]


async def test_a_tenants_share_counts_tokens_as_well(shard: Shard) -> None:
    bounds = Bounds(tokens=100, share=0.5)
    assert [(await shard.admit(f"r{n}", cost=20, bounds=bounds)).outcome for n in range(4)] == ["OK"] * 3 + ["SHARE"]
    assert (await shard.admit("r9", cost=20, bounds=bounds, tenant="other")).outcome == "OK"


async def test_a_lane_is_full_by_bytes_and_by_tokens_too(shard: Shard) -> None:
    assert (await shard.admit("r1", cost=50)).outcome == "OK"
    assert await shard.admit("r2", bounds=Bounds(body_bytes=19, share=1.0)) == Admitted("FULL", "", 1)
    assert await shard.admit("r3", bounds=Bounds(tokens=51, share=1.0)) == Admitted("FULL", "", 1)


async def test_in_mode_reject_a_request_gets_in_while_a_slot_is_free(shard: Shard) -> None:
    rejecting = {"slots": 2, "workers": ("w1", "w2")}
    await shard.claimed("r1", "w1", "a1", **rejecting)
    assert (await shard.admit("r2", **rejecting)).outcome == "OK"
    assert await shard.admit("r3", **rejecting) == Admitted("BUSY", "", 2)
    assert await shard.record("r3") == {}
    assert (await shard.admit("r4")).outcome == "OK", "a lane that queues lets it in"


async def test_in_mode_reject_a_slot_that_a_handed_back_request_will_take_is_not_free(shard: Shard) -> None:
    rejecting = {"slots": 2, "workers": ("w1", "w2")}
    for number in ("1", "2"):
        await shard.claimed(f"r{number}", f"w{number}", f"a{number}")
    await shard.scripts.requeue("w1", "r1", "a1", how="hand_back")
    await shard.die("w2")
    await shard.scripts.requeue("w2", "r2", "a2")
    assert await shard.admit("r3", **rejecting) == Admitted("BUSY", "", 2)
    assert await shard.admit("r3", **rejecting, lane="interactive") == Admitted("BUSY", "", 2), "in another lane"
    assert (await shard.admit("r3", slots=3, workers=("w1", "w2"))).outcome == "OK"


async def test_a_request_that_would_not_start_by_its_deadline_is_refused_with_the_wait_and_what_it_lacks(
    shard: Shard,
) -> None:
    await fill(shard, 5)
    await drains(shard, 0.2)
    late = await shard.admit("late", deadline_ms=in_ms(10_000))
    assert (late.outcome, late.number) == ("LATE", 25_000)
    assert late.after_ms is not None
    assert 14_000 <= late.after_ms <= 17_000
    assert (await shard.admit("patient", deadline_ms=in_ms(35_000))).outcome == "OK"
    assert (await shard.admit("fair", tenant="other", deadline_ms=in_ms(10_000))).outcome == "OK", (
        "another tenant's first request does not wait behind all of one that floods"
    )


async def test_a_lane_of_which_nothing_is_known_calls_nobody_late(shard: Shard) -> None:
    await fill(shard, 50)
    assert (await shard.admit("r", deadline_ms=in_ms(1_000))).outcome == "OK"


async def test_a_lane_that_is_drained_takes_nothing_new_and_others_do(shard: Shard) -> None:
    await shard.client.hset(shard.keys.lanes, "standard.draining", "1")  # type: ignore[misc]
    assert await shard.admit("r1") == Admitted("CLOSED")
    assert (await shard.admit("r2", lane="batch")).outcome == "OK"
    await shard.client.hset(shard.keys.lanes, "standard.draining", "0")  # type: ignore[misc]
    assert (await shard.admit("r1")).outcome == "OK"


@pytest.mark.parametrize(
    ("outcome", "changes"),
    [
        ("FULL", {"bounds": Bounds(requests=3, share=1.0)}),
        ("SHARE", {"bounds": Bounds(requests=4, share=0.5)}),
        ("BUSY", {"slots": 3}),
    ],
)
async def test_refused_clients_are_given_turns_one_after_the_other_as_fast_as_the_lane_drains(
    shard: Shard, outcome: str, changes: dict[str, object]
) -> None:
    await fill(shard, 3)
    assert (await shard.admit("unknown", **changes)).after_ms is None
    await drains(shard, 0.4)
    refused = [await shard.admit(f"r{n}", **changes) for n in range(6)]
    assert {one.outcome for one in refused} == {outcome}
    turns = [one.after_ms or 0 for one in refused]
    assert all(2_500 * n - 2_000 <= turn <= 2_500 * n for n, turn in enumerate(turns, 1)), turns
    assert turns == sorted(turns)


async def test_nobody_is_sent_further_than_half_a_minute_ahead_of_the_ones_before(shard: Shard) -> None:
    await fill(shard, 3)
    await drains(shard, 0.1)
    full = Bounds(requests=3, share=1.0)
    turns = [(await shard.admit(f"r{n}", bounds=full)).after_ms or 0 for n in range(6)]
    assert max(turns) <= 40_000


async def test_a_refusal_leaves_nothing_but_the_next_turn(shard: Shard) -> None:
    await fill(shard, 3)
    await drains(shard, 0.1)
    before = set(await shard.client.keys(f"{shard.keys.prefix}:*"))
    for changes in ({"lane_cap": 3}, {"slots": 3}, {"deadline_ms": in_ms(20_000)}, {"tenant_cap": 3}):
        assert (await shard.admit("no", **changes)).outcome in {"FULL", "BUSY", "LATE", "TENANT"}
    assert set(await shard.client.keys(f"{shard.keys.prefix}:*")) == before
    assert await shard.client.xlen(shard.keys.queue("standard")) == 3
