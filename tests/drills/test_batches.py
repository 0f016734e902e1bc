"""Drill 40: a batch whose workers, replicas, batch processes and Redis are killed one after the other while it runs.

`PENSTOCK_BATCH_ROWS` and `PENSTOCK_BATCH_EVERY_S` make it larger or slower than `make drills` does.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
import redis

from shared.keys import GlobalKeys, Keys
from tests.drills.catalogue import ALL, size
from tests.drills.conftest import Figures
from tests.support.batching import ENDED, chat_row, check_once, content, create, jsonl, names, upload
from tests.support.load import Ask, ask
from tests.support.stack import Process, Stack, running_stack

ROWS = int(os.environ.get("PENSTOCK_BATCH_ROWS", size(2_000, 50_000)))
EVERY_S = float(os.environ.get("PENSTOCK_BATCH_EVERY_S", size(3, 20)))
TOKENS = 20
SLOTS = 32
WORKERS = 2
RESERVED = 512
"""Positions that a driver takes up in advance, and rows that wait to be committed; see batch/feeding.py."""
FLAT_BYTES = 50_000_000
WAIT_MS = 300
SETTLED_S = 8.0
"""After a fault: a lease, and what a process takes to start."""


@pytest.fixture
def stack() -> Iterator[Stack]:
    """As everywhere, but Redis keeps its data."""
    with running_stack(aof=True) as started:
        yield started


@dataclass
class Watch:
    """What was seen while the batch ran."""

    most_records: int = 0
    least: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    waits_ms: list[float] = field(default_factory=list)
    quiet_waits_ms: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    fault_at_s: float = 0.0

    def weigh(self, process: Process) -> None:
        """Its memory, once it has settled."""
        if process.popen.poll() is None and time.time() * 1000 - process.started_at_ms > SETTLED_S * 1000:
            name, rss = f"{process.name} {process.pid}", process.rss_bytes
            self.least.setdefault(name, rss)
            self.most[name] = max(self.most.get(name, 0), rss)

    @property
    def growth(self) -> dict[str, int]:
        """By how many bytes each process has grown."""
        return {name: self.most[name] - least for name, least in self.least.items()}


async def looks(stack: Stack, watch: Watch) -> None:
    """How many requests Redis holds, and what each process weighs; each half second."""
    pattern = Keys("sim").record("*")
    while True:
        for process in (*stack.workers, *stack.apis, *stack.batches):
            watch.weigh(process)
        try:
            with redis.Redis(port=stack.redis_port, socket_timeout=2) as client:
                held = sum(
                    1 for key in client.scan_iter(match=pattern, count=1_000) if client.hget(key, "lane") == b"batch"
                )
            watch.most_records = max(watch.most_records, held)
        except (redis.RedisError, OSError):
            pass
        await asyncio.sleep(0.5)


async def people(stack: Stack, watch: Watch) -> None:
    """An interactive request now and then, and how long it waited for a worker."""
    number = 0
    while True:
        number += 1
        wanted = Ask([api.url for api in stack.apis], 4, first=number, headers={"X-Priority-Lane": "interactive"})
        seen = await ask(wanted)
        if seen.whole:
            waited_ms = float(seen.headers.get("x-penstock-queue-ms", "0"))
            watch.waits_ms.append(waited_ms)
            if time.monotonic() - watch.fault_at_s > SETTLED_S:
                watch.quiet_waits_ms.append(waited_ms)
        await asyncio.sleep(0.1)


async def faults(stack: Stack, watch: Watch) -> None:
    """Kills something each `EVERY_S`, and starts it again."""
    for turn in itertools.cycle(("worker", "batch", "replica", "redis")):
        await asyncio.sleep(EVERY_S)
        watch.fault_at_s = time.monotonic()
        watch.faults.append(turn)
        index = len(watch.faults) // 4
        if turn == "redis":
            stack.redis.kill()
            await asyncio.to_thread(stack.start_redis)
            continue
        group: list[Process] = {"worker": stack.workers, "batch": stack.batches, "replica": stack.apis}[turn]  # type: ignore[assignment]
        victim = group[index % len(group)]
        victim.kill()
        stack.again(victim)


@asynccontextmanager
async def alongside(*loops: object) -> AsyncIterator[None]:
    """Runs these while the block runs."""
    tasks = [asyncio.ensure_future(loop) for loop in loops]  # type: ignore[call-overload]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ended(stack: Stack, batch: str, within_s: float) -> dict[str, object]:
    """The batch once it has ended, by whichever replica answers."""
    give_up_at_s = time.monotonic() + within_s
    found: dict[str, object] = {}
    async with httpx.AsyncClient(timeout=5) as client:
        while found.get("status") not in ENDED:
            assert time.monotonic() < give_up_at_s, found
            for api in stack.apis:
                try:
                    answer = await client.get(f"{api.url}/v1/batches/{batch}")
                except httpx.HTTPError:
                    continue
                found = answer.json() if answer.status_code == 200 else found
            await asyncio.sleep(0.25)
    return found


@pytest.mark.drill(40)
@pytest.mark.timeout(3_000 if ALL else 240)
async def test_no_row_is_lost_or_doubled_whatever_is_killed(stack: Stack, figures: Figures) -> None:
    for _ in range(WORKERS):
        stack.worker("--max-active", str(SLOTS), "--", "--ttft-ms", "20", "--itl-ms", str(size(30, 50)))
    for _ in range(2):
        stack.api()
        stack.batch()
    watch = Watch()
    began_s = time.monotonic()
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=30) as client:
        batch = (await create(client, await upload(stack, jsonl(chat_row(name, TOKENS) for name in names(ROWS)))))["id"]
    async with alongside(looks(stack, watch), people(stack, watch), faults(stack, watch)):
        found = await ended(stack, batch, 2_400 if ALL else 200)
    lasted_s = time.monotonic() - began_s
    assert found["status"] == "completed", found
    lines = await content(stack, str(found["output_file_id"]))
    check_once(lines, names(ROWS))
    assert found["request_counts"] == {"total": ROWS, "completed": ROWS, "failed": 0}
    usage = found["usage"]
    assert isinstance(usage, dict)
    assert usage["output_tokens"] == ROWS * TOKENS
    window = 2 * WORKERS * SLOTS
    assert watch.most_records <= 2 * window + RESERVED, "Redis holds more than the window"
    assert len(watch.faults) >= size(3, 12), "too few faults happened"
    waits = sorted(watch.waits_ms)
    quiet = sorted(watch.quiet_waits_ms)
    with redis.Redis(port=stack.redis_port) as server:
        epoch = int(server.hget(GlobalKeys().batch(batch), "epoch") or 0)  # type: ignore[arg-type]
    figures.update(
        {
            "rows": ROWS,
            "rows/s": ROWS / lasted_s,
            "faults": len(watch.faults),
            "drivers": epoch,
            "most records": watch.most_records,
            "most growth (MB)": max(watch.growth.values(), default=0) / 1e6,
            "interactive waits p99 (ms)": waits[int(0.99 * (len(waits) - 1))] if waits else 0,
            "the same, faults apart (ms)": quiet[int(0.99 * (len(quiet) - 1))] if quiet else 0,
        }
    )
    if ALL:
        assert max(watch.growth.values(), default=0) < FLAT_BYTES, watch.growth
        assert quiet[int(0.99 * (len(quiet) - 1))] < WAIT_MS
