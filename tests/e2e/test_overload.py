"""Overload, deadlines, lanes and tenants at the door, by OpenAI's SDK and by plain HTTP, on real processes.

One worker with one slot and 50 ms a token; replicas with different settings share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
import redis

from shared.keys import Keys
from tests.support.client import stream_chat
from tests.support.stack import Api, Stack, eventually, get, running_stack

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
STREAM = {**CHAT, "stream": True}
K = Keys("sim")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        started.worker("--max-active", "1", "--", "--itl-ms", "50", "--ttft-ms", "5")
        started.api()
        yield started


def control(stack: Stack) -> redis.Redis:
    return redis.Redis.from_url(stack.redis_url, decode_responses=True)


@contextlib.asynccontextmanager
async def occupied(stack: Stack) -> AsyncIterator[None]:
    """The one slot is taken as long as it lasts."""
    (worker,) = stack.workers
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=60) as client:
        async with client.stream("POST", "/v1/chat/completions", json={**STREAM, "max_tokens": 2_000}) as long:
            rid = long.headers["x-penstock-request"]
            try:
                yield
            finally:
                await client.post(f"/v1/requests/{rid}/cancel")
        await eventually(lambda: worker.metric("penstock_attempts_running") == 0, 30, "the slot is free")


async def ask(url: str, headers: dict[str, str] | None = None, **changes: object) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        return await client.post("/v1/chat/completions", json={**CHAT, **changes}, headers=headers)


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def retry_after_s(answer: httpx.Response) -> int:
    assert 0 < int(answer.headers["retry-after-ms"]) <= 30_000
    return int(answer.headers["Retry-After"])


# ---- deadlines


async def test_a_request_whose_deadline_passes_in_the_queue_is_a_503_that_says_when_to_come_again(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    within = {"X-Request-Timeout-Ms": "600"}
    async with occupied(stack):
        began_s = time.monotonic()
        answers = await asyncio.gather(
            http.post("/v1/chat/completions", json=CHAT, headers=within),
            http.post("/v1/chat/completions", json=STREAM, headers=within),
        )
        assert 0.6 <= time.monotonic() - began_s < 20
        with control(stack) as server:
            assert server.zcard(K.fair("standard")) == 0
        until = {"X-Request-Deadline": (datetime.now(UTC) + timedelta(seconds=5)).isoformat()}
        moment = await http.post("/v1/chat/completions", json=CHAT, headers={**until, "X-Request-Timeout-Ms": "60000"})
    for answer in (*answers, moment):
        assert refused(answer) == (503, "queue_timeout")
        assert 4 <= retry_after_s(answer) <= 6


async def test_a_stream_that_was_opened_and_waits_past_its_deadline_ends_with_that_error(stack: Stack) -> None:
    api = stack.api("--header-hold-s", "0.2")
    async with occupied(stack):
        answer = await ask(api.url, {"X-Request-Timeout-Ms": "700"}, stream=True)
    assert answer.status_code == 200
    assert answer.text.startswith(": queued position=")
    assert answer.text.count("data: ") == 1
    assert '"code":"queue_timeout"' in answer.text
    assert "[DONE]" not in answer.text


async def test_a_request_that_runs_past_its_clients_deadline_is_stopped_and_told_so(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    (worker,) = stack.workers
    within = {"X-Request-Timeout-Ms": "700"}
    whole = await http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 400}, headers=within)
    assert refused(whole) == (504, "deadline_exceeded")
    assert whole.headers["x-should-retry"] == "false"
    async with httpx.AsyncClient(timeout=30, headers=within) as impatient:
        streamed = await stream_chat(impatient, stack.apis[0].url, 400)
    streamed.check(400)
    assert streamed.text
    assert [error["code"] for error in streamed.errors] == ["deadline_exceeded"]
    assert 0.6 < streamed.ended_s - streamed.began_s < 20
    await eventually(lambda: worker.metric("penstock_attempts_running") == 0, 30, "the engine is freed")


async def test_a_deadline_that_has_passed_is_not_queued_and_not_to_be_tried_again(http: httpx.AsyncClient) -> None:
    for moment in (str(int((time.time() - 5) * 1000)), "2020-02-02T02:02:02Z"):
        answer = await http.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Deadline": moment})
        assert refused(answer) == (504, "deadline_exceeded")
        assert answer.headers["x-should-retry"] == "false"


SHIFTED = """\
import time
real_s, real_ns = time.time, time.time_ns
time.time = lambda: real_s() + {shift_s}
time.time_ns = lambda: real_ns() + {shift_s} * 1_000_000_000
"""


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_replicas_clock_decides_nothing(stack: Stack, hours: int) -> None:
    folder = stack.folder / f"clock{hours}"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SHIFTED.format(shift_s=hours * 3600))
    api = stack.api(env={"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", str(Path.cwd()))])})
    answer = await ask(api.url, {"X-Request-Timeout-Ms": "5000"})
    assert answer.status_code == 200
    with control(stack) as server:
        finish_by_ms = int(server.hget(K.record(answer.headers["x-penstock-request"]), "finish_by_ms") or 0)
    assert abs(finish_by_ms / 1000 - time.time() - 5) < 5
    async with occupied(stack):
        began_s = time.monotonic()
        assert refused(await ask(api.url, {"X-Request-Timeout-Ms": "600"})) == (503, "queue_timeout")
        assert 0.5 < time.monotonic() - began_s < 20


@pytest.mark.parametrize(
    ("name", "value"), [("X-Request-Timeout-Ms", "0"), ("X-Request-Timeout-Ms", "5s"), ("X-Request-Deadline", "soon")]
)
async def test_a_time_that_is_none_is_a_400_that_names_its_header(
    http: httpx.AsyncClient, name: str, value: str
) -> None:
    answer = await http.post("/v1/chat/completions", json=CHAT, headers={name: value})
    assert refused(answer) == (400, "invalid_request_error")
    assert answer.json()["error"]["param"] == name
    assert answer.headers["x-should-retry"] == "false"


async def test_each_lane_has_its_own_queue_timeout_and_no_client_makes_it_longer(stack: Stack) -> None:
    api = stack.api(env={"QUEUE_TIMEOUT_S": "60,interactive=0.5"})
    hurried = {"X-Priority-Lane": "interactive", "X-Request-Timeout-Ms": "60000"}
    async with occupied(stack):
        patient = asyncio.create_task(ask(api.url))
        answer = await ask(api.url, hurried)
        assert refused(answer) == (503, "queue_timeout")
        assert not patient.done()
    assert (await patient).status_code == 200


async def test_what_cannot_start_in_time_is_refused_at_once(stack: Stack, http: httpx.AsyncClient) -> None:
    with control(stack) as server:
        async with occupied(stack):
            waiting = [asyncio.create_task(ask(stack.apis[0].url)) for _ in range(4)]
            await eventually(lambda: server.zcard(K.fair("standard")) == 4, 30, "they wait")
            server.hset(K.sched, "rate:standard", f"10 10 {int(time.time() * 1000)}")
            answer = await http.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Timeout-Ms": "1500"})
        assert {one.status_code for one in await asyncio.gather(*waiting)} == {200}
        server.hdel(K.sched, "rate:standard")
    assert refused(answer) == (429, "deadline_unachievable")
    assert 2 <= retry_after_s(answer) <= 4


# ---- full, busy, closed


async def test_the_sdk_comes_again_when_it_was_told_to_and_is_served(stack: Stack) -> None:
    api = stack.api("--queue-max", "6", "--tenant-share", "1")
    # a backlog that drains, so that the lane's rate is known
    assert {one.status_code for one in await asyncio.gather(*(ask(api.url) for _ in range(6)))} == {200}
    told: list[tuple[float, float]] = []
    came: list[float] = []

    async def on_request(request: httpx2.Request) -> None:
        del request
        came.append(time.monotonic())

    async def on_response(response: httpx2.Response) -> None:
        if response.status_code == 429:
            assert (await response.aread()).find(b"queue_full") > 0
            told.append((time.monotonic(), int(response.headers["retry-after-ms"]) / 1000))

    hooks: dict[str, list[Any]] = {"request": [on_request], "response": [on_response]}
    http_client = openai.DefaultAsyncHttpxClient(event_hooks=hooks)
    async with openai.AsyncOpenAI(
        base_url=f"{api.url}/v1", api_key="none", max_retries=20, http_client=http_client
    ) as sdk:
        async with occupied(stack):
            before = asyncio.gather(*(ask(api.url, max_tokens=4) for _ in range(6)))
            with control(stack) as server:
                await eventually(lambda: server.zcard(K.fair("standard")) == 6, 30, "the queue is full")
            asked = asyncio.create_task(sdk.chat.completions.with_raw_response.create(model="sim", **CHAT))
            await eventually(lambda: told, 30, "it was refused")
        raw = await asked
    assert raw.retries_taken == len(told) >= 1
    assert raw.parse().usage is not None
    waits_s = [again - at for (at, _), again in zip(told, came[1:], strict=True)]
    for waited_s, (_, said_s) in zip(waits_s, told, strict=True):
        assert said_s < 5, "several are served in a second: nobody is sent away for the five of the fallback"
        assert said_s <= waited_s < said_s + 5
    assert {one.status_code for one in await before} == {200}


async def test_a_tenant_that_holds_its_share_is_told_so_and_another_one_gets_in(stack: Stack) -> None:
    api = stack.api("--queue-max", "4", "--tenant-share", "0.5")
    with control(stack) as server:
        async with occupied(stack):
            waiting = [asyncio.create_task(ask(api.url, user="flood")) for _ in range(2)]
            await eventually(lambda: server.zcard(K.fair("standard")) == 2, 30, "they wait")
            answer = await ask(api.url, user="flood")
            waiting.append(asyncio.create_task(ask(api.url, user="small")))
            await eventually(lambda: server.zcard(K.fair("standard")) == 3, 30, "the other one's waits, too")
    assert refused(answer) == (429, "queue_full")
    assert "You hold your share of the queue: 2 of your requests" in answer.json()["error"]["message"]
    assert retry_after_s(answer) >= 1
    assert {one.status_code for one in await asyncio.gather(*waiting)} == {200}


async def test_a_tenant_at_its_cap_is_told_its_limit(stack: Stack) -> None:
    api = stack.api(env={"MAX_CONCURRENT_REQUESTS": "1"})
    async with occupied(stack):
        answer = await ask(api.url)
    assert refused(answer) == (429, "rate_limit_exceeded")
    names = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
    assert [answer.headers[name] for name in names] == ["1", "0", "2s"]
    assert retry_after_s(answer) in {2, 3}


async def test_a_lane_in_mode_reject_takes_what_a_slot_is_free_for_and_others_wait(stack: Stack) -> None:
    api = stack.api(env={"QUEUE_MODE": "queue,interactive=reject"})
    hurried = {"X-Priority-Lane": "interactive"}
    assert (await ask(api.url, hurried)).status_code == 200
    async with occupied(stack):
        answer = await ask(api.url, hurried)
        waits = asyncio.create_task(ask(api.url))
        await asyncio.wait({waits}, timeout=0.2)
        assert not waits.done()
    assert refused(answer) == (429, "no_free_slot")
    assert retry_after_s(answer) >= 1
    assert (await waits).status_code == 200


async def test_a_lane_that_is_drained_is_a_503_and_other_lanes_serve(stack: Stack, http: httpx.AsyncClient) -> None:
    with control(stack) as server:
        server.hset(K.lanes, "standard.draining", "1")
        try:
            answer = await http.post("/v1/chat/completions", json=CHAT)
            other = await http.post("/v1/chat/completions", json=CHAT, headers={"X-Priority-Lane": "batch"})
        finally:
            server.hdel(K.lanes, "standard.draining")
    assert refused(answer) == (503, "lane_draining")
    assert 8 <= retry_after_s(answer) <= 12
    assert other.status_code == 200


async def test_refusals_that_are_no_overload_say_nothing_of_coming_again(stack: Stack, http: httpx.AsyncClient) -> None:
    api = stack.api("--max-body-bytes", "2000", ready=False, env={"GATEWAY_API_KEYS": "alpha"})
    answers = [
        await http.post("/v1/chat/completions", json={**CHAT, "model": "none"}),
        await http.get("/v1/requests/req_0none"),
        await ask(api.url),
        await ask(api.url, {"X-API-Key": "alpha"}, user="x" * 2000),
    ]
    codes = [(404, "model_not_found"), (404, "not_found"), (401, "invalid_api_key"), (413, "request_too_large")]
    assert [refused(answer) for answer in answers] == codes
    for answer in answers:
        assert not {"retry-after", "retry-after-ms", "x-should-retry"} & answer.headers.keys()


# ---- lanes and tenants


async def test_who_asks_for_more_than_the_highest_lane_gets_that_one_and_is_told_in_the_headers(stack: Stack) -> None:
    api = stack.api("--max-lane", "standard")
    told = {}
    for tier in ("priority", "default", "flex"):
        answer = await ask(api.url, service_tier=tier)
        assert answer.status_code == 200
        told[tier] = (answer.headers["x-penstock-lane"], answer.headers["x-penstock-service-tier"])
    assert told == {
        "priority": ("standard", "default"),
        "default": ("standard", "default"),
        "flex": ("batch", "flex"),
    }
    streamed = await ask(api.url, {"X-Priority-Lane": "interactive"}, stream=True)
    assert streamed.headers["x-penstock-lane"] == "standard"


async def test_a_strict_replica_refuses_a_lane_that_is_too_high(stack: Stack) -> None:
    api = stack.api("--max-lane", "batch", "--max-lane-strict")
    answer = await ask(api.url, {"X-Priority-Lane": "standard"})
    assert refused(answer) == (403, "lane_not_allowed")
    assert "`standard`" in answer.json()["error"]["message"]
    assert "Retry-After" not in answer.headers
    assert (await ask(api.url, {"X-Priority-Lane": "batch"})).status_code == 200
    for nothing in ({}, {"service_tier": "auto"}):
        unasked = await ask(api.url, **nothing)
        assert (unasked.status_code, unasked.headers.get("x-penstock-lane")) == (200, "batch")


async def test_who_joins_a_request_is_told_the_lane_that_serves_it(stack: Stack, http: httpx.AsyncClient) -> None:
    del stack
    keyed = {"Idempotency-Key": "lane-1", "X-Priority-Lane": "batch"}
    await http.post("/v1/chat/completions", json=CHAT, headers=keyed)
    again = await http.post("/v1/chat/completions", json=CHAT, headers={**keyed, "X-Priority-Lane": "interactive"})
    assert (again.headers["idempotency-status"], again.headers["x-penstock-lane"]) == ("replayed", "batch")


@pytest.mark.parametrize(
    ("user", "tenant"),
    [("alice", "user-alice"), (None, "anonymous"), ("a\nb" + "c" * 1_000_000, "user-")],
)
async def test_without_keys_the_bodys_user_is_the_tenant_and_its_requests_are_found(
    stack: Stack, http: httpx.AsyncClient, user: object, tenant: str
) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, "user": user})
    assert answer.status_code == 200
    rid = answer.headers["x-penstock-request"]
    with control(stack) as server:
        stored = server.hget(K.record(rid), "tenant")
    assert isinstance(stored, str)
    assert stored.startswith(tenant)
    assert len(stored) <= 69
    assert stored.isprintable()
    assert (await http.get(f"/v1/requests/{rid}")).json()["state"] == "succeeded"


# ---- nobody there


async def test_without_a_worker_a_client_is_told_what_one_takes_to_start() -> None:
    with running_stack() as small:
        worker = small.worker()
        api = small.api()
        with control(small) as server:
            took_ms = int(server.hget(K.sched, "cold_start_ms") or 0)
            assert 100 < took_ms < 60_000
            worker.stop()
            server.hset(K.sched, "cold_start_ms", "12000")
            await eventually(lambda: get(f"{api.url}/readyz")[0] == 503, 30, "the worker is gone")
            known = await ask(api.url)
            server.hdel(K.sched, "cold_start_ms")
            await asyncio.sleep(1.1)  # the replica's view of the registry is a second old at most
            fallback = await ask(api.url)
    assert refused(known) == refused(fallback) == (503, "no_capacity")
    assert 10 <= retry_after_s(known) <= 15
    assert 20 <= retry_after_s(fallback) <= 30
    assert "about 12 s" in known.json()["error"]["message"]


async def test_a_request_that_is_held_is_served_by_the_first_worker_that_comes() -> None:
    with running_stack() as small:
        small.worker().stop()
        api = held_replica(small, "20")
        held = [asyncio.create_task(ask(api.url, stream=stream)) for stream in (False, True)]
        with control(small) as server:
            await eventually(lambda: server.zcard(K.fair("standard")) == 2, 30, "they wait")
        small.worker()
        answers = await asyncio.gather(*held)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].text.endswith("data: [DONE]\n\n")


async def test_a_request_that_is_held_in_vain_is_told_that_there_is_no_worker() -> None:
    with running_stack() as small:
        small.worker().stop()
        api = held_replica(small, "0.8", "--header-hold-s", "0.3")
        whole, streamed = await asyncio.gather(ask(api.url), ask(api.url, stream=True))
    assert refused(whole) == (503, "no_capacity")
    assert retry_after_s(whole) >= 1
    assert streamed.status_code == 200
    assert streamed.text.startswith(": queued position=")
    assert '"code":"no_capacity"' in streamed.text


def held_replica(stack: Stack, hold_s: str, *flags: str) -> Api:
    """A replica that holds requests, and is ready though no worker lives."""
    return stack.api("--cold-start-hold-s", hold_s, *flags)
