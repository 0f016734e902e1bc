"""The index of files in Redis: lists, quotas, keys of uploads, expiry."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio

from shared.errors import BrokerUnavailableError
from shared.file_index import FileFacts, FileIndex, Order, Put, Quota, UploadKey, facts_of
from shared.ids import new_file_id
from shared.keys import GlobalKeys
from shared.luascripts import load
from tests.integration.monitor import watching
from tests.support import servers


@pytest.fixture
def index(client: redis.asyncio.Redis, prefix: str) -> FileIndex:
    return FileIndex(client, GlobalKeys(prefix))


def some(tenant: str = "a", size: int = 10, **more: object) -> FileFacts:
    facts = {"filename": "f.jsonl", "purpose": "batch", "created_at": 1_700_000_000, "sha256": "ab", **more}
    return FileFacts(id=new_file_id(), tenant=tenant, bytes=size, **facts)  # type: ignore[arg-type]


async def listed(index: FileIndex, tenant: str, after: str = "", order: Order = "asc") -> list[str]:
    return [facts.id async for facts in index.each(tenant, after, order)]


async def left(client: redis.asyncio.Redis, prefix: str) -> set[bytes]:
    return {key async for key in client.scan_iter(match=f"{prefix}:*")}


async def test_what_is_put_is_found_with_all_its_facts(index: FileIndex) -> None:
    facts = some(filename='tr"icky\n/../名.jsonl', expires_at=1_800_000_000, idempotency="")
    assert await index.put(facts, Quota()) == Put("OK")
    assert await index.find(facts.id) == facts
    assert facts_of(facts.id, facts.fields()) == facts
    assert await index.find(new_file_id()) is None


@pytest.mark.parametrize("size", [0, 10, 10**15 + 1])
async def test_putting_twice_and_dropping_twice_counts_once(
    index: FileIndex, client: redis.asyncio.Redis, prefix: str, size: int
) -> None:
    facts = some(size=size, expires_at=1_800_000_000)
    for _ in range(2):
        assert await index.put(facts, Quota(bytes=size, files=1)) == Put("OK")
    assert (await index.used_bytes("a"), await index.count("a")) == (size, 1)
    assert [await index.drop(facts) for _ in range(2)] == [True, False]
    assert (await index.used_bytes("a"), await index.count("a")) == (0, 0)
    assert await left(client, prefix) == set()


@pytest.mark.parametrize("page", [1, 2, 500])
async def test_a_list_goes_by_creation_and_its_cursor_stays_good(
    index: FileIndex, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.file_index._READ_AT_ONCE", page)
    files = []
    for _ in range(5):
        files.append(some())
        await asyncio.sleep(0.002)  # ids of one millisecond are in no order
    for facts in reversed(files):
        await index.put(facts, Quota())
    await index.put(some("b"), Quota())
    ids = [facts.id for facts in files]
    assert await listed(index, "a") == ids
    assert await listed(index, "a", order="desc") == ids[::-1]
    await index.drop(files[2])
    assert await listed(index, "a", ids[2]) == ids[3:]
    assert await listed(index, "a", ids[2], "desc") == ids[1::-1]


async def test_a_tenant_stores_no_more_than_its_quota(index: FileIndex) -> None:
    quota = Quota(bytes=25, files=3)
    first = some()
    assert (await index.put(first, quota)).outcome == "OK"
    assert (await index.put(some(), quota)).outcome == "OK"
    assert await index.put(some(), quota) == Put("BYTES", 20)
    assert (await index.put(some(size=5), quota)).outcome == "OK"
    assert await index.put(some(size=0), quota) == Put("FILES", 3)
    assert (await index.put(some("b", 25), quota)).outcome == "OK", "another tenant has its own"
    await index.drop(first)
    assert (await index.put(some(), quota)).outcome == "OK"


async def test_of_many_uploads_at_once_no_more_get_in_than_fit(index: FileIndex) -> None:
    puts = await asyncio.gather(*(index.put(some(), Quota(bytes=55)) for _ in range(20)))
    assert [put.outcome for put in puts].count("OK") == 5
    assert await index.used_bytes("a") == 50


async def test_a_key_leads_to_the_first_file_until_that_is_gone(index: FileIndex) -> None:
    key = UploadKey("k1", "print", 60_000)
    first = some(idempotency="k1")
    assert (await index.put(first, Quota(), key)).outcome == "OK"
    assert await index.put(some(idempotency="k1"), Quota(), key) == Put("DUP", 0, first.id, "print")
    assert await index.bound("k1") == (first.id, "print")
    assert await index.count("a") == 1
    await index.drop(first)
    assert await index.bound("k1") is None
    second = some(idempotency="k1")
    assert (await index.put(second, Quota(), key)).outcome == "OK"
    await index.drop(first)
    assert await index.bound("k1") == (second.id, "print"), "a file takes its own key with it, not another one's"


async def test_a_key_whose_file_was_lost_can_be_taken_over(index: FileIndex, client: redis.asyncio.Redis) -> None:
    first, second = some(idempotency="k"), some(idempotency="k")
    await index.put(first, Quota(), UploadKey("k", "p", 60_000))
    await client.delete(index._keys.file(first.id))
    assert (await index.put(second, Quota(), UploadKey("k", "p", 60_000))).outcome == "DUP"
    assert (await index.put(second, Quota(), UploadKey("k", "p", 60_000, replaces=first.id))).outcome == "OK"


async def test_what_has_expired_is_told_those_of_the_longest_ago_first(index: FileIndex) -> None:
    late, early, never = some(expires_at=200), some(expires_at=100), some()
    for facts in (late, early, never, some(expires_at=1_000)):
        await index.put(facts, Quota())
    assert [facts.id for facts in await index.expired(500, 10)] == [early.id, late.id]
    assert [facts.id for facts in await index.expired(500, 1)] == [early.id]


async def test_the_scripts_touch_only_declared_keys(server: servers.Server, index: FileIndex) -> None:
    async with watching(server.url) as touched:
        facts = some(expires_at=100, idempotency="k")
        key = UploadKey("k", "p", 60_000)
        await index.put(facts, Quota(bytes=10), key)
        await index.put(some(), Quota(bytes=10), key)
        await index.drop(facts)
    assert touched.shas >= {load("file_put").sha, load("file_drop").sha}
    assert touched.undeclared == set()


async def test_the_keys_of_a_file_are_in_one_slot_of_a_cluster(cluster: servers.Server) -> None:
    async with redis.asyncio.Redis.from_url(cluster.url) as connected:
        index = FileIndex(connected, GlobalKeys())
        facts = some(idempotency="k")
        assert (await index.put(facts, Quota(), UploadKey("k", "p", 60_000))).outcome == "OK"
        assert await index.drop(facts)


async def test_a_redis_that_is_gone_is_unavailable() -> None:
    async with redis.asyncio.Redis.from_url("redis://127.0.0.1:1") as nobody:
        index = FileIndex(nobody, GlobalKeys())
        for call in (index.put(some(), Quota()), index.drop(some()), index.find("file-x"), listed(index, "a")):
            with pytest.raises(BrokerUnavailableError):
                await call
