"""Files: whole or not at all, deleted for good, put right by the sweep. On a folder and on S3."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio

from shared.errors import BrokerUnavailableError, ObjectMissingError, RequestError, StorageUnavailableError
from shared.file_index import FileFacts, Put, Quota, UploadKey
from shared.files import Files, Swept
from shared.ids import is_file_id, new_file_id
from shared.keys import GlobalKeys
from shared.storage import Storage, open_storage
from tests.support.buckets import S3, running_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as running:
        yield running


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path))
    bucket: S3 = request.getfixturevalue("s3")
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    return open_storage(f"{bucket.url}/{tmp_path.name}")


@pytest.fixture
def files(storage: Storage, client: redis.asyncio.Redis, prefix: str) -> Files:
    return Files(storage, client, GlobalKeys(prefix), Quota(bytes=1_000, files=20))


async def some(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def made(
    files: Files, tenant: str = "a", data: bytes = b"some bytes", expires_at: int | None = None
) -> FileFacts:
    return await files.create(tenant, "f.jsonl", "batch", some(data), expires_at)


async def content(files: Files, facts: FileFacts, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in files.open(facts, start, end)])


async def objects(storage: Storage) -> list[str]:
    return sorted([found.name async for found in storage.list("files")])


async def lose_everything(client: redis.asyncio.Redis, prefix: str) -> None:
    await client.delete(*[key async for key in client.scan_iter(match=f"{prefix}:*")])


async def test_a_file_is_made_found_listed_read_and_deleted(files: Files, storage: Storage) -> None:
    before_s = int(time.time())
    facts = await files.create(
        "a", "../../etc/passwd", "batch", some(b"line 1\n", b"line 2\n"), expires_at=before_s + 60
    )
    assert is_file_id(facts.id)
    assert (facts.filename, facts.purpose, facts.bytes) == ("../../etc/passwd", "batch", 14)
    assert before_s <= facts.created_at <= time.time()
    assert await files.find("a", facts.id) == facts
    page = await files.list("a")
    assert (page.files, page.has_more) == ([facts], False)
    assert await content(files, facts) == b"line 1\nline 2\n"
    assert await content(files, facts, 5, 8) == b"1\nl"
    assert len(await objects(storage)) == 2
    assert await files.delete("a", facts.id)
    assert await files.find("a", facts.id) is None
    assert not await files.delete("a", facts.id)
    with pytest.raises(ObjectMissingError):
        await content(files, facts)
    assert await objects(storage) == []


async def test_another_tenants_file_is_not_there(files: Files) -> None:
    facts = await made(files, "a")
    assert await files.find("b", facts.id) is None
    assert not await files.delete("b", facts.id)
    assert (await files.list("b")).files == []
    assert await files.find("a", facts.id) == facts


@pytest.mark.parametrize("name", ["", "file-", "file-../../x", "file-" + "u" * 24, "x" * 29, f"file-{'0' * 25}", "*"])
async def test_what_is_no_id_is_no_file(files: Files, name: str) -> None:
    assert await files.find("a", name) is None
    assert not await files.delete("a", name)


async def test_pages_follow_each_other(files: Files) -> None:
    ids = []
    for number in range(5):
        ids.append((await files.create("a", "f", "batch" if number % 2 else "evals", some(b"x"))).id)
        await asyncio.sleep(0.002)
    first = await files.list("a", limit=2)
    assert ([facts.id for facts in first.files], first.has_more) == (ids[:2:-1], True)
    second = await files.list("a", after=ids[3], limit=3)
    assert ([facts.id for facts in second.files], second.has_more) == (ids[2::-1], False)
    asked = await files.list("a", order="asc", purpose="batch", limit=1)
    assert ([facts.id for facts in asked.files], asked.has_more) == ([ids[1]], True)


async def test_a_file_past_its_time_is_gone_at_once(files: Files, storage: Storage) -> None:
    facts = await made(files, expires_at=int(time.time()) - 1)
    assert await files.find("a", facts.id) is None
    assert (await files.list("a")).files == []
    assert not await files.delete("a", facts.id)
    assert (await files.sweep()).expired == 1
    assert await objects(storage) == []
    assert await files.index.used_bytes("a") == 0


async def test_what_is_too_large_leaves_nothing(files: Files, storage: Storage) -> None:
    with pytest.raises(RequestError) as caught:
        await files.create("a", "f", "batch", some(b"12345", b"67890"), most_bytes=9)
    assert (caught.value.status, caught.value.code) == (413, "file_too_large")
    assert await objects(storage) == []
    assert (await files.create("a", "f", "batch", some(b"12345", b"6789"), most_bytes=9)).bytes == 9


async def test_what_is_over_the_quota_leaves_nothing(files: Files, storage: Storage) -> None:
    await made(files, data=bytes(995))
    with pytest.raises(RequestError) as caught:
        await made(files, data=bytes(6))
    assert (caught.value.status, caught.value.code) == (403, "file_quota_exceeded")
    assert len(await objects(storage)) == 2


async def test_an_upload_that_breaks_off_leaves_nothing(files: Files, storage: Storage) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError):
        await files.create("a", "f", "batch", broken())
    assert await objects(storage) == []
    assert (await files.list("a")).files == []


async def test_registering_again_makes_one_file(files: Files) -> None:
    received = await files.receive("a", some(b"x"), file_id=new_file_id())
    first = await files.register(received, "f", "batch_output")
    again = await files.register(await files.receive("a", some(b"x"), file_id=received.id), "f", "batch_output")
    assert first.id == again.id == received.id
    assert len((await files.list("a")).files) == 1


async def test_a_key_leads_to_the_file_that_was_uploaded_first(files: Files, storage: Storage) -> None:
    def key(fingerprint: str) -> UploadKey:
        return UploadKey("k", fingerprint, 60_000)

    first = await files.register(await files.receive("a", some(b"x")), "f", "batch", None, key("p"))
    again = await files.register(await files.receive("a", some(b"x")), "f", "batch", None, key("p"))
    assert again == first
    with pytest.raises(RequestError) as caught:
        await files.register(await files.receive("a", some(b"y")), "f", "batch", None, key("q"))
    assert caught.value.status == 422
    assert len(await objects(storage)) == 2


async def test_two_uploads_under_a_key_whose_file_is_gone_make_one_file(
    files: Files, client: redis.asyncio.Redis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = UploadKey("k", "p", 60_000)
    gone = await files.register(await files.receive("a", some(b"x")), "f", "batch", None, key)
    await client.delete(GlobalKeys(prefix).file(gone.id))  # Redis has lost it, and knows its key
    early, late = await files.receive("a", some(b"x")), await files.receive("a", some(b"x"))
    put, made_by_early = files.index.put, []

    async def between(facts: FileFacts, quota: Quota, key: UploadKey | None = None) -> Put:
        if key is not None and key.replaces and facts.id == late.id and not made_by_early:
            made_by_early.append(await files.register(early, "f", "batch", None, replace(key, replaces="")))
        return await put(facts, quota, key)

    monkeypatch.setattr(files.index, "put", between)
    assert await files.register(late, "f", "batch", None, key) == made_by_early[0]


async def test_a_sweep_leaves_a_slow_upload_alone_and_takes_what_has_been_unfinished_for_a_day(
    tmp_path: Path, client: redis.asyncio.Redis, prefix: str
) -> None:
    files = Files(open_storage(str(tmp_path)), client, GlobalKeys(prefix))
    staged = tmp_path / "files" / "a" / f"{new_file_id()}#1"
    staged.parent.mkdir(parents=True)
    for age_s, left in ((7_200, True), (90_000, False)):
        staged.touch()
        os.utime(staged, (time.time() - age_s,) * 2)
        assert await files.sweep() == Swept(leftovers=not left)
        assert staged.exists() is left


async def test_a_sweep_removes_what_never_became_a_file_and_nothing_else(files: Files, storage: Storage) -> None:
    kept = await made(files)
    left = await files.receive("a", some(b"killed before it was registered"))
    assert await files.sweep() == Swept(), "it may be on its way"
    assert await files.sweep(settled_s=-5) == Swept(leftovers=1)
    assert await files.sweep(settled_s=-5) == Swept()
    assert not [name for name in await objects(storage) if left.id in name]
    assert await content(files, kept) == b"some bytes"


async def test_a_sweep_brings_back_what_redis_has_lost(files: Files, client: redis.asyncio.Redis, prefix: str) -> None:
    kept, expiring = await made(files), await made(files, "b", expires_at=int(time.time()) + 2_000)
    await lose_everything(client, prefix)
    assert await files.find("a", kept.id) is None
    assert await files.sweep(settled_s=-5) == Swept(restored=2)
    assert await files.find("a", kept.id) == kept
    assert await files.find("b", expiring.id) == expiring
    assert await files.index.used_bytes("a") == kept.bytes
    assert await content(files, kept) == b"some bytes"


async def test_a_sweep_does_not_bring_back_what_was_deleted_or_has_expired(
    files: Files, storage: Storage, client: redis.asyncio.Redis, prefix: str
) -> None:
    deleted, expired = await made(files), await made(files, expires_at=int(time.time()) + 1)
    await storage.delete(deleted.object_name + ".json")  # the delete was killed here
    await lose_everything(client, prefix)
    while time.time() <= expired.created_at + 1:
        await asyncio.sleep(0.05)
    assert await files.sweep(settled_s=-5) == Swept(leftovers=2)
    assert await objects(storage) == []


async def test_a_sweep_writes_sidecars_that_are_missing(
    files: Files, storage: Storage, client: redis.asyncio.Redis, prefix: str
) -> None:
    facts = await made(files)
    await storage.delete(facts.object_name + ".json")
    assert await files.sweep(settled_s=-5) == Swept()
    await lose_everything(client, prefix)
    assert (await files.sweep(settled_s=-5)).restored == 1
    assert await files.find("a", facts.id) == facts


async def test_a_sweep_drops_facts_whose_bytes_are_gone(files: Files, storage: Storage) -> None:
    facts = await made(files)
    await storage.delete(facts.object_name)
    assert await files.sweep(settled_s=-5) == Swept(hollow=1)
    assert await files.find("a", facts.id) is None


async def test_a_sidecar_of_somebody_elses_making_restores_nothing(
    files: Files, storage: Storage, client: redis.asyncio.Redis, prefix: str
) -> None:
    facts = await made(files)
    await lose_everything(client, prefix)
    for text in (b"", b"[]", b'{"tenant": 1}', b'{"tenant": "b", "filename": "f"}'):
        await storage.put(facts.object_name, b"some bytes")
        await storage.put(facts.object_name + ".json", text)
        assert await files.sweep(settled_s=-5) == Swept(leftovers=1)
    await storage.put(facts.object_name, b"some bytes")
    foreign = {**facts.fields(), "tenant": "b"}
    import msgspec  # noqa: PLC0415

    await storage.put(facts.object_name + ".json", msgspec.json.encode(foreign))
    assert await files.sweep(settled_s=-5) == Swept(leftovers=1)


async def test_without_redis_no_file_is_made_and_the_sweep_takes_the_bytes(
    storage: Storage, client: redis.asyncio.Redis, prefix: str
) -> None:
    async with redis.asyncio.Redis.from_url("redis://127.0.0.1:1") as nobody:
        with pytest.raises(BrokerUnavailableError):
            await made(Files(storage, nobody, GlobalKeys(prefix)))
    assert len(await objects(storage)) == 1
    assert await Files(storage, client, GlobalKeys(prefix)).sweep(settled_s=-5) == Swept(leftovers=1)


async def test_a_delete_that_the_storage_refuses_can_be_repeated(
    tmp_path: Path, client: redis.asyncio.Redis, prefix: str
) -> None:
    files = Files(open_storage(str(tmp_path)), client, GlobalKeys(prefix))
    facts = await made(files)
    sidecar = tmp_path / f"{facts.object_name}.json"
    sidecar.unlink()
    (sidecar / "in the way").mkdir(parents=True)
    with pytest.raises(StorageUnavailableError):
        await files.delete("a", facts.id)
    assert await content(files, facts) == b"some bytes"
    (sidecar / "in the way").rmdir()
    sidecar.rmdir()
    assert await files.delete("a", facts.id)
    assert not [name for _, _, names in os.walk(tmp_path) for name in names]
