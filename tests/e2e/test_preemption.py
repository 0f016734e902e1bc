"""A worker full of batch streams, and interactive requests that need its slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import redis

from shared.keys import Keys
from tests.support.client import Seen, stream_chat
from tests.support.stack import Stack, Worker, eventually, running_stack

SLOTS = 6
LONG = 300
WHOLE = 1_000
"""Tokens that take longer than eight interactive requests one after the other, on a busy machine too."""
SHORT = 5


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Room for 4, by the engine's own count: the operator asks for more."""
    with running_stack() as started:
        started.worker("--", "--slots", str(SLOTS), "--itl-ms", "15", env={"MAX_ACTIVE": "99"})
        started.api()
        yield started


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        yield client


async def batches(
    stack: Stack, http: httpx.AsyncClient, count: int, tokens: int = LONG, **extra: object
) -> list[asyncio.Task[Seen]]:
    """So many long batch streams; they run when this returns."""
    url = stack.apis[0].url
    tasks = [asyncio.create_task(stream_chat(http, url, tokens, service_tier="flex", **extra)) for _ in range(count)]
    (worker,) = stack.workers
    await eventually(lambda: worker.metric("penstock_attempts_running") == count, 30, "the batch runs")
    return tasks


async def interactive(stack: Stack, http: httpx.AsyncClient) -> Seen:
    seen = await stream_chat(http, stack.apis[0].url, SHORT, service_tier="priority")
    seen.check(SHORT)
    return seen


def record(stack: Stack, rid: str) -> dict[str, str]:
    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as client:
        return client.hgetall(Keys("sim").record(rid))  # type: ignore[return-value]


def waited_for_one_of(stack: Stack, waiting: Seen, streams: list[Seen]) -> bool:
    """Whether it was started once one of the streams was over: as Redis has it, whenever the clients heard of it."""
    ended_at_ms = [int(record(stack, stream.rid)["finished_at_ms"]) for stream in streams]
    return int(record(stack, waiting.rid)["started_at_ms"]) >= min(ended_at_ms)


def preemptions(stack: Stack, **labels: str) -> float:
    return stack.workers[0].metric("penstock_preemptions_total", **labels)


async def claimed(worker: Worker, count: float) -> None:
    await eventually(lambda: worker.metric("penstock_claims_total", outcome="ok") == count, 30, f"{count:.0f} claims")


async def test_interactive_requests_get_the_slots_of_batch_streams_which_go_on_whole(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    before = preemptions(stack)
    tasks = await batches(stack, http, SLOTS, WHOLE)
    (worker,) = stack.workers
    assert worker.metric("penstock_worker_slots") == SLOTS
    claims, first = worker.metric("penstock_claims_total", outcome="ok"), []
    for _ in range(5):
        first.append(await interactive(stack, http))
        claims += 2  # its own, and that of the stream which takes the slot back: only then it is worth another one
        await claimed(worker, claims)
    more = await asyncio.gather(*(interactive(stack, http) for _ in range(3)))
    streams = await asyncio.gather(*tasks)
    for stream in streams:
        stream.check(WHOLE)
        assert stream.whole
    assert max(seen.ended_s for seen in (*first, *more)) < min(stream.ended_s for stream in streams), "nobody waited"
    records = [record(stack, stream.rid) for stream in streams]
    assert {found["completion_tokens"] for found in records} == {str(WHOLE)}, "usage counts the whole"
    assert {found["kills"] for found in records} == {"0"}
    yielded = [int(found.get("preempted", 0)) for found in records]
    assert sum(yielded) == preemptions(stack, outcome="preempted") - before
    assert 6 <= sum(yielded) <= 8, "each of the five, and of the three those that no other one had made room for"
    assert max(yielded) <= 3


async def test_streams_that_cannot_be_continued_keep_their_slots(stack: Stack, http: httpx.AsyncClient) -> None:
    before = preemptions(stack)
    tasks = await batches(stack, http, SLOTS, seed=7)
    seen = await interactive(stack, http)
    streams = await asyncio.gather(*tasks)
    assert waited_for_one_of(stack, seen, streams), "it has waited for a slot"
    assert preemptions(stack) == before
    for stream in streams:
        stream.check(LONG)
        assert stream.whole


async def test_a_standard_request_waits_its_turn(stack: Stack, http: httpx.AsyncClient) -> None:
    before = preemptions(stack)
    tasks = await batches(stack, http, SLOTS)
    seen = await stream_chat(http, stack.apis[0].url, SHORT)
    streams = await asyncio.gather(*tasks)
    assert waited_for_one_of(stack, seen, streams)
    assert preemptions(stack) == before


async def test_an_operator_may_allow_less_than_the_engine_can() -> None:
    with running_stack() as small:
        worker = small.worker("--", "--slots", str(SLOTS), env={"MAX_ACTIVE": "2"})
        assert worker.metric("penstock_worker_slots") == 2
