"""The list of requests: what a page looks at, and what it shows of requests that move meanwhile."""

from __future__ import annotations

import json

import pytest

from api.auth import ANONYMOUS
from api.catalog import Catalog
from api.listing import MOST_LOOKED_AT, Listing, Wanted
from shared.clock import SystemClock
from shared.hot import HotClient
from shared.ids import new_request_id
from shared.outcomes import Claimed
from shared.registry import Registry
from shared.states import State
from shared.wire import WorkerCard
from tests.integration.shard import Shard

EVERYTHING = Wanted()


@pytest.fixture
async def listing(hot: HotClient, shard: Shard) -> Listing:
    registry = Registry(shard.client, shard.keys.prefix)
    card = WorkerCard("w1", "sim", "1", 4, [json.dumps({"id": "llama"}).encode()])
    await registry.register(shard.keys.pool, card, ["llama"])
    return Listing(hot, Catalog(registry, SystemClock()))


async def walk(listing: Listing, tenant: str, *, limit: int = 100) -> tuple[list[str], list[int]]:
    """What all pages show, and how much each of them."""
    shown: list[str] = []
    sizes: list[int] = []
    after = ""
    while not sizes or after:
        page = await listing.page(tenant, EVERYTHING, limit=limit, after=after)
        shown += [facts.rid for facts in page.facts]
        sizes.append(len(page.facts))
        after = page.following
    return shown, sizes


async def test_a_page_looks_at_so_many_entries_of_others_and_says_where_to_go_on(
    listing: Listing, shard: Shard
) -> None:
    others = 2 * MOST_LOOKED_AT + 50
    for _ in range(others):
        await shard.admit(new_request_id(), tenant="key-flood", tenant_cap=10_000)
    mine = new_request_id()
    await shard.admit(mine, tenant="key-me")
    assert await walk(listing, "key-me") == ([mine], [0, 0, 1])


async def test_a_request_that_has_gone_on_is_shown_where_it_has_gone(listing: Listing, shard: Shard) -> None:
    """Its old entry may still be there for a moment: a page is read by several commands."""
    first, second = new_request_id(), new_request_id()
    await shard.claimed(first)
    await shard.client.xadd(shard.keys.queue("standard"), {"rid": first, "cost": "5"})  # type: ignore[misc]
    await shard.admit(second)
    page = await listing.page("acme", EVERYTHING, limit=10, after="")
    assert [(facts.rid, facts.state) for facts in page.facts] == [(second, "queued"), (first, "running")]


async def test_one_that_moves_on_between_two_pages_comes_twice_and_is_not_missed(
    listing: Listing, shard: Shard
) -> None:
    rids = [new_request_id() for _ in range(3)]
    for rid in rids:
        await shard.admit(rid)
    page = await listing.page("acme", EVERYTHING, limit=1, after="")
    await shard.scripts.beat("w1")
    entries = await shard.scripts.pull("w1", 4)
    for number, entry in enumerate(entries):
        assert isinstance(await shard.scripts.claim("w1", entry, f"a{number}"), Claimed)
    rest = await listing.page("acme", EVERYTHING, limit=10, after=page.following)
    assert [page.facts[0].rid, *(facts.rid for facts in rest.facts)] == [rids[0], *sorted(rids)]


async def test_with_keys_a_tenant_sees_its_own_and_without_what_came_without(listing: Listing, shard: Shard) -> None:
    rids = {tenant: new_request_id() for tenant in (ANONYMOUS, "user-ann", "key-1", "key-2")}
    for tenant, rid in rids.items():
        await shard.admit(rid, tenant=tenant)
    assert (await walk(listing, "key-1"))[0] == [rids["key-1"]]
    assert (await walk(listing, ANONYMOUS, limit=1))[0] == [rids[ANONYMOUS], rids["user-ann"]]


async def test_ended_ones_come_the_latest_first_and_are_gone_with_their_records(listing: Listing, shard: Shard) -> None:
    rids = [new_request_id() for _ in range(3)]
    for rid in rids:
        await shard.admit(rid)
        await shard.scripts.cancel(rid, owner="-", queue="standard", reason="cancelled")
    await shard.client.delete(shard.keys.record(rids[1]))
    cancelled = Wanted(frozenset({State.CANCELLED}))
    page = await listing.page("acme", cancelled, limit=10, after="")
    assert ([facts.rid for facts in page.facts], page.following) == ([rids[2], rids[0]], "")
    failed = await listing.page("acme", Wanted(frozenset({State.FAILED})), limit=10, after="")
    assert (failed.facts, failed.following) == ([], "")
