"""Fair shares and bounded waits, on the real scripts, under any pattern of arrivals that Hypothesis finds."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.connection import RedisCaller
from shared.keys import Keys
from shared.lanes import Lane
from shared.outcomes import Bounds, Claimed
from shared.scripts import Scripts
from tests.integration.shard import Shard
from tests.support.fairness import History, Sent, unfair_lanes, unfair_tenants, waited_too_long

WEIGHTS = {Lane.INTERACTIVE.value: 8.0, Lane.STANDARD.value: 3.0, Lane.BATCH.value: 1.0}
NEVER_MS = 99_999_999
ENDLESS = Bounds(requests=100_000, share=1.0)
EXAMPLES = settings(
    max_examples=25,
    deadline=None,  # a server answers when it does
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
_numbers = itertools.count()

lanes = st.sampled_from(sorted(WEIGHTS))
arrivals = st.tuples(lanes, st.integers(0, 3).map("t{}".format), st.one_of(st.integers(1, 9), st.just(60)))
bursts = st.tuples(arrivals, st.integers(1, 6))
picks = st.integers(1, 4)
patterns = st.lists(st.one_of(bursts, picks), max_size=24)


class Lab:
    """A shard of its own whose every arrival and pick is written down."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.history = History(WEIGHTS)
        self._rids = itertools.count()

    async def arrive(self, lane: str, tenant: str, cost: int) -> None:
        sent = Sent(f"r{next(self._rids)}", lane, tenant, cost)
        facts = {"lane": lane, "tenant": tenant, "cost": cost, "bounds": ENDLESS, "tenant_cap": 100_000}
        assert (await self.shard.admit(sent.rid, **facts)).outcome == "OK"
        self.history.arrived(sent)

    async def serve(self, want: int = 1) -> list[Sent]:
        """A worker takes that many."""
        entries = await self.shard.scripts.pull("w1", want)
        taken = [self.history.picked(entry.rid) for entry in entries]
        for entry in entries:
            assert isinstance(await self.shard.scripts.claim("w1", entry, f"a{entry.rid}"), Claimed)
        return taken

    async def age_limits(self, **limits_ms: int) -> None:
        mapping = {f"{lane}.age_limit_ms": limits_ms.get(lane, NEVER_MS) for lane in WEIGHTS}
        await self.shard.client.hset(self.shard.keys.lanes, mapping=mapping)  # type: ignore[misc]

    async def play(self, pattern: list[tuple[tuple[str, str, int], int] | int]) -> None:
        """Does what the pattern says, and serves what is left."""
        for act in pattern:
            if isinstance(act, int):
                await self.serve(act)
            else:
                for _ in range(act[1]):
                    await self.arrive(*act[0])
        while await self.serve(4):
            pass


async def opened(client: redis.asyncio.Redis, prefix: str, **limits_ms: int) -> Lab:
    """A new one. Nothing ages but what `limits_ms` names."""
    keys = Keys(f"p{next(_numbers)}", prefix=prefix)
    lab = Lab(Shard(client, keys, Scripts(RedisCaller(client), keys)))
    await lab.age_limits(**limits_ms)
    return lab


@EXAMPLES
@given(pattern=patterns)
async def test_everybody_gets_a_fair_share_and_waits_for_a_bounded_time(
    client: redis.asyncio.Redis, prefix: str, pattern: list[tuple[tuple[str, str, int], int] | int]
) -> None:
    lab = await opened(client, prefix)
    await lab.play(pattern)
    assert not lab.history.waiting
    assert not [*unfair_tenants(lab.history), *unfair_lanes(lab.history), *waited_too_long(lab.history)]


@EXAMPLES
@given(pattern=patterns, aged=st.sets(lanes, min_size=1))
async def test_at_most_one_pick_in_four_is_for_age_and_tenants_still_share(
    client: redis.asyncio.Redis, prefix: str, pattern: list[tuple[tuple[str, str, int], int] | int], aged: set[str]
) -> None:
    lab = await opened(client, prefix, **dict.fromkeys(aged, -1))
    await lab.play(pattern)
    assert not lab.history.waiting
    counts = [await client.hget(lab.shard.keys.sched, f"aged:{lane}") for lane in aged]  # type: ignore[misc]
    assert sum(int(count or 0) for count in counts) <= len(lab.history.sent) / 4 + 1.5
    assert not [*unfair_tenants(lab.history)]


async def test_a_tenant_that_comes_back_is_served_however_many_new_ones_come(
    client: redis.asyncio.Redis, prefix: str
) -> None:
    """Each newcomer starts at the virtual time; if that stood still, they would all be before whoever was there."""
    lab = await opened(client, prefix)
    await lab.arrive("standard", "regular", 10)
    for number in range(8):
        await lab.arrive("standard", f"new{number}", 10)
    assert [sent.tenant for sent in await lab.serve()] == ["regular"]
    await lab.arrive("standard", "regular", 10)
    for number in range(8, 60):
        await lab.arrive("standard", f"new{number}", 10)
        if any(sent.tenant == "regular" for sent in await lab.serve()):
            break
    assert "regular" not in {sent.tenant for sent in lab.history.waiting.values()}
    assert not [*waited_too_long(lab.history)]


async def test_a_lane_that_is_never_empty_forgets_who_came_once(client: redis.asyncio.Redis, prefix: str) -> None:
    lab = await opened(client, prefix)
    ledger = lab.shard.keys.ledger("batch")
    for number in range(8):
        await lab.arrive("batch", f"stays{number % 4}", 10)
    await client.hset(ledger, mapping={f"f:once{number}": 1_000_000 for number in range(3_000)})  # type: ignore[misc]
    cursor = ""
    while cursor != "0":
        cursor, _ = await lab.shard.scripts.prune("batch", cursor or "0", 50)
    assert await client.hlen(ledger) < 1_200  # type: ignore[misc]
    waiting = {sent.tenant for sent in lab.history.waiting.values()}
    assert all([await client.hexists(ledger, f"f:{tenant}") for tenant in waiting])  # type: ignore[misc]


async def test_what_age_takes_leaves_the_other_lanes_their_weights(client: redis.asyncio.Redis, prefix: str) -> None:
    lab = await opened(client, prefix, batch=-1)
    for lane, count in (("batch", 90), ("interactive", 200), ("standard", 100)):
        for _ in range(count):
            await lab.arrive(lane, "acme", 10)
    taken = Counter([sent.lane for _ in range(176) for sent in await lab.serve()])
    assert taken["batch"] == pytest.approx(44, abs=2)
    assert taken["interactive"] == pytest.approx(8 / 11 * 132, abs=3)
    assert taken["standard"] == pytest.approx(3 / 11 * 132, abs=3)


async def test_what_was_preempted_is_first_in_its_lane_whoever_else_starts_there(
    client: redis.asyncio.Redis, prefix: str
) -> None:
    lab = await opened(client, prefix)
    scripts = lab.shard.scripts
    await lab.arrive("batch", "victim", 10)
    for number in range(6):
        await lab.arrive("batch", f"t{number}", 10)
    (victim,) = await lab.serve()
    await lab.serve(2)
    assert await scripts.requeue("w1", victim.rid, f"a{victim.rid}", how="preempt") == "OK"
    assert [entry.rid for entry in await scripts.pull("w1", 1)] == [victim.rid]
