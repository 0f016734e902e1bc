"""Batches through faults: whatever dies, every row stands in the output once, and counts and usage are right."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from shared.file_index import object_name
from shared.ids import batch_file_id
from shared.keys import GlobalKeys
from tests.support.batching import chat_row, check_once, content, create, jsonl, names, poll, upload
from tests.support.stack import Stack, eventually, running_stack

KEYS = GlobalKeys()
ROWS = 300
TOKENS = 20


@pytest.fixture
def stack() -> Iterator[Stack]:
    with running_stack(aof=True) as started:
        started.worker("--", "--ttft-ms", "5", "--itl-ms", "5", "--slots", "16")
        started.api()
        yield started


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=30) as client:
        yield client


@pytest.fixture
def server(stack: Stack) -> Iterator[redis.Redis]:
    with redis.Redis(port=stack.redis_port) as client:
        yield client


async def begun(stack: Stack, http: httpx.AsyncClient, rows: int = ROWS, tokens: int = TOKENS) -> str:
    data = jsonl(chat_row(name, tokens=tokens) for name in names(rows))
    return str((await create(http, await upload(stack, data)))["id"])


async def check_whole(
    stack: Stack, http: httpx.AsyncClient, batch: str, rows: int = ROWS, tokens: int = TOKENS
) -> None:
    """Raises AssertionError unless the batch is completed, every row is there once, and the figures are right."""
    ended = await poll(http, batch, within_s=90)
    assert ended["status"] == "completed", ended
    lines = await content(stack, ended["output_file_id"])
    check_once(lines, names(rows))
    assert ended["error_file_id"] is None
    assert ended["request_counts"] == {"total": rows, "completed": rows, "failed": 0}
    assert ended["usage"]["output_tokens"] == rows * tokens
    assert ended["usage"]["input_tokens"] == sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in lines)


def status(server: redis.Redis, batch: str) -> str:
    return str((server.hget(KEYS.batch(batch), "status") or b"").decode())


def output_of(stack: Stack, server: redis.Redis, batch: str) -> Path:
    """Where the output file of a batch is to lie."""
    created_ms = int(server.hget(KEYS.batch(batch), "created_at_ms") or 0)
    return stack.storage / object_name("anonymous", batch_file_id(batch, created_ms, "output"))


def epoch(server: redis.Redis, batch: str) -> int:
    return int(server.hget(KEYS.batch(batch), "epoch") or 0)


async def some_done(http: httpx.AsyncClient, batch: str, least: int = 30) -> dict[str, Any]:
    return await poll(http, batch, lambda found: found["request_counts"]["completed"] >= least)


@pytest.mark.parametrize("phase", ["validating", "in_progress", "finalizing", "cancelling"])
async def test_another_process_goes_on_where_a_driver_was_killed(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis, phase: str
) -> None:
    rows = 4_000 if phase == "validating" else ROWS
    for _ in range(5):
        process = stack.batch()
        batch = await begun(stack, http, rows, 2)
        in_the_way = output_of(stack, server, batch)
        if phase == "finalizing":
            in_the_way.mkdir(parents=True)  # where the file is to lie, so no driver gets beyond
        if phase == "cancelling":
            await some_done(http, batch, 20)
            await http.post(f"/v1/batches/{batch}/cancel")
        give_up_at_s = time.monotonic() + 60
        while (status(server, batch), epoch(server, batch) > 0) != (phase, True) and time.monotonic() < give_up_at_s:
            if status(server, batch) in {"completed", "cancelled"}:
                break
        os.kill(process.pid, signal.SIGSTOP)
        caught = status(server, batch) == phase
        process.kill()
        if caught:
            break
    assert caught, f"no driver was killed while {phase}"
    before = epoch(server, batch)
    if phase == "finalizing":
        in_the_way.rmdir()
    stack.batch()
    if phase == "cancelling":
        ended = await poll(http, batch, within_s=90)
        lines = await content(stack, ended["output_file_id"])
        assert ended["status"] == "cancelled"
        assert len({line["custom_id"] for line in lines}) == len(lines) == ended["request_counts"]["completed"]
    else:
        await check_whole(stack, http, batch, rows, 2)
    assert epoch(server, batch) > before


async def test_a_driver_that_was_only_asleep_adds_nothing(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis
) -> None:
    asleep = stack.batch()
    batch = await begun(stack, http, 600)
    await some_done(http, batch)
    os.kill(asleep.pid, signal.SIGSTOP)
    before = epoch(server, batch)
    other = stack.batch()
    await eventually(lambda: epoch(server, batch) > before, 30, "another driver takes over")
    os.kill(asleep.pid, signal.SIGCONT)
    await eventually(lambda: "is left" in asleep.log.read_text(), 30, "the first one notices")
    await check_whole(stack, http, batch, 600)
    assert other.metric("penstock_batch_takeovers_total") == 1


async def test_a_batch_process_that_is_stopped_hands_its_batches_on_at_once(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis
) -> None:
    first = stack.batch()
    batch = await begun(stack, http, 600)
    await some_done(http, batch)
    before = epoch(server, batch)
    assert first.stop() == 0
    assert int(server.hget(KEYS.batch(batch), "lease_ms") or 0) == 0
    stack.batch()
    await eventually(lambda: epoch(server, batch) > before, 30, "another driver takes over")
    await check_whole(stack, http, batch, 600)


async def test_a_killed_worker_costs_no_row(stack: Stack, http: httpx.AsyncClient) -> None:
    stack.batch()
    batch = await begun(stack, http)
    await some_done(http, batch)
    stack.workers[0].kill()
    stack.again(stack.workers[0])
    await check_whole(stack, http, batch)


async def test_redis_killed_and_started_again_with_its_data_is_a_pause(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis
) -> None:
    process = stack.batch()
    batch = await begun(stack, http)
    await some_done(http, batch)
    server.close()
    stack.redis.kill()
    stack.start_redis()
    await check_whole(stack, http, batch)
    assert process.popen.poll() is None


async def test_what_redis_loses_comes_back_from_the_manifest(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis
) -> None:
    process = stack.batch()
    batch = await begun(stack, http, 900)
    folder = stack.storage / "manifests"
    await some_done(http, batch, 100)
    await eventually(lambda: b'"total":"900"' in (folder / f"{batch}.json").read_bytes(), 30, "a manifest")
    server.flushall()
    await check_whole(stack, http, batch, 900)
    assert "was lost by Redis" in process.log.read_text()


async def test_a_batch_that_has_ended_is_known_again_after_a_flush(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis
) -> None:
    process = stack.batch()
    batch = await begun(stack, http, 20)
    ended = await poll(http, batch)
    await eventually(
        lambda: b'"completed_at_ms"' in (stack.storage / "manifests" / f"{batch}.json").read_bytes(), 30, "a manifest"
    )
    server.flushall()
    process.stop()
    stack.batch()
    assert await poll(http, batch) == ended


async def test_time_is_up_for_the_rows_that_are_left(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis
) -> None:
    data = jsonl(chat_row(name, tokens=5 if index < 100 else 4_000) for index, name in enumerate(names(200)))
    batch = str((await create(http, await upload(stack, data)))["id"])
    server.hset(KEYS.batch(batch), "expires_at_ms", int(time.time() * 1000) + 8_000)
    stack.batch()
    ended = await poll(http, batch)
    assert ended["status"] == "expired"
    assert ended["expired_at"] >= ended["expires_at"]
    good, bad = await content(stack, ended["output_file_id"]), await content(stack, ended["error_file_id"])
    check_once(good + bad, names(200))
    assert len(good) >= 50
    assert {line["error"]["code"] for line in bad} == {"batch_expired"}
    assert {line["response"] for line in bad} == {None}
    assert ended["request_counts"] == {"total": 200, "completed": len(good), "failed": len(bad)}
    await eventually(lambda: not server.hgetall("ps:{sim.0}:ten"), 20, "nothing of it runs any more")


async def test_a_driver_needs_little_memory_for_many_rows(stack: Stack, http: httpx.AsyncClient) -> None:
    rows = 50_000
    process = stack.batch()
    await check_whole(stack, http, await begun(stack, http, 20, 2), 20, 2)
    before = process.rss_bytes
    batch = await begun(stack, http, rows, 2)
    most = 0
    give_up_at_s = time.monotonic() + 90
    while time.monotonic() < give_up_at_s:
        most = max(most, process.rss_bytes)
        found = (await http.get(f"/v1/batches/{batch}")).json()
        if found["request_counts"]["completed"] >= 5_000:
            break
        await asyncio.sleep(0.05)
    assert found["request_counts"]["total"] == rows
    assert most - before < 50_000_000, f"{(most - before) / 1e6:.0f} MB more"
    await http.post(f"/v1/batches/{batch}/cancel")


async def test_tenants_do_not_see_each_others_batches(stack: Stack) -> None:
    stack.batch()
    api = stack.api(env={"PENSTOCK_API_KEYS": "first,second"}, ready=False)

    def client(key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=api.url, timeout=30, headers={"Authorization": f"Bearer {key}"})

    async with client("first") as mine, client("second") as other:
        batch = await create(mine, "file-000000000000000000000000")
        await poll(mine, batch["id"])
        for path in ("", "/results", "/events"):
            assert (await other.get(f"/v1/batches/{batch['id']}{path}")).status_code == 404
        assert (await other.post(f"/v1/batches/{batch['id']}/cancel")).status_code == 404
        assert (await other.get("/v1/batches")).json()["data"] == []
        assert [found["id"] for found in (await mine.get("/v1/batches")).json()["data"]] == [batch["id"]]
