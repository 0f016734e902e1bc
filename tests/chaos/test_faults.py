"""Faults on real processes with the sim engine. Every test proves that its fault happened."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import httpx
import pytest
import redis

from shared.keys import Keys
from tests.support.amid import all_amid, kill_amid, workers_of
from tests.support.client import Seen, check_whole, stream_chat
from tests.support.stack import Stack, eventually, get, running_stack

KEYS = Keys("sim")


def control(stack: Stack) -> redis.Redis:
    return redis.Redis.from_url(stack.redis_url)


async def test_killing_the_subscriber_connection_every_500_ms_changes_no_clients_text(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        stack.worker("--", "--itl-ms", "40", "--slots", "256")
        api = stack.api()
        streams = asyncio.gather(*(stream_chat(client, api.url, 400) for _ in range(100)))
        kills = 0
        with control(stack) as server:
            while kills < 5 and not streams.done():
                await asyncio.sleep(0.5)
                kills += int(server.client_kill_filter(_type="pubsub"))  # none while it has not come back
        seen = await streams
        assert kills >= 5
        assert api.metric("penstock_resubscribes_total") >= 3
        assert api.metric("penstock_gap_repairs_total", cause="reconnect") > 100
    check_whole(seen, 400)


async def test_a_killed_workers_streams_go_on_elsewhere_and_every_client_gets_the_whole_text(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        stack.worker("--", "--itl-ms", "20", "--ttft-ms", "10")
        stack.worker("--", "--itl-ms", "20", "--ttft-ms", "10")
        api = stack.api()
        seeds = [None, 1] * 32  # with a seed everything is made again and compared
        wids = {worker: wid for wid, worker in workers_of(stack).items()}
        streams = [asyncio.create_task(stream_chat(client, api.url, 400, seed=seed)) for seed in seeds]
        victim = await asyncio.to_thread(kill_amid, stack, "sim", 24, threading.Event())
        assert victim is not None
        with control(stack) as server:
            hit = server.hlen(KEYS.run(wids[victim]))
        seen: list[Seen] = await asyncio.gather(*streams)
        (heir,) = (worker for worker in stack.workers if worker is not victim)
        resumed = [heir.metric("penstock_resumes_total", policy=policy) for policy in ("continue", "verify")]
    assert hit >= 24, "the kill hit no stream"
    assert sum(resumed) == hit
    assert min(resumed) > 0
    for one in seen:
        assert one.whole, one
        one.check(400)
    assert sum(one.longest_pause_s > 1 for one in seen) >= hit, "nobody noticed the fault"


async def test_requests_of_a_killed_worker_of_which_nothing_was_visible_are_run_again(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        stack.worker("--", "--ttft-ms", "50000")
        api = stack.api()
        streams = [asyncio.create_task(stream_chat(client, api.url, 5)) for _ in range(16)]
        victim = stack.workers[0]
        await eventually(lambda: victim.metric("penstock_attempts_running") == 16, 30, "the victim runs everything")
        heir = stack.worker("--", "--ttft-ms", "10")
        victim.kill()
        seen = await asyncio.gather(*streams)
        assert heir.metric("penstock_claims_total", outcome="ok") == 16
        assert heir.metric("penstock_resumes_total") == 0
    for one in seen:
        one.check(5)
        assert one.whole


async def test_a_killed_redis_that_comes_back_with_its_log_loses_nothing(client: httpx.AsyncClient) -> None:
    with running_stack(aof=True) as stack:
        stack.worker("--", "--itl-ms", "30", "--slots", "32")
        api = stack.api()
        streams = asyncio.gather(*(stream_chat(client, api.url, 100) for _ in range(64)))
        worker = stack.workers[0]
        await eventually(lambda: worker.metric("penstock_attempts_running") == 32, 30, "half runs")
        with control(stack) as server:
            await eventually(lambda: server.xlen(KEYS.queue("standard")) == 32, 30, "half is queued")
        stack.redis.kill()
        await asyncio.sleep(1)
        stack.start_redis()
        seen = await streams
    check_whole(seen, 100)
    assert max(one.longest_pause_s for one in seen) > 1, "nobody noticed the fault"


async def test_a_redis_that_stays_away_for_longer_than_the_grace_ends_open_streams_with_an_explicit_error(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        stack.worker("--", "--itl-ms", "50")
        api = stack.api("--redis-grace-s", "1")
        seen = [Seen() for _ in range(8)]
        streams = [asyncio.create_task(stream_chat(client, api.url, 2_000, into=one)) for one in seen]
        await eventually(lambda: all(one.tokens >= 5 for one in seen), 30, "all have seen text")
        stack.redis.kill()
        killed_s = time.monotonic()
        await asyncio.gather(*streams)
        log = api.log.read_text()
    for one in seen:
        assert one.text
        one.check(2_000)  # a piece of the answer, one error, and the body's regular end
        assert [error["code"] for error in one.errors] == ["broker_unavailable"]
        assert 1 < one.ended_s - killed_s < 30
    assert "Traceback" not in log


async def test_a_client_that_hangs_up_frees_the_engine(client: httpx.AsyncClient) -> None:
    with running_stack() as stack:
        worker = stack.worker("--", "--itl-ms", "50")
        api = stack.api("--disconnect-grace-s", "0.2")
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1000, "stream": True}
        async with client.stream("POST", f"{api.url}/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    break
        await eventually(lambda: worker.metric("penstock_attempts_running") == 0, 30, "the stream is freed")
        whole = asyncio.create_task(client.post(f"{api.url}/v1/chat/completions", json={**body, "stream": False}))
        await eventually(lambda: worker.metric("penstock_attempts_running") == 1, 30, "the second request runs")
        whole.cancel()
        await eventually(lambda: worker.metric("penstock_attempts_running") == 0, 30, "the other is freed")
        with control(stack) as server:
            assert server.hgetall(KEYS.tenants) == {}
            assert server.hlen(next(iter(server.scan_iter(KEYS.run("*"))), "none")) == 0
        assert worker.metric("penstock_attempts_total", outcome="cancelled") == 2


async def test_a_terminated_worker_drains_and_its_clients_notice_nothing(client: httpx.AsyncClient) -> None:
    with running_stack() as stack:
        for _ in range(2):
            stack.worker("--", "--itl-ms", "20")
        api = stack.api()
        streams = [asyncio.create_task(stream_chat(client, api.url, 400)) for _ in range(32)]
        await all_amid(stack, "sim", 32)
        leaver = max(stack.workers, key=lambda worker: worker.metric("penstock_attempts_running"))
        status = await asyncio.to_thread(leaver.stop)
        seen = await asyncio.gather(*streams)
        later = await stream_chat(client, api.url, 10)
    assert status == 0
    for one in [*seen, later]:
        assert one.whole, one


async def test_a_stream_whose_workers_die_one_after_the_other_is_still_one_text(client: httpx.AsyncClient) -> None:
    with running_stack() as stack:
        stack.worker("--", "--itl-ms", "50")
        api = stack.api()
        streams = [asyncio.create_task(stream_chat(client, api.url, 600)) for _ in range(8)]
        await all_amid(stack, "sim", 8)
        for itl_ms in (20, 2):  # after two kills they wait in quarantine: one goes after the other
            victim = stack.workers[-1]
            await eventually(lambda: victim.metric("penstock_flushed_frames_total") >= 20, 30, "it shows text")  # noqa: B023 - awaited in its own round
            stack.worker("--", "--itl-ms", str(itl_ms))
            victim.kill()
        seen = await asyncio.gather(*streams)
        assert stack.workers[2].metric("penstock_resumes_total") == 8
    check_whole(seen, 600)


@pytest.mark.parametrize("drain_s", ["0", "0.5"])
async def test_what_a_draining_worker_cannot_finish_goes_on_elsewhere_and_is_no_kill(
    client: httpx.AsyncClient, drain_s: str
) -> None:
    with running_stack() as stack:
        first = stack.worker("--drain-s", drain_s, "--", "--itl-ms", "50")
        api = stack.api()
        streams = [asyncio.create_task(stream_chat(client, api.url, 400)) for _ in range(16)]
        await all_amid(stack, "sim", 16)
        second = stack.worker("--", "--itl-ms", "2")
        assert await asyncio.to_thread(first.stop) == 0
        assert "was published in part before" not in first.log.read_text(), "it has taken back what it had handed back"
        await eventually(lambda: second.metric("penstock_resumes_total") == 16, 30, "the other one has taken all over")
        with control(stack) as server:
            records = [server.hgetall(key) for key in server.scan_iter(KEYS.record("*"))]
        seen = await asyncio.gather(*streams)
    assert [record[b"kills"] for record in records] == [b"0"] * 16
    check_whole(seen, 400)


@pytest.mark.parametrize(("text", "extra"), [("clock", {}), ("seeded", {"use_beam_search": True})])
async def test_what_the_next_worker_cannot_go_on_with_ends_with_worker_lost_and_no_other_text(
    client: httpx.AsyncClient, text: str, extra: dict[str, object]
) -> None:
    with running_stack() as stack:
        victim = stack.worker("--", "--itl-ms", "50", "--text", text)
        api = stack.api()
        stream = asyncio.create_task(stream_chat(client, api.url, 400, **extra))
        await eventually(lambda: victim.metric("penstock_flushed_frames_total") >= 5, 30, "the client has seen text")
        stack.worker("--", "--itl-ms", "2")
        victim.kill()
        seen = await stream
    assert [error["code"] for error in seen.errors] == ["worker_lost"]
    tokens = seen.text.split("~" if text == "clock" else " ")
    assert tokens[0] == ""
    assert {len(token) for token in tokens[1:]} == {13 if text == "clock" else 6}


async def test_a_worker_that_slept_past_its_lease_is_refused_and_goes_on_under_a_new_id(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        zombie = stack.worker("--", "--itl-ms", "50", "--slots", "8")
        api = stack.api()
        streams = [asyncio.create_task(stream_chat(client, api.url, 800)) for _ in range(8)]
        await all_amid(stack, "sim", 8)
        heir = stack.worker("--", "--itl-ms", "5", "--slots", "8")
        os.kill(zombie.pid, signal.SIGSTOP)
        try:
            seen = await asyncio.gather(*streams)
        finally:
            os.kill(zombie.pid, signal.SIGCONT)
        await eventually(lambda: zombie.metric("penstock_attempts_running") == 0, 30, "the zombie lets go")
        assert (
            zombie.metric("penstock_worker_renewals_total") >= 1 or zombie.metric("penstock_fenced_appends_total") >= 1
        )
        await eventually(lambda: get(f"{api.url}/readyz")[0] == 200, 30, "it serves again")
        again = await stream_chat(client, api.url, 5)
        assert heir.metric("penstock_resumes_total") == 8
    check_whole(seen, 800)
    assert again.whole


async def test_answers_that_are_not_streams_survive_a_redis_that_comes_back_empty(client: httpx.AsyncClient) -> None:
    with running_stack() as stack:
        worker = stack.worker("--", "--itl-ms", "50", "--slots", "8")
        api = stack.api()
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 100}
        answers = [asyncio.create_task(client.post(f"{api.url}/v1/chat/completions", json=body)) for _ in range(8)]
        await eventually(lambda: worker.metric("penstock_attempts_running") == 8, 30, "all run")
        stack.redis.kill()
        stack.start_redis()
        seen = await asyncio.gather(*answers)
        given_back = worker.metric("penstock_restores_total", outcome="ok")
        claims = worker.metric("penstock_claims_total", outcome="ok")
    assert [answer.status_code for answer in seen] == [200] * 8
    assert [answer.json()["usage"]["completion_tokens"] for answer in seen] == [100] * 8
    assert given_back == 8
    assert claims == 8, "something was run again"


async def test_a_redis_that_stands_still_for_longer_than_a_lease_is_a_pause(client: httpx.AsyncClient) -> None:
    """Longer than any command may take, too: every connection is given up and made anew."""
    with running_stack() as stack:
        worker = stack.worker("--", "--itl-ms", "50")
        api = stack.api()
        streams = asyncio.gather(*(stream_chat(client, api.url, 200) for _ in range(16)))
        await all_amid(stack, "sim", 16)
        os.kill(stack.redis.pid, signal.SIGSTOP)
        await asyncio.sleep(7)
        os.kill(stack.redis.pid, signal.SIGCONT)
        seen = await streams
        assert worker.metric("penstock_worker_renewals_total") == 0
        assert worker.metric("penstock_claims_total", outcome="ok") == 16
    check_whole(seen, 200)
    assert min(one.longest_pause_s for one in seen) > 5, "nobody noticed the fault"
