"""Drill 46: the fault is made on a running stack, and a real Prometheus fires the alert.

Those that need a GPU, an engine under pressure or a server of others: `test_alerts_imagined.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from shared.connection import RedisCaller, connect
from shared.lane_settings import DRAIN, PAUSE, RESUME
from shared.scripts import Scripts
from tests.drills.acting import KEYS as K
from tests.drills.acting import all_visible, control
from tests.drills.alerting import ends, fires, quiet, scraped, watched
from tests.drills.conftest import Figures
from tests.support.load import Ask, ask_many, start_many
from tests.support.stack import Stack, Worker, eventually, running_stack
from tests.support.supervisor import supervised


@contextlib.asynccontextmanager
async def meanwhile(wanted: Ask, *, pause_s: float = 0.3, at_once: int = 1) -> AsyncIterator[None]:
    """The same request again and again while the block runs."""

    async def again() -> None:
        while True:
            await ask_many(at_once, wanted)
            await asyncio.sleep(pause_s)

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.long
@pytest.mark.drill(46)
@pytest.mark.timeout(300)
async def test_the_last_workers_die_under_their_requests_and_everybody_waits(stack: Stack, figures: Figures) -> None:
    flags = ("--", "--itl-ms", "100")
    first = stack.worker(*flags)
    holds = stack.api("--cold-start-hold-s", "200", "--queue-timeout-s", "200")
    refuses = stack.api()
    waits = ("PenstockInteractiveWaits", "PenstockStandardWaits", "PenstockBatchWaits", "PenstockQueueDeep")
    expected = (
        *waits,
        *("PenstockNobodyWorks", "PenstockTurnsAway", "PenstockCannotScaleFurther", "PenstockQuarantine"),
        *("PenstockTargetDown", "PenstockErrorsBurnFast", "PenstockErrorsBurnSlow"),
    )
    with watched(stack) as prometheus:
        async with meanwhile(Ask([refuses.url], 3, patience_s=2)), supervised(stack):
            await scraped(prometheus, "sum(rate(penstock_queue_wait_seconds_count[5s])) > 0")
            await quiet(prometheus, *expected, "PenstockDeadLetters")
            suspects = start_many(2, Ask([holds.url], 600, patience_s=280))
            await all_visible(first, 2)
            await _killed_twice(stack, first, flags)
            held = [
                task
                for lane, count in {"interactive": 3, "standard": 55, "batch": 3}.items()
                for task in start_many(count, Ask([holds.url], 3, headers={"X-Priority-Lane": lane}, patience_s=280))
            ]
            figures |= await fires(prometheus, *expected, within_s=60)
            third = stack.worker("--max-active", "1", *flags)  # of the suspect's lane that one goes first
            await _runs_a_suspect(stack)
            await all_visible(third, 1)
            third.kill()
            figures |= await fires(prometheus, "PenstockDeadLetters")
            stack.worker()
            for dead in (first, third):
                prometheus.forget(f"127.0.0.1:{dead.ops_port}")
            await ends(prometheus, *waits, "PenstockNobodyWorks", "PenstockQuarantine")
            seen = await asyncio.gather(*held)
            given_up, goes_on = sorted(await asyncio.gather(*suspects), key=lambda one: one.whole)
    assert [error["code"] for error in given_up.errors] == ["too_many_attempts"]
    assert goes_on.whole
    assert all(one.whole for one in seen), "who was held got his answer in the end"


async def _killed_twice(stack: Stack, first: Worker, flags: tuple[str, ...]) -> None:
    """The worker dies under its two requests, the next one as well, and there is no other: both are suspects."""
    second = await asyncio.to_thread(stack.worker, *flags)
    first.kill()
    await all_visible(second, 2)
    second.kill()
    with control(stack) as server:
        await eventually(lambda: server.xlen(K.queue("quarantine")) == 1, 30, "one is let out, one is kept")


async def _runs_a_suspect(stack: Stack) -> None:
    """Other lanes may have had their turn before it."""
    with control(stack) as server:

        def runs() -> bool:
            rids = [rid.decode() for key in server.scan_iter(K.run("*")) for rid in server.hkeys(key)]
            return any(server.hget(K.record(rid), "kills") == b"2" for rid in rids)

        await eventually(runs, 60, "what is tried a third time runs")


@pytest.mark.long
@pytest.mark.drill(46)
@pytest.mark.timeout(300)
async def test_three_workers_die_under_their_streams(stack: Stack, figures: Figures) -> None:
    flags = ("--", "--itl-ms", "200", "--slots", "5")
    *victims, _ = [stack.worker(*flags) for _ in range(4)]
    api = stack.api()
    expected = ("PenstockWorkersDie", "PenstockRedelivers")
    with watched(stack) as prometheus:
        tasks = start_many(20, Ask([api.url], 60, patience_s=200))
        for victim in victims:
            await all_visible(victim, 4)
        await scraped(prometheus, "penstock_workers_condemned_total")
        await quiet(prometheus, *expected)
        for victim in victims:
            victim.kill()
        figures |= await fires(prometheus, *expected)
        await asyncio.to_thread(stack.worker)
        seen = await asyncio.gather(*tasks)
    assert all(one.whole for one in seen)


@pytest.mark.long
@pytest.mark.drill(46)
async def test_an_engine_is_slow_to_begin(stack: Stack, figures: Figures) -> None:
    stack.worker("--", "--ttft-ms", "3000", "--itl-ms", "5")
    api = stack.api()
    expected = ("PenstockLatencyBurnFast", "PenstockLatencyBurnSlow", "PenstockSlowRequests")
    with watched(stack) as prometheus:
        await scraped(prometheus, 'up{job="penstock-api"} == 1')
        await quiet(prometheus, *expected)
        async with meanwhile(Ask([api.url], 3, headers={"X-Priority-Lane": "interactive"}), pause_s=0, at_once=8):
            figures |= await fires(prometheus, *expected)


@pytest.mark.drill(46)
async def test_a_lane_is_paused_and_forgotten_and_then_drained(stack: Stack, figures: Figures) -> None:
    stack.worker()
    stack.api()
    client = connect(stack.redis_url)
    scripts = Scripts(RedisCaller(client), K)
    try:
        with watched(stack, times=1_200) as prometheus:
            await scraped(prometheus, "penstock_lane_paused")
            await quiet(prometheus, "PenstockLanePaused")
            await scripts.setlane("batch", PAUSE)
            figures |= await fires(prometheus, "PenstockLanePaused")
            await scripts.setlane("batch", RESUME)
            await ends(prometheus, "PenstockLanePaused")
            await scripts.setlane("batch", DRAIN)
            await fires(prometheus, "PenstockLanePaused")
            await scripts.setlane("batch", RESUME)
            await ends(prometheus, "PenstockLanePaused")
    finally:
        await client.aclose()


@pytest.mark.long
@pytest.mark.drill(46)
async def test_redis_is_full_throws_away_cannot_write_and_dies_and_then_the_replicas_do(figures: Figures) -> None:
    with running_stack(aof=True) as stack:
        stack.worker()
        stack.api()
        with watched(stack) as prometheus, control(stack) as server:
            await scraped(prometheus, "penstock_redis_aof_ok == 1")
            ours = ("PenstockRedisMemory", "PenstockRedisEvicts", "PenstockRedisAofFails", "PenstockRedisWithoutAof")
            await quiet(prometheus, *ours, "PenstockQueuesUnread", "PenstockNoReplica")

            server.config_set("maxmemory", int(server.info("memory")["used_memory"] * 1.1))  # type: ignore[no-untyped-call]
            server.config_set("maxmemory-policy", "allkeys-lru")  # type: ignore[no-untyped-call]
            figures |= await fires(prometheus, "PenstockRedisMemory", "PenstockRedisEvicts")
            server.config_set("maxmemory-policy", "noeviction")  # type: ignore[no-untyped-call]
            server.config_set("maxmemory", 0)  # type: ignore[no-untyped-call]

            with _nowhere_to_write(stack.folder), contextlib.suppress(redis.ResponseError):
                server.bgrewriteaof()
            figures |= await fires(prometheus, "PenstockRedisAofFails")
            server.bgrewriteaof()
            await ends(prometheus, "PenstockRedisMemory", "PenstockRedisEvicts", "PenstockRedisAofFails")

            server.config_set("appendonly", "no")  # type: ignore[no-untyped-call]
            figures |= await fires(prometheus, "PenstockRedisWithoutAof")
            stack.redis.kill()
            figures |= await fires(prometheus, "PenstockQueuesUnread")
            stack.apis[0].kill()
            figures |= await fires(prometheus, "PenstockNoReplica", "PenstockTargetDown")


@contextlib.contextmanager
def _nowhere_to_write(data: Path) -> Iterator[None]:
    """A file stands where the append-only file's folder was, while the block runs: a rewrite cannot begin."""
    folder = data / "appendonlydir"
    if not folder.is_dir():
        pytest.skip("this server keeps its append-only file in no folder of its own: Redis before 7")
    away = folder.rename(data / "appendonlydir-away")
    folder.write_text("no folder", encoding="ascii")
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)
