"""Drills 19 to 23, 27 and 38: what happens to Redis."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis

from shared.limits import LEASE_MS
from tests.drills.acting import KEYS as K
from tests.drills.acting import all_visible, all_wait, api_metric, control, proxy_of, through, worker_metric
from tests.drills.catalogue import size, within
from tests.drills.conftest import Figures
from tests.drills.streams import Streams
from tests.support.faultproxy import FaultProxy
from tests.support.history import check_clients, check_history, leftovers
from tests.support.load import Ask, ask, ask_many, start_many
from tests.support.sentinels import DOWN_AFTER_MS, Sentinels
from tests.support.stack import Stack, eventually, running_stack

HONEST = {"history_lost", "worker_lost", "broker_unavailable"}


@pytest.mark.drill(19)
async def test_a_redis_that_comes_back_with_its_log_loses_nothing(figures: Figures) -> None:
    with running_stack(aof=True) as stack:
        count = size(40, 300)
        worker = stack.worker("--", "--itl-ms", "100", "--slots", str(count))
        api = stack.api()
        tasks = start_many(2 * count, Ask([api.url], 60, patience_s=100))
        await all_visible(worker, count)
        await all_wait(stack, count)
        stack.redis.kill()
        down_s = time.monotonic()
        await asyncio.to_thread(stack.start_redis)
        up_s = time.monotonic() - down_s
        seen = await asyncio.gather(*tasks)
        verdict = await check_history(stack.redis_url, seen, 60)
        pause_s = max(one.longest_pause_s for one in seen if one.first_s < down_s)
        figures |= {"running": count, "queued": count, "restart s": up_s, "longest pause s": pause_s}
        assert verdict.whole == 2 * count
        assert pause_s < up_s + within(3)


@pytest.mark.drill(20)
async def test_a_redis_that_comes_back_empty_hangs_nobody(stack: Stack, figures: Figures) -> None:
    """Who has seen text gets the rest of it from the worker that still runs it; who waits runs again."""
    worker = stack.worker("--max-active", "20", "--", "--itl-ms", "100")
    api = stack.api()
    tasks = start_many(40, Ask([api.url], 50, patience_s=100))
    await all_visible(worker, 20)
    await all_wait(stack, 20)
    stack.redis.kill()
    await asyncio.to_thread(stack.start_redis)
    seen = await asyncio.gather(*tasks)
    verdict = await check_history(stack.redis_url, seen, 50, kept=False)
    given_back = worker_metric(stack, "penstock_restores_total")
    figures |= {"whole": verdict.whole, "given back": given_back, "longest pause s": verdict.longest_pause_s}
    assert verdict.whole == 40
    assert given_back >= 20, "nothing was lost"
    assert verdict.longest_pause_s < within(5)
    assert (await ask(Ask([api.url], 5))).whole


@pytest.mark.drill(21)
async def test_flushall_under_load_hangs_nobody(stack: Stack, figures: Figures) -> None:
    worker = stack.worker("--max-active", "20", "--", "--itl-ms", "100")
    api = stack.api()
    tasks = start_many(40, Ask([api.url], 50, patience_s=100))
    await all_visible(worker, 20)
    await all_wait(stack, 20)
    with control(stack) as server:
        server.flushall()
        seen = await asyncio.gather(*tasks)
        verdict = await check_history(stack.redis_url, seen, 50, kept=False)
        later = await ask_many(8, Ask([api.url], 5))
        groups = server.xinfo_groups(K.queue("standard"))
    given_back = worker_metric(stack, "penstock_restores_total")
    figures |= {"whole": verdict.whole, "given back": given_back, "longest pause s": verdict.longest_pause_s}
    assert verdict.whole == 40
    assert given_back >= 20, "nothing was lost"
    assert verdict.longest_pause_s < within(2)
    assert all(one.whole for one in later)
    assert len(groups) == 1
    assert worker.log.read_text().count("NOGROUP") < 20
    assert worker.popen.poll() is None


async def _fail_over(stack: Stack, proxy: FaultProxy, port: int) -> str:
    """The master is gone, the replica takes its place behind the same address. Returns its own."""
    stack.redis.kill()
    await asyncio.sleep(1)  # until somebody has noticed
    with redis.Redis(port=port) as promoted:
        promoted.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
    proxy.switch(port)
    return f"redis://127.0.0.1:{port}/0"


@pytest.mark.drill(22)
async def test_a_failover_by_sentinel_redelivers_nothing_of_living_workers(stack: Stack, figures: Figures) -> None:
    await asyncio.to_thread(stack.replica_of_redis, stack.redis_port)
    sentinels = await asyncio.to_thread(Sentinels, stack)
    there = {"PENSTOCK_REDIS_URL": sentinels.url}
    for _ in range(2):
        stack.worker("--", "--itl-ms", "100", env=there)
    api = stack.api(env=there)
    streams = Streams([Ask([api.url], 120, patience_s=100)] * 60)
    await streams.visible(60, 1)
    stack.redis.kill()
    seen = await streams.ended()
    assert sentinels.master_port != stack.redis_port, "nobody was promoted"
    promoted = f"redis://127.0.0.1:{sentinels.master_port}/0"
    verdict = await check_history(promoted, seen, 120)
    claims = int(worker_metric(stack, "penstock_claims_total"))
    figures |= {"whole": verdict.whole, "claims": claims, "longest pause s": verdict.longest_pause_s}
    figures |= {"given back": worker_metric(stack, "penstock_restores_total")}
    assert verdict.whole == 60, [one.errors for one in seen if not one.whole]
    assert verdict.longest_pause_s > DOWN_AFTER_MS / 1000, "nobody noticed the fault"
    assert verdict.longest_pause_s < within(6)
    assert worker_metric(stack, "penstock_worker_renewals_total") == 0
    with redis.Redis.from_url(promoted) as server:
        assert {server.hget(K.record(one.rid), "kills") for one in seen} == {b"0"}
    assert (await ask(Ask([api.url], 5))).whole


@pytest.mark.drill(23)
async def test_the_tail_that_a_failover_loses_is_given_back_by_the_worker(stack: Stack, figures: Figures) -> None:
    with proxy_of(stack) as proxy, proxy_of(stack) as link:
        _, port = await asyncio.to_thread(stack.replica_of_redis, link.port)
        worker = stack.worker("--", "--itl-ms", "50", env=through(proxy))
        api = stack.api(env=through(proxy))
        tasks = start_many(60, Ask([api.url], 120, patience_s=100))
        await all_visible(worker, 60)
        link.partition()
        await asyncio.sleep(1)  # the lag of the drill
        held = link.held_bytes
        promoted = await _fail_over(stack, proxy, port)
        link.switch(port)
        seen = await asyncio.gather(*tasks)
        verdict = check_clients(seen, 120)
        with redis.Redis.from_url(promoted) as server:
            await eventually(lambda: not leftovers(server, K), 30, f"rest; left is {leftovers(server, K)}")
        refused = int(worker_metric(stack, "penstock_fenced_appends_total"))
        given_back = int(worker_metric(stack, "penstock_restores_total"))
        figures |= {"given back": given_back}
        figures |= {"whole": verdict.whole, "errors": dict(verdict.errors), "frames refused": refused}
        figures |= {"longest pause s": verdict.longest_pause_s}
        assert held > 0
        assert refused > 30, "nothing was lost"
        assert set(verdict.errors) <= HONEST
        assert verdict.whole >= 55, "the worker lives and has what was lost"
        assert (await ask(Ask([api.url], 5))).whole


@pytest.mark.drill(27)
async def test_script_flush_under_load_is_not_noticed(stack: Stack, figures: Figures) -> None:
    stack.worker("--", "--itl-ms", "30")
    api = stack.api()
    streams = asyncio.gather(*start_many(40, Ask([api.url], 150)))
    flushes = 0
    with control(stack) as server:
        while not streams.done():
            await asyncio.sleep(0.3)  # the drill's own rhythm
            server.script_flush()
            flushes += 1
    seen = await streams
    verdict = await check_history(stack.redis_url, seen, 150)
    figures |= {"flushes": flushes, "longest pause s": verdict.longest_pause_s}
    assert flushes > 5
    assert verdict.whole == 40
    assert verdict.longest_pause_s < within(1)


@pytest.mark.drill(38)
async def test_a_full_redis_admits_nobody_and_ends_what_runs(stack: Stack, figures: Figures) -> None:
    """First there is less room than admissions want, then none at all for longer than a lease, then some again."""
    worker = stack.worker("--", "--itl-ms", "100")
    api = stack.api()
    tasks = start_many(20, Ask([api.url], 120, patience_s=60))
    await all_visible(worker, 20)
    with control(stack) as server:
        server.setrange("ballast", 20_000_000, b"x")
        used = int(server.info("memory")["used_memory"])
        server.config_set("maxmemory", str(used + 2_500_000))
        async with asyncio.timeout(30):
            while (await ask(Ask([api.url], 5))).status == 200:  # replicas look once a second
                await asyncio.sleep(0.2)
        refused = await ask_many(5, Ask([api.url], 5))
        server.config_set("maxmemory", str(used - 1_000_000))
        full_s = time.monotonic()
        await asyncio.sleep(LEASE_MS / 1000 + 1)  # the drill's own length
        lapsed = not list(server.scan_iter(match=K.lease("*")))
        refused += await ask_many(5, Ask([api.url], 5))
        server.delete("ballast")
        server.config_set("maxmemory", "0")
        seen = await asyncio.gather(*tasks)
        evicted = int(server.info("stats")["evicted_keys"])
    verdict = await check_history(stack.redis_url, seen, 120)
    await eventually(lambda: api_metric(stack, "penstock_streams_open") == 0, 30, "nothing is open")
    figures |= {"refused": [one.status for one in refused], "whole": verdict.whole, "evicted": evicted}
    figures |= {"longest pause s": verdict.longest_pause_s}
    assert verdict.whole == 20
    assert evicted == 0
    assert lapsed, "the lease could be renewed, so memory was not full"
    assert verdict.longest_pause_s > LEASE_MS / 1000, "nobody noticed the fault"
    assert max(one.ended_s for one in seen) > full_s
    assert {one.status for one in refused} == {503}
    assert all("memory" in str(one.errors[0]["message"]) for one in refused[:5])
    assert worker_metric(stack, "penstock_worker_renewals_total") == 0
    assert (await ask(Ask([api.url], 5))).whole
