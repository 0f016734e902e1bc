"""What drills do again and again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import redis

from shared.keys import Keys
from shared.luascripts import load
from tests.support.client import Seen
from tests.support.faultproxy import Action, FaultProxy, Rule, proxied
from tests.support.history import POOL
from tests.support.load import Ask, ask
from tests.support.stack import Process, Stack, Worker, eventually

KEYS = Keys(POOL)
ADMIT, CLAIM, STEP, DONE = (load(name).sha for name in ("admit", "claim", "step", "done"))


def control(stack: Stack) -> redis.Redis:
    """A client of the stack's server that no fault touches."""
    return redis.Redis.from_url(stack.redis_url)


@contextlib.contextmanager
def proxy_of(stack: Stack) -> Iterator[FaultProxy]:
    """A fault proxy in front of the stack's server."""
    with proxied(stack.redis_port) as proxy:
        yield proxy


def through(proxy: FaultProxy) -> dict[str, str]:
    """The environment of a process that speaks to Redis through the proxy."""
    return {"PENSTOCK_REDIS_URL": proxy.url}


async def warm(stack: Stack) -> None:
    """One request, so that the server has all scripts: a fault that waits for a script's hash then meets its effect."""
    seen = await ask(Ask([stack.apis[0].url], 2))
    assert seen.whole, seen


async def all_visible(worker: Worker, count: int, within_s: float = 30) -> None:
    """Waits until the worker runs so many requests and has shown text of them."""
    await eventually(lambda: worker.metric("penstock_attempts_running") >= count, within_s, f"{count} requests run")
    flushed = worker.metric("penstock_flushed_frames_total")
    await eventually(
        lambda: worker.metric("penstock_flushed_frames_total") >= flushed + 2 * count, within_s, "their text is visible"
    )


async def all_wait(stack: Stack, count: int) -> None:
    """Waits until so many requests stand in the standard lane: what is not admitted yet meets another fault."""
    with control(stack) as server:
        await eventually(lambda: server.xlen(KEYS.queue("standard")) == count, 30, f"{count} requests wait")


async def busiest(stack: Stack, count: int) -> Worker:
    """The worker that runs most requests, once it runs so many and has shown text of them.

    A burst is not shared evenly: on a busy machine one worker may have pulled nearly all before the other had its turn.
    """

    def runs(worker: Worker) -> float:
        return worker.metric("penstock_attempts_running")

    await eventually(lambda: max(map(runs, stack.workers)) >= count, 30, f"somebody runs {count} requests")
    worker = max(stack.workers, key=runs)
    await all_visible(worker, count)
    return worker


@dataclass
class Killed:
    """A request whose worker was killed at a fault; `seen` is there once the block is over."""

    fault: Rule
    killed_s: float = 0.0
    seen: Seen = field(default_factory=Seen)


@contextlib.asynccontextmanager
async def killed_at(stack: Stack, match: str, action: Action, tokens: int) -> AsyncIterator[Killed]:
    """Asks for so many tokens of a worker that meets the fault. Then the block runs, and after it the worker is killed.

    Another worker takes its place, and the client reads to the end.
    """
    with proxy_of(stack) as proxy:
        victim = stack.worker(env=through(proxy))
        api = stack.api()
        await warm(stack)
        killed = Killed(proxy.rule(match, action))
        task = asyncio.create_task(ask(Ask([api.url], tokens)))
        await asyncio.to_thread(killed.fault.wait, 30, "the fault")
        yield killed
        victim.kill()
        killed.killed_s = time.monotonic()
        await asyncio.to_thread(stack.worker)
        killed.seen = await task


@contextlib.asynccontextmanager
async def asleep(process: Process, for_s: float) -> AsyncIterator[None]:
    """The process is stopped for that long; the block runs meanwhile."""
    os.kill(process.pid, signal.SIGSTOP)
    waker = asyncio.create_task(asyncio.sleep(for_s))
    try:
        yield
        await waker
    finally:
        os.kill(process.pid, signal.SIGCONT)


def api_metric(stack: Stack, name: str, **labels: str) -> float:
    """A metric, summed over the replicas that live."""
    living = [api for api in stack.apis if api.popen.poll() is None]
    return sum(api.metric(name, **labels) for api in living)


def worker_metric(stack: Stack, name: str) -> float:
    """A metric, summed over the workers that live."""
    return sum(worker.metric(name) for worker in stack.workers if worker.popen.poll() is None)
