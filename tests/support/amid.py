"""Moments in the middle of streams, seen in Redis: a client on a busy machine sees them too late.

A tiny model says a thousand tokens in less than a second. Whoever waits here says when its streams are `over`, and
tries again when they were over first.
"""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import redis

from shared.keys import Keys
from tests.support.stack import Stack, Worker

_Said = TypeVar("_Said")

_LOOK_S = 0.003
_SEEN_BYTES = 2_000
_ON_ITS_WAY_S = 0.02
_TRIES = 20


def texts_of(server: Any, keys: Keys, wid: str) -> list[int]:
    """Bytes of text of each request that a worker runs."""
    return [server.strlen(keys.log(rid.decode())) for rid in server.hkeys(keys.run(wid))]


def workers_of(stack: Stack) -> dict[str, Worker]:
    """The workers that live, by their ids."""
    living = [worker for worker in stack.workers if worker.popen.poll() is None]
    return {re.findall(r"worker (\S+) serves", worker.log.read_text())[-1]: worker for worker in living}


def amid(stack: Stack, pool: str, running: int, saying: int, over: threading.Event) -> bool:
    """Waits until so many requests run and `saying` of them have text. False when they were `over` first."""
    wids = list(workers_of(stack))
    with redis.Redis.from_url(stack.redis_url) as server:
        while not over.wait(_LOOK_S):
            texts = [text for wid in wids for text in texts_of(server, Keys(pool), wid)]
            if len(texts) >= running and sum(text > _SEEN_BYTES for text in texts) >= saying:
                return True
    return False


def kill_amid(stack: Stack, pool: str, streams: int, over: threading.Event) -> Worker | None:
    """Kills a worker that runs at least so many streams, all of which have text; returns it, or None when `over` first.

    The worker is stopped first and looked at again, or its streams might end between the look and the kill.
    """
    wids = workers_of(stack)

    def holds(wid: str) -> bool:
        texts = texts_of(server, Keys(pool), wid)
        return len(texts) >= streams and min(texts) > _SEEN_BYTES

    with redis.Redis.from_url(stack.redis_url) as server:
        while not over.wait(_LOOK_S):
            for wid, worker in wids.items():
                if not holds(wid):
                    continue
                worker.popen.send_signal(signal.SIGSTOP)
                time.sleep(_ON_ITS_WAY_S)
                if holds(wid):
                    worker.kill()
                    return worker
                worker.popen.send_signal(signal.SIGCONT)
    return None


async def all_amid(stack: Stack, pool: str, count: int, within_s: float = 60) -> None:
    """Waits until so many requests run and all of them have text. Raises TimeoutError."""
    over = threading.Event()
    looking = asyncio.create_task(asyncio.to_thread(amid, stack, pool, count, count, over))
    await asyncio.wait({looking}, timeout=within_s)
    over.set()
    if not await looking:
        msg = f"not within {within_s} s: {count} requests run and have text"
        raise TimeoutError(msg)


async def cut_short(
    stack: Stack, pool: str, least: int, streams: Callable[[], Awaitable[_Said]]
) -> tuple[Worker, asyncio.Future[_Said]]:
    """Starts `streams` again and again until a worker with at least `least` of them was killed among their texts."""
    for _ in range(_TRIES):
        over = threading.Event()
        killing = asyncio.create_task(asyncio.to_thread(kill_amid, stack, pool, least, over))
        reading = asyncio.ensure_future(streams())
        await asyncio.wait({killing, reading}, return_when=asyncio.FIRST_COMPLETED)
        over.set()
        if victim := await killing:
            return victim, reading
        await reading
    pytest.fail("the streams were over before anybody saw them run, each time")
