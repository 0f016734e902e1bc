"""Drills 1 to 9: workers that die, sleep or hang."""

from __future__ import annotations

import asyncio
import time

import pytest

from shared.limits import LEASE_MS
from tests.drills.acting import (
    CLAIM,
    DONE,
    all_visible,
    asleep,
    busiest,
    control,
    killed_at,
    proxy_of,
    through,
    warm,
    worker_metric,
)
from tests.drills.acting import KEYS as K
from tests.drills.catalogue import ALL, assert_continued, size, within
from tests.drills.conftest import Figures
from tests.support.history import check_history
from tests.support.load import Ask, ask, ask_many, start_many
from tests.support.stack import Stack, eventually
from tests.support.supervisor import supervised
from worker.lease import STALLED_STATUS

LEASE_S = LEASE_MS / 1000
REDELIVERED_S = 7.0
"""Lease, two misses, a tick."""
SUPERVISED_S = 4.0
"""No lease has lapsed by then."""


@pytest.mark.drill(1)
@pytest.mark.parametrize("supervisor", [False, True], ids=["reapers alone", "supervisor"])
async def test_a_killed_workers_streams_go_on(stack: Stack, figures: Figures, supervisor: bool) -> None:  # noqa: FBT001
    flags = ("--", "--itl-ms", "150", "--slots", "300")
    for _ in range(2):
        stack.worker(*flags)
    api = stack.api()
    async with supervised(stack) as watch:
        watch.enabled = supervisor
        tasks = start_many(size(64, 256), Ask([api.url], size(60, 80)))
        victim = await busiest(stack, size(12, 50))
        running = victim.metric("penstock_attempts_running")
        victim.kill()
        seen = await asyncio.gather(*tasks)
    verdict = await check_history(stack.redis_url, seen, size(60, 80))
    figures |= {"streams": len(seen), "hit": int(running), "longest pause s": verdict.longest_pause_s}
    figures |= {"errors": sum(verdict.errors.values()), "with": "supervisor" if supervisor else "reapers alone"}
    assert watch.buried == int(supervisor)
    assert not verdict.errors
    assert verdict.longest_pause_s < (within(1.5, SUPERVISED_S) if supervisor else within(8.0))


@pytest.mark.drill(1)
async def test_a_supervised_workers_waiting_requests_are_redelivered_within_half_a_second(
    stack: Stack, figures: Figures
) -> None:
    victim = stack.worker("--", "--ttft-ms", "50000")
    api = stack.api()
    async with supervised(stack) as watch:
        tasks = start_many(16, Ask([api.url], 5))
        await eventually(lambda: victim.metric("penstock_attempts_running") == 16, 30, "the victim has all")
        await asyncio.to_thread(stack.worker, "--", "--ttft-ms", "10")
        victim.kill()
        killed_s = time.monotonic()
        seen = await asyncio.gather(*tasks)
    verdict = await check_history(stack.redis_url, seen, 5)
    slowest_s = max(one.first_s for one in seen) - killed_s
    figures |= {"requests": verdict.requests, "killed to first token s": slowest_s}
    assert watch.buried == 1
    assert verdict.whole == 16
    assert slowest_s < within(0.5, SUPERVISED_S)


@pytest.mark.drill(2)
async def test_an_entry_that_died_between_delivery_and_claim_is_swept_up(stack: Stack, figures: Figures) -> None:
    async with killed_at(stack, CLAIM, "hold", tokens=20) as lost:
        with control(stack) as server:
            assert server.xpending(K.queue("standard"), "g")["pending"] == 1
    seen, killed_s = lost.seen, lost.killed_s
    await check_history(stack.redis_url, [seen], 20)
    figures |= {"killed to first token s": seen.first_s - killed_s, "claims held": lost.fault.hits}
    assert seen.whole
    assert seen.first_s - killed_s < within(15)
    with control(stack) as server:
        assert server.hmget(K.record(seen.rid), "claims", "kills") == [b"1", b"0"]
        await eventually(lambda: len(server.xinfo_consumers(K.queue("standard"), "g")) == 1, 30, "its consumer is gone")


@pytest.mark.drill(3)
async def test_a_claim_whose_worker_died_before_the_engine_had_it_runs_elsewhere(
    stack: Stack, figures: Figures
) -> None:
    async with killed_at(stack, CLAIM, "hold_reply", tokens=20) as lost:
        with control(stack) as server:
            await eventually(lambda: list(server.scan_iter(match=K.run("*"))), 30, "the claim took effect")
    seen, killed_s = lost.seen, lost.killed_s
    await check_history(stack.redis_url, [seen], 20)
    figures |= {"killed to first token s": seen.first_s - killed_s, "replies held": lost.fault.hits}
    assert seen.whole
    assert seen.first_s - killed_s < within(8.5)
    with control(stack) as server:
        assert server.hmget(K.record(seen.rid), "claims", "kills") == [b"2", b"1"]


@pytest.mark.drill(4)
async def test_a_worker_that_died_before_its_done_makes_no_visible_token_again(stack: Stack, figures: Figures) -> None:
    async with killed_at(stack, DONE, "hold", tokens=30) as lost:
        pass
    seen, killed_s = lost.seen, lost.killed_s
    await check_history(stack.redis_url, [seen], 30)
    figures |= {"killed to end s": seen.ended_s - killed_s, "ends held": lost.fault.hits}
    assert seen.whole


