"""Faults on real processes with the sim engine. Every test proves that its fault happened."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import httpx
import pytest
import redis

from tests.support.client import Seen, stream_chat
from tests.support.stack import Stack, eventually, metric, running_stack


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as opened:
        yield opened


def control(stack: Stack) -> redis.Redis:
    return redis.Redis.from_url(stack.redis_url)


async def test_killing_the_subscriber_connection_every_500_ms_changes_no_clients_text(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        stack.worker("--", "--itl-ms", "25", "--slots", "256")
        api = stack.api()
        streams = asyncio.gather(*(stream_chat(client, api.url, 160) for _ in range(200)))
        kills = 0
        with control(stack) as server:
            while not streams.done():
                await asyncio.sleep(0.5)
                kills += int(server.client_kill_filter(_type="pubsub"))
        seen = await streams
        assert kills >= 5
        assert metric(f"{api.url}/metrics", "penstock_resubscribes_total") >= 5
        assert metric(f"{api.url}/metrics", "penstock_gap_repairs_total", cause="reconnect") > 100
    for one in seen:
        one.check(160)
        assert one.whole


async def test_a_killed_workers_streams_end_whole_or_with_one_explicit_error_within_10_s(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        stack.worker("--", "--itl-ms", "20", "--ttft-ms", "10")
        stack.worker("--", "--itl-ms", "20", "--ttft-ms", "10")
        api = stack.api()
        streams = [asyncio.create_task(stream_chat(client, api.url, 100)) for _ in range(64)]
        victim = stack.workers[0]
        await eventually(lambda: victim.metric("penstock_attempts_running") >= 10, 10, "the victim runs requests")
        victim.kill()
        killed_s = time.monotonic()
        seen: list[Seen] = await asyncio.gather(*streams)
    lost = [one for one in seen if not one.whole]
    assert lost, "the kill hit no stream"
    for one in seen:
        one.check(100)
        assert one.ended_s - killed_s < 10
    assert {error["code"] for one in lost for error in one.errors} == {"worker_lost"}


async def test_requests_of_a_killed_worker_of_which_nothing_was_visible_are_run_again(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        stack.worker("--", "--ttft-ms", "3000")
        api = stack.api()
        streams = [asyncio.create_task(stream_chat(client, api.url, 5)) for _ in range(16)]
        victim = stack.workers[0]
        await eventually(lambda: victim.metric("penstock_attempts_running") == 16, 10, "the victim runs everything")
        stack.worker("--", "--ttft-ms", "10")
        victim.kill()
        killed_s = time.monotonic()
        seen = await asyncio.gather(*streams)
    for one in seen:
        one.check(5)
        assert one.whole
        assert one.first_s - killed_s < 8


async def test_a_killed_redis_that_comes_back_with_its_log_loses_nothing(client: httpx.AsyncClient) -> None:
    with running_stack(aof=True) as stack:
        stack.worker("--", "--itl-ms", "30", "--slots", "32")
        api = stack.api()
        streams = asyncio.gather(*(stream_chat(client, api.url, 100) for _ in range(64)))
        worker = stack.workers[0]
        await eventually(lambda: worker.metric("penstock_attempts_running") == 32, 10, "half runs, half is queued")
        stack.redis.kill()
        await asyncio.sleep(1)
        stack.start_redis()
        seen = await streams
    for one in seen:
        one.check(100)
        assert one.whole
    assert max(one.longest_pause_s for one in seen) > 1, "nobody noticed the fault"


async def test_a_client_that_hangs_up_frees_the_engine(client: httpx.AsyncClient) -> None:
    with running_stack() as stack:
        worker = stack.worker("--", "--itl-ms", "50")
        api = stack.api("--disconnect-grace-s", "0.2")
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1000, "stream": True}
        async with client.stream("POST", f"{api.url}/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    break
        await eventually(lambda: worker.metric("penstock_attempts_running") == 0, 5, "the stream is freed")
        whole = asyncio.create_task(client.post(f"{api.url}/v1/chat/completions", json={**body, "stream": False}))
        await eventually(lambda: worker.metric("penstock_attempts_running") == 1, 5, "the second request runs")
        whole.cancel()
        await eventually(lambda: worker.metric("penstock_attempts_running") == 0, 5, "the other is freed")
        with control(stack) as server:
            assert server.hgetall("ps:{sim.0}:ten") == {}
            assert server.hlen(next(iter(server.scan_iter("ps:{sim.0}:run:*")), "none")) == 0
        assert (
            metric(f"http://127.0.0.1:{worker.ops_port}/metrics", "penstock_attempts_total", outcome="cancelled") == 2
        )


async def test_a_terminated_worker_drains_and_its_clients_notice_nothing(client: httpx.AsyncClient) -> None:
    with running_stack() as stack:
        first = stack.worker("--", "--itl-ms", "20")
        stack.worker("--", "--itl-ms", "20")
        api = stack.api()
        streams = [asyncio.create_task(stream_chat(client, api.url, 100)) for _ in range(32)]
        await eventually(lambda: first.metric("penstock_attempts_running") >= 5, 10, "the first worker runs requests")
        status = await asyncio.to_thread(first.stop)
        seen = await asyncio.gather(*streams)
        later = await stream_chat(client, api.url, 10)
    assert status == 0
    for one in [*seen, later]:
        assert one.whole, one


async def test_a_worker_that_slept_past_its_lease_is_refused_and_goes_on_under_a_new_id(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        zombie = stack.worker("--", "--itl-ms", "50", "--slots", "8")
        api = stack.api()
        streams = [asyncio.create_task(stream_chat(client, api.url, 200)) for _ in range(8)]
        await eventually(lambda: zombie.metric("penstock_flushed_frames_total") >= 64, 10, "all have seen text")
        os.kill(zombie.pid, signal.SIGSTOP)
        try:
            seen = await asyncio.gather(*streams)
        finally:
            os.kill(zombie.pid, signal.SIGCONT)
        await eventually(lambda: zombie.metric("penstock_attempts_running") == 0, 5, "the zombie lets go")
        assert (
            zombie.metric("penstock_worker_condemned_total") >= 1 or zombie.metric("penstock_fenced_appends_total") >= 1
        )
        await eventually(lambda: httpx.get(f"{api.url}/readyz").status_code == 200, 5, "it serves again")
        again = await stream_chat(client, api.url, 5)
    for one in seen:
        one.check(200)
        assert [error["code"] for error in one.errors] == ["worker_lost"]
    assert again.whole
