"""Clients that read streams while a drill does its harm, and the worker that it does it to."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shared.keys import Keys
from shared.wire import decode_card
from tests.drills.acting import control
from tests.support.client import Seen
from tests.support.load import Ask, ask
from tests.support.stack import Stack, Worker, eventually, metric


class Streams:
    """Clients, each with its question; what they have seen can be looked at meanwhile."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.seen = [Seen() for _ in asks]
        self._tasks = [asyncio.create_task(ask(one, seen)) for one, seen in zip(asks, self.seen, strict=True)]

    @property
    def open(self) -> int:
        """Streams that have shown text and have not ended."""
        return sum(one.tokens > 0 and not one.finish_reasons for one in self.seen)

    async def caught(
        self, stack: Stack, keys: Keys, count: int, between: tuple[int, int] = (2, 15), kinds: int = 1
    ) -> tuple[Worker, Worker]:
        """Waits until one worker is in the middle of so many streams. Returns that one and the other one.

        `kinds`: the requests take turns in so many kinds, and the worker must be in the middle of `count` of each.
        """
        end_s = time.monotonic() + 60
        with control(stack) as server:
            while time.monotonic() < end_s and not all(one.finish_reasons for one in self.seen):
                middle = [
                    (number, one)
                    for number, one in enumerate(self.seen)
                    if between[0] <= one.tokens <= between[1] and not one.finish_reasons
                ]
                asked = server.pipeline(transaction=False)
                for _, one in middle:
                    asked.hget(keys.record(one.rid), "owner")
                owned = Counter((wid, number % kinds) for wid, (number, _) in zip(asked.execute(), middle, strict=True))
                for wid in {wid for wid, _ in owned if wid}:
                    ripe = all(owned[wid, kind] >= count for kind in range(kinds))
                    card = server.hget(keys.workers, wid) if ripe else None
                    if card:  # a worker with a new id may run requests before its card is there
                        pid = decode_card(card).pid
                        return tuple(sorted(stack.workers, key=lambda worker: worker.pid != pid))  # type: ignore[return-value]
                await asyncio.sleep(0.01)
        raise TimeoutError("no worker was in the middle of enough streams")

    async def visible(self, count: int, tokens: int) -> int:
        """Waits until so many clients have seen so many tokens. Returns how many streams are open then."""
        what = f"{count} streams have {tokens} tokens"
        await eventually(lambda: sum(one.tokens >= tokens for one in self.seen) >= count, 60, what)
        return self.open

    async def ended(self) -> list[Seen]:
        """What the clients have seen, at the end."""
        await asyncio.gather(*self._tasks)
        return self.seen


class Counts:
    """A worker's counters, now."""

    def __init__(self, worker: Worker) -> None:
        self.fenced = int(worker.metric("penstock_fenced_appends_total"))
        self.renewals = int(worker.metric("penstock_worker_renewals_total"))
        self.resumes = int(worker.metric("penstock_resumes_total"))
        url = f"http://127.0.0.1:{worker.ops_port}/metrics"
        self.refused = int(metric(url, "penstock_attempts_total", outcome="fenced"))
        self.verified = int(metric(url, "penstock_resumes_total", policy="verify"))


def family_of(pid: int) -> list[int]:
    """The process and all that descend from it: a worker's engine is a child."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(one for found in children for child in found.read_text().split() for one in family_of(int(child)))]