@pytest.mark.drill(5)
async def test_an_end_whose_reply_was_lost_is_sent_again_and_counts_once(stack: Stack, figures: Figures) -> None:
    with proxy_of(stack) as proxy:
        stack.worker(env=through(proxy))
        api = stack.api()
        await warm(stack)
        before = proxy.connections
        fault = proxy.rule(DONE, "cut_reply", times=3)
        seen = await ask_many(8, Ask([api.url], 20))
        verdict = await check_history(stack.redis_url, seen, 20)
        figures |= {"replies cut": fault.hits, "reconnects": proxy.connections - before}
        assert fault.hits >= 1
        await eventually(lambda: proxy.connections > before, 30, "it connects again")
    assert verdict.whole == 8


@pytest.mark.drill(6)
async def test_a_zombie_is_refused_lets_go_and_serves_again(stack: Stack, figures: Figures) -> None:
    flags = ("--", "--itl-ms", "100", "--slots", "64")
    for _ in range(2):
        stack.worker(*flags)
    api = stack.api()
    tasks = start_many(24, Ask([api.url], size(120, 250)))
    zombie = await busiest(stack, 5)
    async with asleep(zombie, size(10, 20)):
        pass
    woke_s = time.monotonic()
    await eventually(lambda: zombie.metric("penstock_worker_renewals_total") == 1, 30, "it is told")
    told_s = time.monotonic() - woke_s
    seen = await asyncio.gather(*tasks)
    await eventually(lambda: worker_metric(stack, "penstock_attempts_running") == 0, 30, "nothing runs")
    later = await ask_many(8, Ask([api.url], 5))
    verdict = await check_history(stack.redis_url, seen, size(120, 250))
    figures |= {"woke to told s": told_s, "fenced": int(worker_metric(stack, "penstock_fenced_appends_total"))}
    figures |= {"errors": dict(verdict.errors)}
    assert told_s < within(2)
    assert all(one.whole for one in later)
    assert_continued(verdict)


@pytest.mark.drill(7)
async def test_a_worker_that_sleeps_for_less_than_its_lease_keeps_its_requests(stack: Stack, figures: Figures) -> None:
    sleeper = stack.worker("--", "--itl-ms", "100")
    api = stack.api()
    tasks = start_many(24, Ask([api.url], 70))
    await all_visible(sleeper, 24)
    async with asleep(sleeper, 3):
        pass
    seen = await asyncio.gather(*tasks)
    verdict = await check_history(stack.redis_url, seen, 70)
    figures |= {
        "longest pause s": verdict.longest_pause_s,
        "claims": int(worker_metric(stack, "penstock_claims_total")),
    }
    assert verdict.longest_pause_s > 2.5, "nobody noticed the fault"
    assert verdict.whole == 24
    assert worker_metric(stack, "penstock_claims_total") == 24
    assert worker_metric(stack, "penstock_worker_renewals_total") == 0


@pytest.mark.drill(8)
async def test_a_worker_whose_engine_hangs_gives_itself_up(stack: Stack, figures: Figures) -> None:
    stall_s = size(4, 60)
    flags = ("--stall-s", str(stall_s), "--", "--faults", "--itl-ms", "100")
    victim = stack.worker(*flags)
    api = stack.api()
    tasks = start_many(12, Ask([api.url], 120, patience_s=120))
    await all_visible(victim, 12)
    hanging = asyncio.create_task(ask(Ask([api.url], 5, content="fault:hang", patience_s=120)))
    hung_s = time.monotonic()
    await asyncio.to_thread(stack.worker, "--", "--itl-ms", "100")
    await eventually(lambda: victim.popen.poll() is not None, stall_s + 30, "the worker gives itself up")
    gave_up_s = time.monotonic() - hung_s
    seen = await asyncio.gather(*tasks)
    await hanging
    verdict = await check_history(stack.redis_url, seen, 120)
    figures |= {"stall s": stall_s, "hung to exit s": gave_up_s, "longest pause s": verdict.longest_pause_s}
    assert victim.popen.returncode == STALLED_STATUS
    assert stall_s - 1 < gave_up_s < stall_s + within(4)
    assert "its stacks" in victim.log.read_text().lower()
    assert verdict.longest_pause_s < stall_s + within(8)
    assert_continued(verdict)


@pytest.mark.drill(8)
async def test_a_worker_whose_event_loop_stands_still_gives_itself_up(stack: Stack, figures: Figures) -> None:
    victim = stack.worker("--stall-s", "3", "--", "--faults")
    api = stack.api()
    task = asyncio.create_task(ask(Ask([api.url], 5, content="fault:block")))
    await eventually(lambda: victim.popen.poll() is not None, 30, "the worker gives itself up")
    assert victim.popen.returncode == STALLED_STATUS
    await asyncio.to_thread(stack.worker)  # it takes no harm
    seen = await task
    figures |= {"to first token s": seen.first_s - seen.began_s}
    assert seen.whole


@pytest.mark.drill(9)
async def test_a_generation_of_many_leases_is_one_attempt(stack: Stack, figures: Figures) -> None:
    lasts_s = 120 if ALL else 3 * LEASE_S
    first, second = stack.worker("--", "--itl-ms", "500"), stack.worker("--", "--itl-ms", "500")
    api = stack.api()
    tokens = int(lasts_s / 0.5)
    seen = await ask_many(6, Ask([api.url], tokens, patience_s=lasts_s + 30))
    verdict = await check_history(stack.redis_url, seen, tokens)
    claims = first.metric("penstock_claims_total") + second.metric("penstock_claims_total")
    figures |= {"generation s": max(one.ended_s - one.began_s for one in seen), "claims": int(claims)}
    assert max(one.ended_s - one.began_s for one in seen) > lasts_s - 2
    assert verdict.whole == claims == 6
