"""The scripts of batches, on real servers: who owns a batch, what counts, and that saying it twice changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio

from shared.batch_scripts import LEASE_MS, BatchScripts
from shared.batches import Batches, Part, is_set
from shared.connection import RedisCaller
from shared.hot import HotClient
from shared.keys import GlobalKeys, Keys
from shared.luascripts import load, script_names
from shared.outcomes import Bounds
from tests.integration.monitor import watching
from tests.integration.shard import Shard
from tests.support import servers
from tests.support.receivers import SECRET

WINDOW_MS = 3_600_000
FACTS = {"input_file_id": "file-1", "endpoint": "/v1/completions"}


@pytest.fixture
def own(client: redis.asyncio.Redis, prefix: str) -> BatchScripts:
    return BatchScripts(RedisCaller(client), prefix)


@pytest.fixture
def batches(hot: HotClient, prefix: str) -> Batches:
    return Batches(hot, prefix)


async def made(own: BatchScripts, name: str = "batch_1", tenant: str = "t1") -> str:
    assert await own.create(name, tenant, FACTS, window_ms=WINDOW_MS) == ("OK", name)
    return name


async def running(own: BatchScripts) -> str:
    batch = await made(own)
    assert (await own.take(batch, "d1")).outcome == "OK"
    kept = await own.keep(batch, "d1", {"total": 10}, move=("validating", "in_progress"))
    assert (kept.outcome, kept.status) == ("OK", "in_progress")
    return batch


def part(name: str = "1-1", rows: int = 2) -> tuple[str, str]:
    return Part(name, rows, 10, 0).entry


async def test_a_batch_is_made_once_however_often_it_is_sent(own: BatchScripts, batches: Batches) -> None:
    await made(own)
    await made(own)
    found = await batches.find("batch_1")
    assert found is not None
    assert found.status == "validating"
    assert found.number("expires_at_ms") - found.number("created_at_ms") == WINDOW_MS
    assert await batches.active() == ["batch_1"]


async def test_a_key_leads_to_the_batch_that_it_has_made(own: BatchScripts) -> None:
    async def create(name: str, fingerprint: str) -> tuple[str, str]:
        return await own.create(name, "t1", FACTS, window_ms=WINDOW_MS, scope="s", fingerprint=fingerprint)

    assert await create("batch_1", "f") == ("OK", "batch_1")
    assert await create("batch_1", "f") == ("OK", "batch_1")
    assert await create("batch_2", "f") == ("DUP", "batch_1")
    assert await create("batch_3", "g") == ("CONFLICT", "batch_1")


async def test_a_batch_has_one_owner_until_its_lease_lapses(
    own: BatchScripts, client: redis.asyncio.Redis, prefix: str
) -> None:
    batch = await made(own)
    taken = await own.take(batch, "d1")
    assert (taken.outcome, taken.epoch) == ("OK", 1)
    assert taken.record is not None
    assert taken.record["endpoint"] == "/v1/completions"
    assert (await own.take(batch, "d1")).epoch == 1
    assert (await own.take(batch, "d2")).outcome == "HELD"
    await client.hset(GlobalKeys(prefix).batch(batch), "lease_ms", "1")  # type: ignore[misc]
    assert (await own.take(batch, "d2")).epoch == 2
    assert (await own.keep(batch, "d1")).outcome == "FENCED"


async def test_a_lease_that_is_given_back_is_taken_at_once(own: BatchScripts) -> None:
    batch = await running(own)
    assert (await own.keep(batch, "d1", leave=True)).outcome == "OK"
    assert (await own.take(batch, "d2")).outcome == "OK"


async def test_nothing_that_a_former_owner_writes_counts(
    own: BatchScripts, batches: Batches, client: redis.asyncio.Redis, prefix: str
) -> None:
    batch = await running(own)
    await client.hset(GlobalKeys(prefix).batch(batch), "lease_ms", "1")  # type: ignore[misc]
    await own.take(batch, "d2")
    assert (await own.commit(batch, "d1", part(), [0, 1], {"completed": 2})).outcome == "FENCED"
    assert (await own.end(batch, "d1", "completed", {})).outcome == "FENCED"
    assert await batches.parts(batch) == []
    assert await batches.committed(batch) == b""


async def test_a_part_counts_once(own: BatchScripts, batches: Batches) -> None:
    batch = await running(own)
    for _ in range(2):
        kept = await own.commit(batch, "d1", part(), [0, 9], {"completed": 2, "input_tokens": 7})
        assert (kept.outcome, kept.status) == ("OK", "in_progress")
    found = await batches.find(batch)
    assert found is not None
    assert (found.number("completed"), found.number("input_tokens"), found.left) == (2, 7, 8)
    bitmap = await batches.committed(batch)
    assert [row for row in range(16) if is_set(bitmap, row)] == [0, 9]
    assert await batches.parts(batch) == [Part("1-1", 2, 10, 0)]


async def test_a_part_with_a_row_that_counts_already_does_not_count_at_all(own: BatchScripts, batches: Batches) -> None:
    batch = await running(own)
    await own.commit(batch, "d1", part(), [0, 1], {"completed": 2})
    kept = await own.commit(batch, "d1", part("1-2"), [2, 1], {"completed": 2})
    assert (kept.outcome, kept.status) == ("TAKEN", "1")
    found = await batches.find(batch)
    assert found is not None
    assert found.number("completed") == 2
    assert not is_set(await batches.committed(batch), 2)


async def test_a_batch_that_is_being_finalized_takes_no_rows(own: BatchScripts) -> None:
    batch = await running(own)
    await own.keep(batch, "d1", move=("in_progress", "finalizing"))
    kept = await own.commit(batch, "d1", part(), [0], {"completed": 1})
    assert (kept.outcome, kept.status) == ("CLOSED", "finalizing")


async def test_a_move_happens_from_the_status_that_it_is_meant_for(own: BatchScripts) -> None:
    batch = await running(own)
    assert await own.cancel(batch) == ("OK", "cancelling")
    kept = await own.keep(batch, "d1", move=("in_progress", "finalizing"))
    assert (kept.outcome, kept.status) == ("OTHER", "cancelling")
    assert abs(kept.now_ms) > 1_700_000_000_000


async def test_an_end_is_written_once_with_one_entry_in_the_outbox(
    own: BatchScripts, batches: Batches, client: redis.asyncio.Redis, prefix: str
) -> None:
    batch = await running(own)
    for _ in range(2):
        kept = await own.end(batch, "d1", "completed", {"output_file_id": "file-9"})
        assert (kept.outcome, kept.status) == ("OK", "completed")
    entries = await client.xrange(GlobalKeys(prefix).batches_ended)
    assert [fields for _, fields in entries] == [{b"id": b"batch_1", b"status": b"completed", b"tenant": b"t1"}]
    found = await batches.find(batch)
    assert found is not None
    assert found.shown()["completed_at"] is not None
    assert await batches.active() == []
    assert (await own.take(batch, "d2")).outcome == "ENDED"


async def test_cancelling_wins_over_completing_and_loses_against_an_end(own: BatchScripts) -> None:
    batch = await running(own)
    for _ in range(2):
        assert await own.cancel(batch) == ("OK", "cancelling")
    assert (await own.end(batch, "d1", "completed", {})).status == "cancelled"
    assert await own.cancel(batch) == ("OK", "cancelled")
    other = await made(own, "batch_2")
    await own.take(other, "d1")
    await own.end(other, "d1", "failed", {})
    assert await own.cancel(other) == ("ENDED", "failed")
    assert await own.cancel("batch_3") == ("GONE", "")


async def test_a_batch_whose_time_is_up_expires_although_it_is_cancelled(own: BatchScripts) -> None:
    batch = await running(own)
    await own.keep(batch, "d1", {"closing": "expired"})
    assert await own.cancel(batch) == ("OK", "in_progress")
    assert (await own.end(batch, "d1", "expired", {})).status == "expired"


async def test_what_redis_has_lost_is_given_back_and_nothing_is_overwritten(
    own: BatchScripts, batches: Batches, client: redis.asyncio.Redis, prefix: str
) -> None:
    batch = await running(own)
    await own.commit(batch, "d1", part(), [0, 3], {"completed": 2})
    found = await batches.find(batch)
    assert found is not None
    bitmap, parts = await batches.committed(batch), [" ".join(each.entry) for each in await batches.parts(batch)]
    assert await own.restore(batch, found.facts, b"", [], "active") == "KNOWN"
    keys = [key async for key in client.scan_iter(match=f"{prefix}:*")]
    await client.delete(*keys)
    assert (await own.keep(batch, "d1")).outcome == "GONE"
    assert (await own.commit(batch, "d1", part("1-2"), [1], {})).outcome == "GONE"
    assert (await own.end(batch, "d1", "completed", {})).outcome == "GONE"
    assert (await own.take(batch, "d2")).outcome == "GONE"
    assert await own.restore(batch, found.facts, bitmap, parts, "active") == "OK"
    assert await batches.committed(batch) == bitmap
    assert [" ".join(each.entry) for each in await batches.parts(batch)] == parts
    assert await batches.active() == [batch]
    assert (await own.keep(batch, "d1")).outcome == "FENCED"
    assert (await own.take(batch, "d2")).epoch == 2


async def test_only_a_batch_that_has_ended_is_forgotten(own: BatchScripts, batches: Batches) -> None:
    batch = await running(own)
    assert await own.forget(batch, "t1") == "BUSY"
    await own.end(batch, "d1", "completed", {})
    for _ in range(2):
        assert await own.forget(batch, "t1") == "OK"
    assert await batches.find(batch) is None
    assert await batches.page("t1", after="", limit=10) == ([], False)


async def test_pages_stay_what_they_are_while_new_batches_come(own: BatchScripts, batches: Batches) -> None:
    for number in range(5):
        await made(own, f"batch_{number}")
    await made(own, "batch_9", tenant="t2")
    first, more = await batches.page("t1", after="", limit=2)
    assert ([batch.id for batch in first], more) == (["batch_4", "batch_3"], True)
    await made(own, "batch_5")
    second, more = await batches.page("t1", after="batch_3", limit=3)
    assert ([batch.id for batch in second], more) == (["batch_2", "batch_1", "batch_0"], False)


async def test_requests_are_forgotten_once_they_have_ended(
    shard: Shard, client: redis.asyncio.Redis, keys: Keys
) -> None:
    await shard.claimed("r1")
    assert await shard.scripts.forget(["r1", "r2"]) == 0
    assert await client.exists(keys.record("r1")) == 1
    await shard.ended("r1")
    assert await shard.scripts.forget(["r1"]) == 1
    assert await shard.scripts.forget(["r1"]) == 0
    assert await client.exists(keys.record("r1"), keys.log("r1")) == 0


async def test_no_script_of_batches_touches_a_key_that_it_does_not_declare(
    server: servers.Server, own: BatchScripts, shard: Shard
) -> None:
    every = {load(name).sha for name in script_names() if name.startswith("batch_")} | {load("forget").sha}
    async with watching(server.url) as touched:
        batch = await running(own)
        await own.create("batch_2", "t1", FACTS, window_ms=WINDOW_MS, scope="s", fingerprint="f", secret=SECRET)
        await own.commit(batch, "d1", part(), [0, 1], {"completed": 2})
        assert await own.read(batch) is not None
        await own.cancel(batch)
        await own.end(batch, "d1", "completed", {})
        assert (await own.notify(10, lease_ms=1_000)).batches == [batch]
        assert await own.notified(batch, 0, "again", after_ms=0, status="500") == "OK"
        assert await own.notified(batch, 1, "delivered", status="200") == "OK"
        assert await own.trim(batch) == "OK"
        await own.forget(batch, "t1")
        facts: dict[str, Any] = {"tenant": "t1", "created_at_ms": "1", "status": "in_progress"}
        assert await own.restore(batch, facts, b"\x80", ["1-1 1 1 0"], "untold") == "OK"
        await shard.claimed("r1")
        await shard.ended("r1")
        await shard.scripts.forget(["r1"])
    assert touched.shas >= every
    assert touched.undeclared == set()


def test_a_lease_outlives_three_renewals() -> None:
    assert LEASE_MS >= 3 * 1_500


async def test_what_owes_its_lane_less_gets_so_much_more_of_it(shard: Shard) -> None:
    facts: dict[str, Any] = {"lane": "batch", "cost": 100, "output_limit": 1, "bounds": Bounds(share=1.0)}
    for number in range(20):
        assert (await shard.admit(f"slow-{number}", tenant="slow", **facts)).outcome == "OK"
        assert (await shard.admit(f"late-{number}", tenant="late", price=0.25, **facts)).outcome == "OK"
    taken = await shard.scripts.pull("w1", 20)
    taken += await shard.scripts.pull("w2", 20)
    first = [entry.rid.partition("-")[0] for entry in taken][:15]
    assert first.count("late") == 12
