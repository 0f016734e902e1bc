"""One driver on a real server and a real folder: its end, and what one that was only thought dead may not do."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import obstore
import pytest
import redis.asyncio

import batch.driver as driver_module
from api.results import At, page_of
from batch.driver import Driver
from batch.finalizing import Finalizing
from batch.manifest import Manifest, Manifests
from batch.owned import LostError, Owned
from shared.batches import Batch, Batches, Part
from shared.errors import ObjectMissingError, RequestError
from shared.file_index import object_name
from shared.files import Files
from shared.hot import HotClient
from shared.ids import batch_file_id
from shared.keys import GlobalKeys
from shared.storage import Storage, open_storage

FACTS = {"input_file_id": "file-1", "endpoint": "/v1/completions"}
CREATED_MS = 1_700_000_000_000


@pytest.fixture
def batches(hot: HotClient, prefix: str) -> Batches:
    return Batches(hot, prefix)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


@pytest.fixture
def tools(batches: Batches, storage: Storage, client: redis.asyncio.Redis, prefix: str) -> Any:
    """Of what a driver works with, what these tests need."""
    files = Files(storage, client, GlobalKeys(prefix))
    settings = SimpleNamespace(batch_output_ttl_s=3_600, max_body_bytes=1 << 20)
    return SimpleNamespace(batches=batches, storage=storage, files=files, settings=settings)


async def taken(batches: Batches, token: str = "d1", **facts: str) -> Batch:  # noqa: S107 - of a lease
    known = {**FACTS, "tenant": "t1", "status": "in_progress", "created_at_ms": str(CREATED_MS), **facts}
    assert await batches.scripts.restore("batch_1", known, b"", [], "active") == "OK"
    found = await batches.scripts.take("batch_1", token)
    assert found.record is not None
    return Batch("batch_1", found.record)


async def delivered(tools: Any, data: bytes) -> str:
    """The output file, as an earlier driver has written it."""

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    file_id = batch_file_id("batch_1", CREATED_MS, "output")
    await tools.files.register(await tools.files.receive("t1", chunks(), file_id=file_id), "out.jsonl", "batch_output")
    return file_id


class Held(Storage):
    """A folder that keeps the manifest of a batch that has ended waiting, until the server has refused a renewal."""

    refused: asyncio.Event

    async def put(self, name: str, data: Any) -> int:
        if name.startswith("manifests/") and b'"failed_at_ms"' in data:
            async with asyncio.timeout(20):
                await self.refused.wait()
        return await super().put(name, data)


async def test_a_renewal_that_comes_after_the_end_does_not_keep_the_manifest_from_being_written(
    batches: Batches, tools: Any, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "RENEW_S", 0.01)
    held = Held(storage._store, storage.where, tmp_path)
    held.refused = asyncio.Event()
    keep = batches.scripts.keep

    async def watched(*args: Any, **more: Any) -> Any:
        kept = await keep(*args, **more)
        if kept.outcome == "FENCED":
            asyncio.get_running_loop().call_later(0.05, held.refused.set)
        return kept

    monkeypatch.setattr(batches.scripts, "keep", watched)
    tools.storage = held
    await Driver(tools, await taken(batches, status="validating"), "d1").run()
    written = msgspec.json.decode(await storage.read("manifests/batch_1.json"))
    assert written["facts"]["status"] == "failed"


async def test_a_driver_that_has_lost_its_batch_before_the_end_hears_of_it(
    batches: Batches, tools: Any, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "RENEW_S", 0.01)
    batch = await taken(batches)
    await client.hset(batches.keys.batch(batch.id), "owner", "d2")  # type: ignore[misc]
    with pytest.raises(LostError):
        await Driver(tools, batch, "d1").run()


async def test_a_delivered_file_stays_when_the_parts_are_gone(batches: Batches, tools: Any, storage: Storage) -> None:
    batch = await taken(batches, total="1", closing="completed", completed="1")
    await batches.scripts.commit(batch.id, "d1", Part("1-1", 1, 4, 0).entry, [0], {})
    file_id = await delivered(tools, b"one\n")
    finalizing = Finalizing(tools, Owned(batches, batch, "d1"), "batches/batch_1/parts")
    with pytest.raises(ObjectMissingError):
        await finalizing.run(None, b"", expired=False)
    assert await storage.read(object_name("t1", file_id)) == b"one\n"
    await storage.put("batches/batch_1/parts/1-1.out", b"one\n")
    assert await finalizing.run(None, b"", expired=False) == {"output_file_id": file_id}


async def test_a_driver_that_was_thought_dead_deletes_nothing_of_its_successors(
    batches: Batches, tools: Any, storage: Storage, client: redis.asyncio.Redis
) -> None:
    batch = await taken(batches, total="1", closing="completed", completed="1")
    await batches.scripts.commit(batch.id, "d1", Part("1-1", 1, 4, 0).entry, [0], {})
    await storage.put("batches/batch_1/parts/1-1.out", b"one\n")
    file_id = await delivered(tools, b"one\n")
    await client.hset(batches.keys.batch(batch.id), "owner", "d2")  # type: ignore[misc]
    with pytest.raises(LostError):
        await Finalizing(tools, Owned(batches, batch, "d1"), "batches/batch_1/parts").run(None, b"", expired=False)
    assert await tools.files.find("t1", file_id) is not None


async def test_what_a_driver_has_written_whole_is_not_taken_away_when_it_is_cancelled(
    tools: Any, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, writing = obstore.put_async, list[asyncio.Task[Any]]()

    async def cancelled_at_the_end(*args: Any, **more: Any) -> Any:
        done = await put(*args, **more)
        writing[0].cancel()
        return done

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one\n"

    monkeypatch.setattr(obstore, "put_async", cancelled_at_the_end)
    file_id = batch_file_id("batch_1", CREATED_MS, "output")
    for chosen, left in ((file_id, 1), ("", 1)):
        writing[:] = [asyncio.create_task(tools.files.receive("t1", chunks(), file_id=chosen))]
        with pytest.raises(asyncio.CancelledError):
            await writing[0]
        assert len([stored async for stored in storage.list("files")]) == left
    assert await storage.read(object_name("t1", file_id)) == b"one\n"


async def test_a_manifest_is_of_one_moment(batches: Batches, storage: Storage) -> None:
    batch = await taken(batches, total="100000")

    async def commit() -> None:
        for row in itertools.count():
            entry = Part(f"1-{row}", 1, 1, 0).entry
            await batches.scripts.commit(batch.id, "d1", entry, [row], {"completed": 1})

    committing, seen = asyncio.create_task(commit()), set[int]()
    async with asyncio.timeout(20):
        while len(seen) < 20:
            await Manifests(storage, batches).write(batch.id)
            written = msgspec.json.decode(await storage.read("manifests/batch_1.json"), type=Manifest)
            bits = sum(byte.bit_count() for byte in written.rows)
            assert bits == len(written.parts) == int(written.facts.get("completed", 0))
            seen.add(bits)
    committing.cancel()


@pytest.mark.parametrize("parts_ttl_s", [5, 100])
async def test_nothing_of_a_batch_stays_on_storage_once_its_time_is_over(
    batches: Batches, storage: Storage, parts_ttl_s: int
) -> None:
    batch, manifests = await taken(batches, total="1"), Manifests(storage, batches)
    await storage.put("batches/batch_1/parts/1-1.out", b"one\n")
    await batches.scripts.end(batch.id, "d1", "completed", {})
    await manifests.write(batch.id)
    for ahead_ms, left in ((0, 2), (20_000, 0)):
        await manifests.sweep(await batches.now_ms() + ahead_ms, parts_ttl_s=parts_ttl_s, batch_ttl_s=10)
        assert len([stored async for stored in storage.list("")]) == left
    assert await batches.find(batch.id) is None


async def test_parts_that_are_not_kept_any_more_take_no_room_and_results_say_so(
    batches: Batches, storage: Storage, client: redis.asyncio.Redis
) -> None:
    batch, manifests = await taken(batches, total="1"), Manifests(storage, batches)
    await storage.put("batches/batch_1/parts/1-1.out", b"{}\n")
    await batches.scripts.commit(batch.id, "d1", Part("1-1", 1, 3, 0).entry, [0], {"completed": 1})
    keys = (batches.keys.batch_rows(batch.id), batches.keys.batch_parts(batch.id))
    assert await batches.scripts.trim(batch.id) == "BUSY"
    await batches.scripts.end(batch.id, "d1", "completed", {})
    for ahead_ms, there in ((0, 2), (20_000, 0)):
        await manifests.sweep(await batches.now_ms() + ahead_ms, parts_ttl_s=10, batch_ttl_s=100)
        assert await client.exists(*keys) == there
    found = await batches.find(batch.id)
    assert found is not None
    asked_before = Batch(found.id, {**found.facts, "parts_gone": ""})
    for batch_as_read in (found, asked_before):
        with pytest.raises(RequestError, match="not kept any more"):
            await page_of(storage, batches, batch_as_read, At(1), 10)
    assert await batches.scripts.trim("batch_2") == "GONE"
