"""What a request leaves behind in the processes is gone at its end, and does not wait for a collection of cycles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support import litter
from tests.support.stack import Stack, eventually, running_stack

EACH = 40
"""Requests of a kind. What each of them leaves is more than what a process leaves for reasons of its own."""
MESSAGES = [{"role": "user", "content": "hello"}]
KINDS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "chat": (200, "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 5}),
    "completions": (200, "/v1/completions", {"prompt": "hello", "max_tokens": 5}),
    "responses": (200, "/v1/responses", {"input": "hello", "max_output_tokens": 16}),
    "messages": (200, "/v1/messages", {"messages": MESSAGES, "max_tokens": 5}),
    "unknown model": (404, "/v1/chat/completions", {"messages": MESSAGES, "model": "another"}),
    "refused": (400, "/v1/chat/completions", {"messages": MESSAGES, "n": -1}),
    "refused by the engine": (400, "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 100_000}),
}
"""By name: status, path and body."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        started.worker("--", "--max-model-len", "2000", env=litter.ENVIRON)
        started.api("--disconnect-grace-s", "0", env=litter.ENVIRON)
        yield started


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=30) as connected:
        yield connected


async def left(stack: Stack) -> dict[str, dict[str, int]]:
    """By process, what there is of a type at least as often as there were requests, once they are over."""
    (api,), (worker,) = stack.apis, stack.workers
    await eventually(lambda: worker.metric("penstock_attempts_running") == 0, 30, "nothing runs")
    await eventually(lambda: api.metric("penstock_streams_open") == 0, 30, "nobody follows anything")
    found = {process.name: await litter.of(process) for process in (api, worker)}
    return {name: {kind: times for kind, times in seen.items() if times >= EACH} for name, seen in found.items()}


NOTHING: dict[str, dict[str, int]] = {"api-0": {}, "worker-0": {}}


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_leaves_nothing(stack: Stack, client: httpx.AsyncClient, kind: str) -> None:
    status, path, body = KINDS[kind]
    await left(stack)
    for number in range(2 * EACH):
        answer = await client.post(path, json={"model": "sim", "stream": number % 2 == 0} | body)
        assert answer.status_code == status
    assert await left(stack) == NOTHING


async def test_a_client_that_goes_leaves_nothing(stack: Stack, client: httpx.AsyncClient) -> None:
    await left(stack)
    body = {"model": "sim", "messages": MESSAGES, "stream": True, "max_tokens": 1500}
    for _ in range(EACH):
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for _ in answer.aiter_raw():
                break
    assert await left(stack) == NOTHING


async def test_a_request_that_nobody_follows_leaves_nothing(stack: Stack, client: httpx.AsyncClient) -> None:
    await left(stack)
    body = {"model": "sim", "messages": MESSAGES, "max_tokens": 5}
    for _ in range(EACH):
        taken = await client.post("/v1/chat/completions", json=body, headers={"prefer": "respond-async"})
        assert taken.status_code == 202
        await client.get(taken.headers["location"])
        await client.delete(taken.headers["location"])
    assert await left(stack) == NOTHING


async def test_a_stream_that_goes_on_elsewhere_leaves_nothing() -> None:
    flags = ("--", "--itl-ms", "50", "--slots", "64")
    async with asyncio.timeout(120), httpx.AsyncClient(timeout=60) as client:
        with running_stack() as stack:
            first = stack.worker("--drain-s", "0", *flags)
            api = stack.api()
            body = {"model": "sim", "messages": MESSAGES, "stream": True, "max_tokens": 200}
            url = f"{api.url}/v1/chat/completions"
            asked = [asyncio.create_task(client.post(url, json=body)) for _ in range(EACH)]
            await eventually(lambda: first.metric("penstock_attempts_running") == EACH, 30, "all run")
            second = stack.worker(*flags, env=litter.ENVIRON)
            await litter.of(second)
            await asyncio.to_thread(first.stop)
            answers = await asyncio.gather(*asked)
            await eventually(lambda: second.metric("penstock_attempts_running") == 0, 30, "nothing runs")
            found = await litter.of(second)
            went_on = second.metric("penstock_resumes_total", policy="continue")
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)
    assert went_on == EACH
    assert {kind: times for kind, times in found.items() if times >= EACH} == {}


async def test_a_refusal_at_the_door_leaves_nothing() -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
    pictured = {"model": "sim", "messages": [{"role": "user", "content": [picture]}]}
    async with httpx.AsyncClient(timeout=60) as client:
        with running_stack() as stack:
            worker = stack.worker()
            api = stack.api("--fetch-images", "any", env=litter.ENVIRON)
            await litter.of(api)
            for number in range(EACH):
                keyed = {"idempotency-key": f"k{number}"}
                answer = await client.post(f"{api.url}/v1/chat/completions", json=pictured, headers=keyed)
                assert (answer.status_code, answer.json()["error"]["code"]) == (422, "image_not_fetched")
            of_images = await litter.of(api)
            await asyncio.to_thread(worker.stop)
            for _ in range(EACH):
                answer = await client.post(
                    f"{api.url}/v1/chat/completions", json={"model": "sim", "messages": MESSAGES}
                )
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_capacity")
            of_capacity = await litter.of(api)
    for found in (of_images, of_capacity):
        assert {kind: times for kind, times in found.items() if times >= EACH} == {}


async def test_what_is_looked_at_leaves_nothing(stack: Stack, client: httpx.AsyncClient) -> None:
    await left(stack)
    for _ in range(EACH):
        for path in ("/v1/models", "/metrics", "/readyz", "/nowhere"):
            await client.get(path)
    assert await left(stack) == NOTHING
