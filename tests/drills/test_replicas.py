"""Drills 12 to 18, 25, 26, 28, 29 and 37: replicas, their clients, and the way between them and Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from tests.drills.acting import ADMIT, all_visible, api_metric, asleep, control, proxy_of, through, warm
from tests.drills.acting import KEYS as K
from tests.drills.catalogue import size, within
from tests.drills.conftest import Figures
from tests.support.history import check_history, leftovers
from tests.support.load import Ask, ask, ask_many, start_many
from tests.support.stack import Stack, eventually, get
from worker.intake import BLOCK_MS


@pytest.mark.drill(12)
async def test_clients_of_a_killed_replica_resume_on_another(stack: Stack, figures: Figures) -> None:
    worker = stack.worker("--", "--itl-ms", "150", "--slots", "512")
    first, second = stack.api(), stack.api()
    count = size(60, 500)
    tasks = start_many(count, Ask([first.url, second.url], 60, resume=True))
    await all_visible(worker, count)
    first.kill()
    seen = await asyncio.gather(*tasks)
    verdict = await check_history(stack.redis_url, seen, 60)
    figures |= {"streams": count, "resumes": verdict.resumes, "longest pause s": verdict.longest_pause_s}
    assert verdict.resumes >= count // 3
    assert verdict.whole == count
    assert worker.metric("penstock_claims_total", outcome="ok") == count


@pytest.mark.drill(13)
@pytest.mark.long
async def test_what_nobody_comes_back_for_is_cancelled(stack: Stack, figures: Figures) -> None:
    worker = stack.worker("--", "--itl-ms", "200")
    first, _ = stack.api(), stack.api()
    tasks = start_many(16, Ask([first.url], 400, patience_s=90))
    await all_visible(worker, 16)
    first.kill()
    killed_s = time.monotonic()
    await asyncio.gather(*tasks)
    await eventually(lambda: worker.metric("penstock_attempts_running") == 0, 35, "the generations are cancelled")
    figures |= {"killed to freed s": time.monotonic() - killed_s}
    with control(stack) as server:
        await eventually(lambda: not leftovers(server, K), 30, f"rest; left is {leftovers(server, K)}")
    assert time.monotonic() - killed_s < 37


@pytest.mark.drill(14)
@pytest.mark.long
async def test_a_replica_that_stands_still_catches_up_and_hurts_nobody_else(stack: Stack, figures: Figures) -> None:
    worker = stack.worker("--", "--itl-ms", "60")
    still, other = stack.api(), stack.api()
    tasks = start_many(20, Ask([still.url], 200))
    others = start_many(20, Ask([other.url], 200))
    await all_visible(worker, 40)
    before = still.rss_bytes
    async with asleep(still, 10):
        elsewhere = await asyncio.gather(*others)
    seen = await asyncio.gather(*tasks)
    verdict = await check_history(stack.redis_url, [*seen, *elsewhere], 200)
    grown = (still.rss_bytes - before) / 1e6
    calm_s = max(one.longest_pause_s for one in elsewhere)
    figures |= {"stood still s": 10, "others' longest pause s": calm_s, "memory grown MB": grown}
    assert verdict.longest_pause_s > 8, "nobody noticed the fault"
    assert verdict.whole == 40
    assert calm_s < 2
    assert grown < 100


@pytest.mark.drill(16)
async def test_streams_survive_a_subscriber_that_is_killed_every_500_ms(stack: Stack, figures: Figures) -> None:
    lasts_s = size(12, 60)
    stack.worker("--", "--itl-ms", "100", "--slots", "256")
    api = stack.api()
    tokens = lasts_s * 10
    streams = asyncio.gather(*start_many(size(60, 120), Ask([api.url], tokens, patience_s=lasts_s + 60)))
    kills = 0
    with control(stack) as server:
        while not streams.done():
            await asyncio.sleep(0.5)  # the drill's own rhythm
            kills += int(server.client_kill_filter(_type="pubsub"))
    seen = await streams
    verdict = await check_history(stack.redis_url, seen, tokens)
    repairs = api_metric(stack, "penstock_gap_repairs_total", cause="reconnect")
    figures |= {"kills": kills, "repairs": int(repairs), "longest pause s": verdict.longest_pause_s}
    assert kills >= size(4, lasts_s)
    assert repairs > kills
    assert verdict.whole == len(seen)
    assert verdict.longest_pause_s < within(1.5)


@pytest.mark.drill(17)
async def test_a_quarter_of_the_live_messages_may_be_lost(stack: Stack, figures: Figures) -> None:
    stack.worker("--", "--itl-ms", "50", "--slots", "128")
    with proxy_of(stack) as proxy:
        api = stack.api(env=through(proxy))
        proxy.drop_messages_ratio = 0.25
        seen = await ask_many(64, Ask([api.url], 60))
        verdict = await check_history(stack.redis_url, seen, 60)
        repairs = api_metric(stack, "penstock_gap_repairs_total", cause="gap")
        figures |= {"messages lost": proxy.dropped_messages, "repairs": int(repairs)}
        figures |= {"longest pause s": verdict.longest_pause_s}
        assert proxy.dropped_messages > 200
        assert repairs > 100
    assert verdict.whole == 64


@pytest.mark.drill(18)
async def test_a_late_confirmation_of_a_subscription_loses_no_text(stack: Stack, figures: Figures) -> None:
    """There is one channel per request: what a late confirmation may have missed is read from the log."""
    stack.worker("--", "--itl-ms", "20")
    with proxy_of(stack) as proxy:
        api = stack.api(env=through(proxy))
        await warm(stack)
        fault = proxy.rule(b"SUBSCRIBE\r\n", "delay_reply", times=5, delay_s=2)
        seen = await ask_many(20, Ask([api.url], 50))
        verdict = await check_history(stack.redis_url, seen, 50)
        figures |= {
            "confirmations delayed": fault.hits,
            "longest to first token s": max(o.first_s - o.began_s for o in seen),
        }
        assert fault.hits >= 1
    assert verdict.whole == 20


@pytest.mark.drill(25)
@pytest.mark.long
async def test_a_replica_that_was_cut_off_from_redis_catches_up(stack: Stack, figures: Figures) -> None:
    worker = stack.worker("--", "--itl-ms", "100")
    with proxy_of(stack) as proxy:
        api = stack.api("--heartbeat-s", "1", env=through(proxy))
        tasks = start_many(32, Ask([api.url], 180))
        await all_visible(worker, 32)
        proxy.partition()
        await asyncio.sleep(10)  # the drill's own length
        alive = get(f"{api.url}/livez")[0]
        proxy.heal()
        seen = await asyncio.gather(*tasks)
        verdict = await check_history(stack.redis_url, seen, 180)
        figures |= {"bytes held up": proxy.held_bytes, "longest silence s": verdict.longest_pause_s}
        assert proxy.held_bytes > 0
    assert alive == 200
    assert verdict.whole == 32
    assert verdict.longest_pause_s < 4, "heartbeats keep the clients' connections alive"


@pytest.mark.drill(26)
async def test_a_half_open_connection_under_a_blocking_read_is_found(stack: Stack, figures: Figures) -> None:
    with proxy_of(stack) as proxy:
        worker = stack.worker(env=through(proxy))
        api = stack.api()
        await warm(stack)
        connections = proxy.connections
        dead = proxy.half_open()
        began_s = time.monotonic()
        await eventually(lambda: proxy.connections > connections, 30, "a connection is opened anew")
        found_s = time.monotonic() - began_s
        seen = await ask(Ask([api.url], 20))
        figures |= {"half-open": dead, "found after s": found_s, "next request s": seen.ended_s - began_s}
        assert proxy.swallowed_bytes > 0
        await check_history(stack.redis_url, [seen], 20)
    assert dead >= 3
    assert found_s < BLOCK_MS / 1000 + within(2)
    assert seen.whole
    assert worker.popen.poll() is None


@pytest.mark.drill(28)
async def test_fifty_equal_requests_with_one_key_are_one_generation(stack: Stack, figures: Figures) -> None:
    worker = stack.worker("--", "--itl-ms", "40")
    urls = [stack.api().url for _ in range(3)]
    wanted = Ask(urls, 40, headers={"Idempotency-Key": '"the-key"'})
    seen = await ask_many(50, wanted)
    other = await ask(Ask(urls, 41, headers={"Idempotency-Key": '"the-key"'}))
    figures |= {"answers": len(seen), "claims": int(worker.metric("penstock_claims_total", outcome="ok"))}
    assert worker.metric("penstock_claims_total", outcome="ok") == 1
    assert all(one.whole for one in seen)
    assert len({(one.rid, one.text) for one in seen}) == 1
    assert (other.status, other.errors[0]["code"]) == (422, "idempotency_key_mismatch")


@pytest.mark.drill(29)
async def test_an_admission_whose_reply_was_lost_is_one_request(stack: Stack, figures: Figures) -> None:
    worker = stack.worker()
    with proxy_of(stack) as proxy:
        api = stack.api(env=through(proxy))
        await warm(stack)
        before = worker.metric("penstock_claims_total", outcome="ok")
        fault = proxy.rule(ADMIT, "cut_reply")
        seen = await ask(Ask([api.url], 20))
        await check_history(stack.redis_url, [seen], 20)
        figures |= {"replies cut": fault.hits, "to first token s": seen.first_s - seen.began_s}
        assert fault.hits == 1
    assert seen.whole
    assert worker.metric("penstock_claims_total", outcome="ok") == before + 1


@pytest.mark.drill(37)
async def test_a_rolling_restart_of_everything_shows_no_error(stack: Stack, figures: Figures) -> None:
    flags = ("--drain-s", "1", "--", "--itl-ms", "50")
    for _ in range(2):
        stack.worker(*flags)
    for _ in range(2):
        stack.api("--drain-s", "1")
    urls = [api.url for api in stack.apis]
    over = asyncio.Event()

    async def client(number: int) -> list[object]:
        mine = []
        while not over.is_set():
            mine.append(await ask(Ask(urls, 60, resume=True, first=number)))
        return mine

    clients = [asyncio.create_task(client(number)) for number in range(16)]
    restarted = 0
    for process in [*stack.workers, *stack.apis]:
        os.kill(process.pid, signal.SIGTERM)
        await eventually(lambda process=process: process.popen.poll() is not None, 30, f"{process.name} ends")  # type: ignore[misc]
        assert process.popen.returncode == 0
        fresh = stack.again(process)
        restarted += 1
        port = getattr(fresh, "ops_port", None) or fresh.port  # type: ignore[attr-defined]
        url = f"http://127.0.0.1:{port}/readyz"
        await eventually(lambda url=url: _answers(url), 30, f"{fresh.name} is ready")  # type: ignore[misc]
    over.set()
    seen = [one for mine in await asyncio.gather(*clients) for one in mine]
    verdict = await check_history(stack.redis_url, seen, 60)  # type: ignore[arg-type]
    figures |= {"processes restarted": restarted, "streams": len(seen), "resumes": verdict.resumes}
    figures |= {"longest pause s": verdict.longest_pause_s}
    assert verdict.whole == len(seen)


def _answers(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except OSError:
        return False
