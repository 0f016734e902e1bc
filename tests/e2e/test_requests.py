"""A request that is known by its id, on any replica: going on with its events, its state, cancel, delete."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import redis

from api.cursors import cursor_of
from shared.ids import new_request_id
from shared.keys import Keys
from tests.support.client import Seen, read_line, stream_chat
from tests.support.stack import Stack, eventually, running_stack

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 60}
STREAM = {**CHAT, "stream": True}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        started.worker("--max-active", "64", "--", "--ttft-ms", "20", "--itl-ms", "20")
        started.worker("--model", "slow", "--max-active", "32", "--", "--ttft-ms", "50000")
        for _ in range(2):
            started.api("--disconnect-grace-s", "0.3", env={"GATEWAY_API_KEYS": "alpha,beta"})
        yield started


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=30, headers={"X-API-Key": "alpha"}, limits=limits) as client:
        yield client


def events_url(stack: Stack, rid: str, replica: int = 1) -> str:
    return f"{stack.apis[replica].url}/v1/requests/{rid}/events"


async def a_stream(stack: Stack, http: httpx.AsyncClient, tokens: int = 60) -> httpx.Response:
    body = {**STREAM, "model": "sim", "max_tokens": tokens}
    return await http.post(f"{stack.apis[0].url}/v1/chat/completions", json=body)


async def events_after(client: httpx.AsyncClient, url: str, cursor: str) -> str:
    async with client.stream("GET", url, headers={"Last-Event-ID": cursor}) as answer:
        assert answer.status_code == 200
        return "".join([part async for part in answer.aiter_text()])


def cursors(text: str) -> list[str]:
    return [line[4:] for line in text.splitlines() if line.startswith("id: ")]


async def test_behind_every_cursor_of_a_finished_stream_comes_exactly_the_rest(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    answer = await a_stream(stack, http)
    whole, rid = answer.text, answer.headers["x-penstock-request"]
    assert await events_after(http, events_url(stack, rid), "0") == whole
    for cursor in cursors(whole):
        rest = await events_after(http, events_url(stack, rid), cursor)
        assert rest == whole.partition(f"id: {cursor}\n")[2].partition("\n\n")[2]
        assert await events_after(http, events_url(stack, rid), cursor.partition("-")[0]) == rest, "an offset will do"
    named = await http.get(events_url(stack, rid), params={"starting_after": cursors(whole)[-2]})
    assert cursors(named.text) == cursors(whole)[-1:]


async def test_several_readers_on_both_replicas_join_a_running_stream_where_they_like(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    seen, readers = Seen(), []
    body = {**STREAM, "model": "sim", "max_tokens": 200}
    async with http.stream("POST", f"{stack.apis[0].url}/v1/chat/completions", json=body) as answer:
        rid = answer.headers["x-penstock-request"]
        lines = []
        async for line in answer.aiter_lines():
            lines.append(line)
            read_line(seen, line)
            if line.startswith("id: ") and len(seen.ids) % 10 == 0:
                for replica in (0, 1):
                    url = events_url(stack, rid, replica)
                    readers.append((seen.ids[-1], asyncio.create_task(events_after(http, url, seen.ids[-1]))))
    assert len(readers) >= 10
    whole = "\n".join(lines) + "\n"
    for cursor, reader in readers:
        rest = await reader
        assert whole.endswith(rest)
        assert cursors(rest) == seen.ids[seen.ids.index(cursor) + 1 :]
        assert cursors(rest)


async def test_cursors_inside_a_frame_of_several_events_are_cursors(stack: Stack, http: httpx.AsyncClient) -> None:
    """A worker that cannot flush while Redis stands still puts what has come meanwhile into one frame."""
    running = asyncio.create_task(a_stream(stack, http, 300))
    flushed = stack.workers[0].metric("penstock_flushed_frames_total")
    await eventually(
        lambda: stack.workers[0].metric("penstock_flushed_frames_total") > flushed + 5, 30, "text is on its way"
    )
    os.kill(stack.redis.pid, signal.SIGSTOP)
    await asyncio.sleep(0.4)
    os.kill(stack.redis.pid, signal.SIGCONT)
    answer = await running
    rid, whole = answer.headers["x-penstock-request"], answer.text
    with redis.Redis.from_url(stack.redis_url) as server:
        log = server.get(Keys("sim").log(rid))
    assert isinstance(log, bytes)
    inside = [cursor for cursor in cursors(whole) if log[cursor_of(cursor).offset :].startswith(b"data: ")]
    assert len(inside) >= 5, "no frame had several events"
    for cursor in inside:
        rest = await events_after(http, events_url(stack, rid), cursor)
        assert rest == whole.partition(f"id: {cursor}\n")[2].partition("\n\n")[2]


async def test_what_is_no_cursor_is_refused(stack: Stack, http: httpx.AsyncClient) -> None:
    answer = await a_stream(stack, http)
    rid, last = answer.headers["x-penstock-request"], cursor_of(cursors(answer.text)[-1])
    beside = [f"{last.offset + aside}{mark}" for aside in (-1, 1) for mark in ("", f"-{last.mark}")]
    for sent in ("abc", "-1", "1e3", "3", *beside, f"{last.offset}-", "9" * 15, "9" * 5000, "\u0664"):
        refused = await http.get(events_url(stack, rid), headers={"Last-Event-ID": sent.encode()})  # type: ignore[dict-item]
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_cursor"), sent


async def test_an_id_of_an_attempt_that_did_not_write_there_is_refused(stack: Stack, http: httpx.AsyncClient) -> None:
    answer = await a_stream(stack, http)
    rid, ids = answer.headers["x-penstock-request"], cursors(answer.text)
    for one in (ids[0], ids[-1]):
        sent = {"Last-Event-ID": f"{cursor_of(one).offset}-zzzzzz"}  # attempts' ids are hexadecimal
        refused = await http.get(events_url(stack, rid), headers=sent)
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "history_lost")


async def test_unknown_and_foreign_requests_are_not_found_and_trimmed_results_are_gone(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    rid = (await a_stream(stack, http)).headers["x-penstock-request"]
    base = f"{stack.apis[1].url}/v1/requests"
    for other, headers in ((rid, {"X-API-Key": "beta"}), (new_request_id(), {}), ("nonsense", {})):
        answers = [
            await http.get(f"{base}/{other}", headers=headers),
            await http.get(f"{base}/{other}/events", headers=headers),
            await http.post(f"{base}/{other}/cancel", headers=headers),
            await http.delete(f"{base}/{other}", headers=headers),
        ]
        assert [(a.status_code, a.json()["error"]["code"]) for a in answers] == [(404, "not_found")] * 4
    with redis.Redis.from_url(stack.redis_url) as server:
        assert server.delete(Keys("sim").log(rid)) == 1
    gone = await http.get(f"{base}/{rid}/events")
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "result_expired")


async def test_the_state_of_a_request_says_when_to_look_again_and_ends_with_its_usage(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    async with http.stream(
        "POST", f"{stack.apis[0].url}/v1/chat/completions", json={**STREAM, "model": "sim"}
    ) as answer:
        rid = answer.headers["x-penstock-request"]
        assert answer.headers["x-penstock-attempt"] == "1"
        assert 0 <= int(answer.headers["x-penstock-queue-ms"]) < 5_000
        running = await http.get(f"{stack.apis[1].url}/v1/requests/{rid}")
        await answer.aread()
    assert (running.json()["state"], int(running.headers["Retry-After"]) >= 1) == ("running", True)
    ended = await http.get(f"{stack.apis[1].url}/v1/requests/{rid}")
    known = ended.json()
    assert "Retry-After" not in ended.headers
    assert (known["id"], known["state"], known["reason"], known["attempts"]) == (rid, "succeeded", "completed", 1)
    assert known["queued_at_ms"] <= known["started_at_ms"] <= known["finished_at_ms"]
    assert known["usage"] == {"prompt_tokens": 6, "completion_tokens": 60, "total_tokens": 66}


async def running_on(stack: Stack, pool: str, count: int) -> list[str]:
    """The ids of what runs in a pool, once that is `count` requests."""
    with redis.Redis.from_url(stack.redis_url) as server:

        def rids() -> list[str]:
            names = server.scan_iter(Keys(pool).run("*"))
            return [rid.decode() for name in names for rid in server.hkeys(name)]

        await eventually(lambda: len(rids()) == count, 30, f"{count} requests run in {pool}")
        return rids()


async def test_a_cancelled_request_is_freed_long_before_the_next_beat_while_its_worker_flushes_nothing(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    url = f"{stack.apis[0].url}/v1/chat/completions"
    waiting = [asyncio.create_task(http.post(url, json={**CHAT, "model": "slow"})) for _ in range(30)]
    took_s = []
    worker = stack.workers[1]
    for rid in await running_on(stack, "slow", 30):
        left = worker.metric("penstock_attempts_running")
        began_s = time.monotonic()
        cancelled = await http.post(f"{stack.apis[1].url}/v1/requests/{rid}/cancel")
        assert cancelled.status_code == 200
        await eventually(lambda at=left: worker.metric("penstock_attempts_running") < at, 30, "it is freed")
        took_s.append(time.monotonic() - began_s)
    for answer in await asyncio.gather(*waiting):
        assert (answer.status_code, answer.json()["error"]["code"]) == (499, "cancelled")
    # a beat comes each second: with it alone, half of them would take longer than 0.5 s
    assert sorted(took_s)[len(took_s) // 2] < 0.45, sorted(took_s)


async def test_a_queued_request_is_cancelled_at_once_and_cancelling_again_changes_nothing(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    url = f"{stack.apis[0].url}/v1/chat/completions"
    blockers = [asyncio.create_task(http.post(url, json={**CHAT, "model": "slow"})) for _ in range(32)]
    await running_on(stack, "slow", 32)
    queued = asyncio.create_task(http.post(url, json={**CHAT, "model": "slow"}))
    with redis.Redis.from_url(stack.redis_url) as server:
        queue = Keys("slow").queue("standard")
        await eventually(lambda: server.xlen(queue) == 1, 30, "it is queued")
        ((_, fields),) = server.xrange(queue)
    rid = fields[b"rid"].decode()
    for _ in range(2):
        known = (await http.post(f"{stack.apis[1].url}/v1/requests/{rid}/cancel")).json()
        assert (known["state"], known["reason"]) == ("cancelled", "cancelled")
    assert (await queued).json()["error"]["code"] == "cancelled"
    for blocker in blockers:
        blocker.cancel()
    await running_on(stack, "slow", 0)


async def test_a_deleted_request_is_stopped_told_so_and_gone(stack: Stack, http: httpx.AsyncClient) -> None:
    reading = asyncio.create_task(stream_chat(http, stack.apis[0].url, 5_000, model="sim"))
    (rid,) = await running_on(stack, "sim", 1)
    deleted = await http.delete(f"{stack.apis[1].url}/v1/requests/{rid}")
    assert deleted.json() == {"id": rid, "object": "request.deleted", "deleted": True}
    seen = await reading
    seen.check(5_000)
    assert [error["code"] for error in seen.errors] == ["cancelled"]
    await running_on(stack, "sim", 0)
    for path in ("", "/events"):
        assert (await http.get(f"{stack.apis[0].url}/v1/requests/{rid}{path}")).status_code == 404


async def test_an_answer_that_was_not_streamed_is_read_as_events_too(stack: Stack, http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{stack.apis[0].url}/v1/chat/completions", json={**CHAT, "model": "sim"})
    seen = Seen(rid=answer.headers["x-penstock-request"])
    text = await events_after(http, events_url(stack, seen.rid), "0")
    for line in text.splitlines():
        read_line(seen, line)
    assert (seen.text, seen.done) == (answer.json()["choices"][0]["message"]["content"], 1)
    assert await events_after(http, events_url(stack, seen.rid), seen.ids[-1]) == ""
