"""Processes of which a part has failed: they end, and what a worker gives back it does not take again."""

from __future__ import annotations

import asyncio
import signal

import pytest
import redis

from shared.keys import Keys
from tests.support.load import Ask, ask, start_many
from tests.support.stack import Worker, eventually, running_stack

KEYS = Keys("sim")
FAILED = 1


def records(server: redis.Redis) -> list[dict[bytes, bytes]]:
    """All requests that there are."""
    return [server.hgetall(name) for name in server.keys(KEYS.record("*"))]


async def all_run(worker: Worker, count: int) -> None:
    await eventually(lambda: worker.metric("penstock_attempts_running") >= count, 30, f"{count} requests run")


async def test_a_worker_whose_engine_fails_costs_its_requests_one_kill_and_leaves_nothing_behind() -> None:
    with running_stack() as stack, redis.Redis.from_url(stack.redis_url) as server:
        worker = stack.worker("--", "--faults", "--itl-ms", "50", "--slots", "32")
        api = stack.api()
        asks = start_many(12, Ask([api.url], 400, patience_s=60))
        await all_run(worker, 12)
        asks.append(asyncio.create_task(ask(Ask([api.url], 400, content="fault:fail", patience_s=60))))
        await eventually(lambda: worker.popen.poll() is not None, 30, "the worker ends")
        assert worker.popen.returncode == FAILED
        found = records(server)
        assert [(one[b"state"], one[b"queue"], one[b"kills"]) for one in found] == [(b"queued", b"standard", b"1")] * 13
        assert server.xpending(KEYS.queue("standard"), "g")["pending"] == 0, "nobody must wait for a sweep"
        assert server.hlen(KEYS.workers) == 0
        for task in asks:
            task.cancel()


async def failed_while_draining() -> bool:
    """Lets an engine fail, and its worker drain within the second that this takes. Returns whether it drained first."""
    with running_stack() as stack, redis.Redis.from_url(stack.redis_url) as server:
        worker = stack.worker("--drain-s", "80", "--", "--faults", "--itl-ms", "50")
        api = stack.api()
        asks = [asyncio.create_task(ask(Ask([api.url], 4000, patience_s=60)))]
        await all_run(worker, 1)
        asks.append(asyncio.create_task(ask(Ask([api.url], 4000, content="fault:fail", patience_s=60))))
        await eventually(lambda: sum(map(server.hlen, server.scan_iter(KEYS.run("*")))) == 2, 30, "the second one runs")  # type: ignore[arg-type]
        worker.popen.send_signal(signal.SIGTERM)
        await eventually(lambda: worker.popen.poll() is not None, 40, "the worker ends")
        assert worker.popen.returncode == FAILED
        assert [one[b"kills"] for one in records(server)] == [b"1", b"1"]
        for task in asks:
            task.cancel()
        return "draining: 2 requests" in worker.log.read_text()


async def test_an_engine_that_fails_during_a_drain_ends_the_drain() -> None:
    for _ in range(5):  # a busy machine may be late, and its engine fails first
        if await failed_while_draining():
            return
    pytest.fail("no engine failed during its drain")


async def test_a_replica_that_has_lost_a_service_ends_and_says_why() -> None:
    with running_stack() as stack, redis.Redis.from_url(stack.redis_url) as server:
        api = stack.api(ready=False)
        server.set("ps:pools", "a string where a hash is read")
        await eventually(lambda: api.popen.poll() is not None, 30, "the replica ends")
        assert api.popen.returncode == FAILED
        assert "this replica ends" in api.log.read_text()
