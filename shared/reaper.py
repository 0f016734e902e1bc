"""The reaper: takes requests away from dead workers, and ends those whose deadline has passed.

One runs in every replica and in every worker, with jitter and without a leader: each action is one atomic, idempotent
script. A worker is condemned only after its lease was seen missing twice, a tick apart, by a reaper whose own view of
Redis has been undisturbed for longer than a lease: after a failover every lease may be missing, and nobody is dead. A
server that answers and has no room to write is a disturbance, too.

A condemned worker is buried again and again until nothing is left of it, the consumers of its id included. Consumers
that a worker has left behind without a card, as after a flush, are found by a look at the groups now and then.

A lane that is never empty keeps the finish tags of tenants that have gone; they are dropped slice by slice.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Literal

import redis
import redis.asyncio

from shared.clock import Clock, SystemClock
from shared.connection import RedisCaller, broker_errors
from shared.errors import BrokerUnavailableError
from shared.keys import Keys
from shared.lanes import FAIR, QUARANTINE, QUEUES
from shared.limits import LEASE_MS, SUSPECT_KILLS
from shared.metrics import REAPER_CONDEMNED, REAPER_EXPIRED, REAPER_REQUEUED, RELEASED
from shared.registry import Registry
from shared.scripts import Scripts

log = logging.getLogger(__name__)

TICK_S = 1.0
_SWEEP_COUNT = 20
_MOST_SWEEPS = 25
"""Of deadlines, in one round: where nobody starts anything many are due at once, and clients wait for their end."""
_LOOKS = 5
_STRANGERS_EVERY_TICKS = 30
_STRANGER_IDLE_MS = 60_000
_PRUNE_EVERY_TICKS = 5
_PRUNE_FIELDS = 200
_MOST_SLICES = 20
"""Of one ledger, in one go, as long as they are full of what is to be dropped."""


class Reaper:
    """A service: see `services.py`."""

    name = "reaper"

    def __init__(self, client: redis.asyncio.Redis, prefix: str, clock: Clock | None = None) -> None:
        self._client = client
        self._prefix = prefix
        self._registry = Registry(client, prefix)
        self._clock = clock or SystemClock()
        self._missed: set[tuple[str, str]] = set()
        self._dying: set[tuple[str, str]] = set()
        self._pruned: dict[tuple[str, str], str] = {}
        self._ticks = 0
        self._undisturbed_since_s = self._clock.monotonic_s()

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled."""
        started.set()
        while True:
            await asyncio.sleep(TICK_S * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            await self.tick()

    async def tick(self) -> None:
        """One round over all pools. Never raises for a broker that is away: the round is then lost."""
        self._ticks += 1
        try:
            for pool in await self._registry.known():
                keys = Keys(pool, prefix=self._prefix)
                scripts = Scripts(RedisCaller(self._client), keys)
                await self._reap(keys, scripts)
                await self._expire(keys, scripts)
                await self._release(keys, scripts)
                if self._ticks % _PRUNE_EVERY_TICKS == 0:
                    await self._prune(keys, scripts)
                if self._ticks % _STRANGERS_EVERY_TICKS == 0:
                    await self._bury_strangers(keys, scripts)
                    await self._registry.forget(pool)
        except BrokerUnavailableError as error:
            log.debug("reaper: %s", error)
            self._missed.clear()
            self._undisturbed_since_s = self._clock.monotonic_s()

    async def _reap(self, keys: Keys, scripts: Scripts) -> None:
        wids = list(await self._registry.workers(keys))
        if not wids:
            return
        alive = await self._registry.alive(keys, wids)
        if not all(alive):  # a server that refuses to write, being full, has refused the beats as well
            await self._registry.write(keys.pool)
        trusted = self._clock.monotonic_s() - self._undisturbed_since_s >= LEASE_MS / 1000
        for wid, lives in zip(wids, alive, strict=True):
            seen = (keys.pool, wid)
            if lives:
                self._missed.discard(seen)
            elif seen not in self._missed:
                self._missed.add(seen)
            elif trusted and await scripts.condemn(wid):
                if seen not in self._dying:
                    self._dying.add(seen)
                    log.warning("worker %s of pool %s is dead; taking its requests back", wid, keys.pool)
                    REAPER_CONDEMNED.inc()
                if await self.bury(keys, scripts, wid):
                    self._missed.discard(seen)
                    self._dying.discard(seen)

    async def bury(self, keys: Keys, scripts: Scripts, wid: str) -> bool:
        """Requeues everything that a condemned worker owned, then forgets the worker. False when something is left."""
        await self._take_back(keys, scripts, wid, "kill")
        return await scripts.bury(wid) == "OK"

    async def hand_back(self, keys: Keys, scripts: Scripts, wid: str) -> None:
        """Requeues everything that this process owns as worker `wid`, before it leaves in order. No kill is counted."""
        await self._take_back(keys, scripts, wid, "hand_back")

    async def _take_back(self, keys: Keys, scripts: Scripts, wid: str, how: Literal["kill", "hand_back"]) -> None:
        suspect = await self._suspect(keys)
        owned = await self._owned(keys, wid)
        for rid, attempt in sorted(
            owned.items(), key=lambda item: item[0] == suspect
        ):  # see requeue.lua: it comes last
            outcome = await scripts.requeue(wid, rid, attempt, how=how)
            REAPER_REQUEUED.labels(outcome=outcome).inc()
            log.info("request %s of worker %s: %s", rid, wid, outcome)

    async def _bury_strangers(self, keys: Keys, scripts: Scripts) -> None:
        """Buries consumers that have neither card nor lease, and have asked for nothing for a while."""
        known = await self._registry.workers(keys)
        for wid in await self._idle_consumers(keys):
            if wid not in known and await scripts.condemn(wid):
                await self.bury(keys, scripts, wid)

    @broker_errors
    async def _idle_consumers(self, keys: Keys) -> set[str]:
        found: set[str] = set()
        for queue in QUEUES:
            try:
                consumers = await self._client.xinfo_consumers(keys.queue(queue.name), "g")
            except redis.ResponseError:  # no such queue yet
                continue
            found |= {entry["name"].decode() for entry in consumers if entry["idle"] >= _STRANGER_IDLE_MS}
        return found

    @broker_errors
    async def _owned(self, keys: Keys, wid: str) -> dict[str, str]:
        owned = await self._client.hgetall(keys.run(wid))  # type: ignore[misc]
        return {rid.decode(): attempt.decode() for rid, attempt in owned.items()}

    async def _release(self, keys: Keys, scripts: Scripts) -> None:
        """Lets the next suspect out of quarantine once the one before has ended."""
        for _ in range(_LOOKS):
            waits = await self._next_suspect(keys)
            if waits is None:
                return
            outcome = await scripts.release(await self._suspect(keys), waits)
            if outcome == "OK":
                RELEASED.inc()
                log.warning("request %s has killed %d workers; it is let out of quarantine", waits, SUSPECT_KILLS)
            if outcome not in {"RETRY", "STALE"}:
                return

    @broker_errors
    async def _suspect(self, keys: Keys) -> str:
        return (await self._client.get(keys.suspect) or b"-").decode()

    @broker_errors
    async def _next_suspect(self, keys: Keys) -> str | None:
        head = await self._client.xrange(keys.queue(QUARANTINE), count=1)
        return head[0][1][b"rid"].decode() if head else None

    async def _prune(self, keys: Keys, scripts: Scripts) -> None:
        """The next slice of each lane's ledger, or some of them; where it ended is kept for the next time."""
        for lane in sorted(FAIR):
            where = (keys.pool, lane)
            for _ in range(_MOST_SLICES):
                cursor = self._pruned.get(where, "0")
                self._pruned[where], dropped = await scripts.prune(lane, cursor, _PRUNE_FIELDS)
                if dropped < _PRUNE_FIELDS / 4:
                    break

    async def _expire(self, keys: Keys, scripts: Scripts) -> None:
        before: list[str] = []
        for _ in range(_MOST_SWEEPS):
            due = await self._due(keys)
            await self._expire_each(keys, scripts, due)
            if len(due) < _SWEEP_COUNT or due == before:
                return
            before = due

    async def _expire_each(self, keys: Keys, scripts: Scripts, due: list[str]) -> None:
        for rid in due:
            for _ in range(_LOOKS):
                owner, queue = await owner_and_queue(self._client, keys, rid)
                outcome = await scripts.expire(rid, owner=owner, queue=queue)
                if outcome != "RETRY":
                    REAPER_EXPIRED.labels(outcome=outcome).inc()
                    break

    @broker_errors
    async def _due(self, keys: Keys) -> list[str]:
        seconds, micros = await self._client.time()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        rids = await self._client.zrangebyscore(keys.deadlines, 0, now_ms, start=0, num=_SWEEP_COUNT)
        return [rid.decode() for rid in rids]


@broker_errors
async def owner_and_queue(client: redis.asyncio.Redis, keys: Keys, rid: str) -> tuple[str, str]:
    """Who owns a request and on which queue it is, as `cancel` and `expire` want to be told; '-' for neither."""
    owner, queue = await client.hmget(keys.record(rid), ["owner", "queue"])  # type: ignore[misc]
    return (owner or b"-").decode(), (queue or b"-").decode()
