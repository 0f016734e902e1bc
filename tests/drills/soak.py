"""A soak: requests without end, and a random fault every few seconds; the history checker and the bill at the end.

    python -m tests.drills.soak --requests 10000 --workers 3 --apis 2 --seed 1

Faults: kill -9 of a worker or of a replica (started again), a worker asleep for longer than its lease, the subscriber
connections killed, SCRIPT FLUSH, and kill -9 of Redis, which comes back with its append-only file. Nothing may be lost,
nothing may come twice, nothing may be spliced; memory, keys and connections at the end are those of the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import redis

from tests.drills.acting import KEYS as K
from tests.drills.acting import control
from tests.support.client import Seen
from tests.support.history import check_clients, check_history
from tests.support.load import Ask, ask
from tests.support.stack import Stack, eventually, get, running_stack
from tests.support.supervisor import Supervisor, supervised

TOKENS = 40
_CHECKED_AT_ONCE = 200
_SLEEP_S = 8.0


class Soak:
    """One run."""

    def __init__(self, stack: Stack, supervisor: Supervisor, options: argparse.Namespace) -> None:
        self._stack = stack
        self._supervisor = supervisor
        self._options = options
        self._rnd = random.Random(options.seed)
        self._asked = 0
        self.faults: Counter[str] = Counter()
        self.seen: list[Seen] = []

    async def run(self) -> None:
        """All requests, among faults."""
        clients = [asyncio.create_task(self._client(number)) for number in range(self._options.clients)]
        nemesis = asyncio.create_task(self._nemesis())
        await asyncio.gather(*clients)
        nemesis.cancel()
        await asyncio.gather(nemesis, return_exceptions=True)

    async def _client(self, number: int) -> None:
        urls = [api.url for api in self._stack.apis]
        while self._asked < self._options.requests:
            self._asked += 1
            stream = self._rnd.random() < 0.9
            # a request whose replica died before it said which request it is may be asked again: nothing is known of it
            self.seen.append(await ask(Ask(urls, TOKENS, resume=True, stream=stream, first=number, patience_s=120)))
            number += 1

    async def _nemesis(self) -> None:
        """One fault after the other."""
        faults: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (4, self._kill_worker),
            (2, self._kill_replica),
            (1, self._put_to_sleep),
            (2, self._kill_subscribers),
            (1, self._flush_scripts),
            (2, self._restart_redis),
        ]
        low, high = self._options.every_s
        while True:
            await asyncio.sleep(self._rnd.uniform(low, high))
            fault = self._rnd.choices([fault for _, fault in faults], [weight for weight, _ in faults])[0]
            await fault()

    async def _kill_worker(self) -> None:
        self._supervisor.enabled = self._rnd.random() < 0.5  # the others leave it to the reapers
        victim = self._rnd.choice(self._stack.workers)
        victim.kill()
        self.faults["worker killed"] += 1
        if not self._supervisor.enabled:
            self._stack.again(victim)
        await asyncio.sleep(1)
        self._supervisor.enabled = True

    async def _kill_replica(self) -> None:
        victim = self._rnd.choice(self._stack.apis)
        victim.kill()
        self.faults["replica killed"] += 1
        self._stack.again(victim)

    async def _put_to_sleep(self) -> None:
        victim = self._rnd.choice(self._stack.workers)
        os.kill(victim.pid, signal.SIGSTOP)
        self.faults["worker slept past its lease"] += 1
        await asyncio.sleep(_SLEEP_S)
        os.kill(victim.pid, signal.SIGCONT)

    async def _kill_subscribers(self) -> None:
        with control(self._stack) as server:
            self.faults["subscribers killed"] += int(server.client_kill_filter(_type="pubsub"))

    async def _flush_scripts(self) -> None:
        with control(self._stack) as server:
            server.script_flush()
        self.faults["scripts flushed"] += 1

    async def _restart_redis(self) -> None:
        self._stack.redis.kill()
        await asyncio.to_thread(self._stack.start_redis)
        self.faults["redis killed"] += 1


def verdict_of(seen: list[Seen]) -> dict[str, object]:
    """The bill. Raises AssertionError when something was lost, came twice or was spliced."""
    nameless = [one for one in seen if one.broken and not one.rid]  # its replica died before it had answered
    verdict = check_clients([one for one in seen if one not in nameless], TOKENS)
    assert set(verdict.errors) <= {"broker_unavailable", "no_capacity"}, verdict
    return {
        "requests": len(seen),
        "whole": verdict.whole,
        "explicit errors": dict(verdict.errors),
        "broke before they had an id": len(nameless),
        "resumes": verdict.resumes,
        "longest pause s": round(verdict.longest_pause_s, 2),
    }


async def soak(options: argparse.Namespace) -> dict[str, object]:
    """Starts everything, runs, checks. Returns the figures."""
    with running_stack(aof=True) as stack:
        flags = ("--", "--itl-ms", "25", "--ttft-ms", "30", "--slots", "64")
        for _ in range(options.workers):
            stack.worker(*flags)
        for _ in range(options.apis):
            stack.api()
        async with supervised(stack, restart=True) as supervisor:
            run, began_s = Soak(stack, supervisor, options), time.monotonic()
            await run.run()
            figures = verdict_of(run.seen)
            for api in stack.apis:
                await eventually(lambda api=api: _answers(f"{api.url}/readyz"), 30, "it is ready")  # type: ignore[misc]
            await check_history(stack.redis_url, [], TOKENS, within_s=60)
            for start in range(0, len(run.seen), _CHECKED_AT_ONCE):
                some = [one for one in run.seen[start : start + _CHECKED_AT_ONCE] if one.whole]
                await check_history(stack.redis_url, some, TOKENS, kept=options.kept)
            figures |= {"faults": dict(run.faults), "took s": round(time.monotonic() - began_s)}
            figures |= await _rest(stack)
    return figures


async def _rest(stack: Stack) -> dict[str, object]:
    """What is left behind: consumers, cards, connections, memory."""
    with control(stack) as server:
        await eventually(lambda: server.hlen(K.workers) == len(stack.workers), 40, "the dead are buried")
        return {
            "cards": server.hlen(K.workers),
            "consumers": max(_consumers(server)),
            "connections to Redis": len(server.client_list()),
            "replicas' memory MB": [round(api.rss_bytes / 1e6) for api in stack.apis],
            "workers' memory MB": [round(worker.rss_bytes / 1e6) for worker in stack.workers],
        }


def _consumers(server: redis.Redis) -> list[int]:
    queues = [key for key in server.scan_iter(match=K.queue("*"), count=1000) if not key.endswith(b":quarantine")]
    return [len(server.xinfo_consumers(key, "g")) for key in queues] or [0]


def _answers(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except OSError:
        return False


def _page(figures: dict[str, object], options: argparse.Namespace) -> str:
    """The figures as Markdown."""
    processes = f"{options.workers} workers, {options.apis} replicas, {options.clients} clients at once"
    told = f"`make soak`: {options.requests} requests, {processes}, seed {options.seed}"
    rows = [f"| {name} | {value} |" for name, value in figures.items()]
    return "\n".join(["# Soak", "", f"{told}.", "", "| | |", "|---|---|", *rows, ""])


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="soak under random faults")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=48, help="at once")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--apis", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-s", type=float, nargs=2, default=(4.0, 12.0), help="seconds between faults")
    parser.add_argument("--kept", action="store_true", help="records must be there at the end (short soaks only)")
    parser.add_argument("--report", type=Path, help="Markdown file for the figures")
    options = parser.parse_args()
    figures = asyncio.run(soak(options))
    lines = [f"{name:28} {value}" for name, value in figures.items()]
    print("\n".join(lines))  # noqa: T201 - this is a program
    if options.report:
        options.report.write_text(_page(figures, options), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
