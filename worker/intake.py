"""The intake: takes from the queue what the engine can start now, and nothing more.

So the engine's own waiting queue stays empty and the lanes keep their meaning: a request that nobody can start yet
is still on its queue, where an interactive one can overtake it, another worker can take it and a cancel removes it at
once. When nothing can start, an interactive one that has waited may get the slot of a batch one: see preemption.py.

An entry is delivered by `pull` while there is a backlog, by a blocking read while every queue is empty, and then
claimed. Entries that were delivered to somebody who never claimed them are swept up after a few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine
from typing import Any

import hiredis

from shared.errors import BrokerUnavailableError, FencedError
from shared.hot import HotClient
from shared.ids import new_attempt_id
from shared.keys import Keys
from shared.lanes import QUEUES
from shared.metrics import CLAIMS, PREEMPTIONS, QUEUE_WAIT, child
from shared.outcomes import Claimed, Entry, Unclaimed
from shared.scripts import Scripts
from worker.attempt import Attempt, Claim, Stop
from worker.attempts import Attempts
from worker.engines.base import Engine
from worker.identity import Identity
from worker.preemption import Preemption

log = logging.getLogger(__name__)

BLOCK_MS = 1_000
"""At most a second: older servers do not wake a blocked reader when its stream is deleted."""
_BLOCK_TIMEOUT_S = BLOCK_MS / 1000 + 1.5
_SWEEP_EVERY_S = 2.0
_SWEEP_IDLE_MS = 3_000
_SWEEP_COUNT = 32
_MOST_PULLED = 32
"""In one turn, for whoever else waits for Redis. `pull` gives less, where other workers want their share."""
_SATURATED_PAUSE_S = 0.05
_RETRY_PAUSE_S = 0.2
_COMMAND_TIMEOUT_S = 5.0
_CLAIM_TRIES = 25
_AT_ONCE_S = 0.002
"""A blocking read that answers sooner did not block: there was a backlog."""


class Intake:
    """A service: see `services.py`."""

    name = "intake"

    def __init__(
        self,
        client: HotClient,
        reader: HotClient,
        keys: Keys,
        scripts: Scripts,
        engine: Engine,
        attempts: Attempts,
        identity: Identity,
        slots: int,
    ) -> None:
        """`reader` is a connection of its own for the blocking read. `slots`: most sequences to run at once."""
        self._client = client
        self._reader = reader
        self._keys = keys
        self._scripts = scripts
        self._engine = engine
        self._attempts = attempts
        self._identity = identity
        self._asked_as = identity.wid
        self._slots = slots
        self._preemption = Preemption(scripts, attempts, slots)
        self._queue_of = {keys.queue(queue.name).encode(): queue.name for queue in QUEUES}
        self._room = asyncio.Event()
        self._claiming: set[asyncio.Task[None]] = set()
        self._swept_at_s = 0.0
        self._pulled_at_s = 0.0
        self._backlog = True
        self._draining = False
        self._stopped = asyncio.Event()

    def room(self) -> None:
        """There may be room again."""
        self._room.set()

    def close(self) -> None:
        """Takes nothing more, but what the read under way brings."""
        self._draining = True
        self._room.set()

    async def drain(self) -> None:
        """Takes nothing more; returns once that is certain."""
        self.close()
        await self._stopped.wait()

    async def run(self, started: asyncio.Event) -> None:
        """Works until drained or cancelled. After a drain it idles."""
        started.set()
        while not self._draining:
            try:
                await self._turn_with_groups()
            except FencedError:
                self._identity.condemned(self._asked_as)  # which the beat may have replaced meanwhile
            except BrokerUnavailableError as error:
                log.warning("intake: %s", error)
                await asyncio.sleep(_RETRY_PAUSE_S)
        if self._claiming:
            await asyncio.wait(self._claiming)
        self._stopped.set()
        await asyncio.Event().wait()

    async def _turn_with_groups(self) -> None:
        """A turn; on a server without the queues, which was flushed or came back empty, it makes them instead."""
        try:
            await self._turn()
        except hiredis.ReplyError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            await self._make_groups()

    async def _turn(self) -> None:
        free = self._slots - self._attempts.width - len(self._claiming)
        if free <= 0 or self._engine.capacity().saturated:
            self._backlog = True
            await self._full(_SATURATED_PAUSE_S if free > 0 else math.inf)
            return
        wid = self._asked_as = self._identity.wid
        entries = await self._sweep(wid, free)
        if not entries and (self._backlog or time.monotonic() - self._pulled_at_s > BLOCK_MS / 1000):
            if self._claiming:  # one bite after the other: other workers want their share of a burst
                await asyncio.wait(self._claiming)
            self._pulled_at_s = time.monotonic()
            entries = await self._scripts.pull(wid, min(free, _MOST_PULLED), held=self._attempts.width)
            self._backlog = bool(entries)
        if not entries:
            entries = await self._wait(wid)
        for entry in entries:
            self._start_claim(self._claim(wid, entry), entry)
        if entries:
            # the claims are written first, and the next read right behind them: the server wakes up once for both
            await asyncio.sleep(0)

    async def _full(self, at_most_s: float) -> None:
        """Waits for room, at most so long; or makes some."""
        self._room.clear()
        due_in_s = self._preemption.due_in_s()
        with contextlib.suppress(TimeoutError):
            limit_s = min(at_most_s, due_in_s)
            async with asyncio.timeout(limit_s if limit_s < math.inf else None):
                await self._room.wait()
                return
        if due_in_s > at_most_s:
            return
        wid = self._asked_as = self._identity.wid
        for entry, maker in await self._preemption.look(wid):
            if maker is not None:
                log.info("request %s gives its slot to %s, which waits", maker.rid, entry.rid)
                maker.stop(Stop.PREEMPT)
            self._start_claim(self._claim_after(maker, wid, entry), entry)

    def _start_claim(self, claim: Coroutine[Any, Any, None], entry: Entry) -> None:
        task = asyncio.create_task(claim, name=f"claim-{entry.rid}")
        self._claiming.add(task)
        task.add_done_callback(self._claimed)

    def _claimed(self, task: asyncio.Task[None]) -> None:
        self._claiming.discard(task)
        self._room.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed; its entry is swept up later", task.get_name(), exc_info=error)

    async def _wait(self, wid: str) -> list[Entry]:
        """One entry as soon as there is one; nothing after BLOCK_MS. Never cancelled: the entry would be orphaned.

        Such a read knows no lanes. So after one that did not have to wait, or found several, `pull` chooses.
        """
        began_s = time.monotonic()
        queues = list(self._queue_of)
        command = ("XREADGROUP", "GROUP", "g", wid, "COUNT", "1", "BLOCK", str(BLOCK_MS), "STREAMS", *queues)
        reply = await self._reader.call(*command, *[">"] * len(queues), timeout_s=_BLOCK_TIMEOUT_S)
        found = [self._entry(queue, entry) for queue, entries in reply or () for entry in entries]
        at_once = bool(found) and time.monotonic() - began_s < _AT_ONCE_S
        # what waits in a lane that was paused wakes no reader: that is found by the pull that comes each second anyway
        self._backlog = not found or len(found) > 1 or at_once
        return found

    async def _sweep(self, wid: str, free: int) -> list[Entry]:
        """Entries that were delivered and not claimed, at most `free`: their worker died, or the reply was lost."""
        now_s = time.monotonic()
        if now_s - self._swept_at_s < _SWEEP_EVERY_S:
            return []
        self._swept_at_s = now_s
        found: list[Entry] = []
        for queue in self._queue_of:
            count = min(_SWEEP_COUNT, free - len(found))
            if count <= 0:
                self._swept_at_s = 0.0  # there may be more: as soon as there is room
                break
            command = ("XAUTOCLAIM", queue, "g", wid, str(_SWEEP_IDLE_MS), "0-0", "COUNT", str(count))
            reply = await self._client.call(*command, timeout_s=_COMMAND_TIMEOUT_S)
            found += [self._entry(queue, entry) for entry in reply[1] if entry and entry[1]]
        if found:
            log.info("swept up %d entries that nobody had claimed", len(found))
        return found

    def _entry(self, queue: bytes, entry: list[Any]) -> Entry:
        entry_id, fields = entry
        return Entry(self._queue_of[queue], entry_id.decode(), fields[1].decode())

    async def _claim_after(self, maker: Attempt | None, wid: str, entry: Entry) -> None:
        """Claims once `maker` has made room."""
        if maker is not None:
            await maker.over.wait()
            child(PREEMPTIONS, maker.outcome).inc()
        await self._claim(wid, entry)

    async def _claim(self, wid: str, entry: Entry) -> None:
        attempt = new_attempt_id()
        claimed: Claimed | Unclaimed | None = None
        for _ in range(_CLAIM_TRIES):
            try:
                claimed = await self._scripts.claim(wid, entry, attempt)
                break
            except BrokerUnavailableError:
                await asyncio.sleep(_RETRY_PAUSE_S)
            except FencedError:
                self._identity.condemned(wid)
                return
        if claimed is None:
            log.warning("request %s could not be claimed; it is swept up later", entry.rid)
            return
        if isinstance(claimed, Unclaimed):
            child(CLAIMS, claimed.outcome.lower()).inc()
            return
        if wid != self._identity.wid:  # condemned meanwhile: the reapers take it from the old id
            child(CLAIMS, "condemned").inc()
            return
        self._accept(entry, attempt, claimed)

    def _accept(self, entry: Entry, attempt: str, claimed: Claimed) -> None:
        child(CLAIMS, "ok").inc()
        if claimed.claims == 1:  # later ones have run in between
            waited_s = (claimed.started_at_ms - claimed.queued_at_ms) / 1000
            child(QUEUE_WAIT, entry.queue, self._keys.pool).observe(waited_s)
        self._attempts.start(Claim(entry.rid, attempt, entry.queue, claimed))

    async def _make_groups(self) -> None:
        for queue in self._queue_of:
            try:
                await self._client.call("XGROUP", "CREATE", queue, "g", "0", "MKSTREAM", timeout_s=_COMMAND_TIMEOUT_S)
            except hiredis.ReplyError as error:
                if "BUSYGROUP" not in str(error):
                    raise
