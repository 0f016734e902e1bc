"""Lanes in the hands of an operator: what waits in them, what is set, and the removal of what waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import redis.asyncio

from shared.connection import RedisCaller, broker_errors
from shared.errors import RequestError, model_not_found
from shared.keys import Keys
from shared.lane_settings import DRAINING, PAUSED, SETTINGS
from shared.lanes import QUEUES, Lane
from shared.outcomes import Bounds
from shared.registry import Registry
from shared.scripts import Scripts

PURGED = "purged"
"""The reason of a request that an operator took off its queue."""
_PAGE = 200
_AT_ONCE = 8
"""Cancels on their way at a time: Redis serves everybody else in between, and the connection pool keeps some free."""


@dataclass(frozen=True, slots=True)
class InForce:
    """A setting as it is in force.

    Attributes:
        value: None where a replica has it and this process does not know it.
        source: `live`, set in the running system; `default`, built in; `replica`, what each replica was started with.
    """

    value: float | None
    source: Literal["live", "default", "replica"]


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane of a pool.

    Attributes:
        oldest_age_ms: how long the first of those that wait has done so; 0 when none does.
        work_tokens: what they are expected to cost together.
        retrying: those of them that had started before and wait for another worker.
        settings: by name, in the order of `SETTINGS`.
    """

    pool: str
    lane: Lane
    depth: int
    oldest_age_ms: int
    work_tokens: int
    retrying: int
    paused: bool
    draining: bool
    settings: dict[str, InForce]

    def facts(self) -> dict[str, Any]:
        """For people and for JSON."""
        return {
            "pool": self.pool,
            "lane": self.lane.value,
            "depth": self.depth,
            "oldest_age_ms": self.oldest_age_ms,
            "work_tokens": self.work_tokens,
            "retrying": self.retrying,
            "paused": self.paused,
            "draining": self.draining,
            "settings": {name: {"value": one.value, "source": one.source} for name, one in self.settings.items()},
        }


class LaneAdmin:
    """The lanes of all pools. Every method raises BrokerUnavailableError."""

    def __init__(
        self, client: redis.asyncio.Redis, prefix: str, *, result_ttl_ms: int, bounds: Bounds | None = None
    ) -> None:
        """`bounds`: what this replica was started with; None outside of a replica.

        `result_ttl_ms`: how long records of purged requests stay.
        """
        self._client = client
        self._prefix = prefix
        self._ttl_ms = result_ttl_ms
        self._bounds = bounds
        self._registry = Registry(client, prefix)

    async def pools(self, model: str | None = None) -> list[str]:
        """The pool that serves a model (or is called so), or all that are known. Raises RequestError (404)."""
        known = await self._registry.known()
        if not known:
            raise RequestError(404, "not_found", "There is no pool yet: no worker has ever registered here.")
        if model is None:
            return sorted(known)
        pool = (await self._registry.pools()).get(model, model)
        if pool not in known:
            raise model_not_found(model)
        return [pool]

    @broker_errors
    async def look(self, pool: str) -> list[LaneState]:
        """The lanes of a pool."""
        keys = Keys(pool, prefix=self._prefix)
        pipe = self._client.pipeline(transaction=False)
        pipe.time()
        pipe.hgetall(keys.lanes)
        for lane in Lane:
            pipe.xlen(keys.queue(lane))
            pipe.xrange(keys.queue(lane), count=1)
            pipe.hget(keys.ledger(lane), "c")
            pipe.zcount(keys.fair(lane), "-inf", "(0")
        (seconds, micros), live, *seen = await pipe.execute()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        kept = {name.decode(): value.decode() for name, value in live.items()}
        return [
            self._state(pool, lane, kept, now_ms, tuple(seen[4 * i : 4 * i + 4])) for i, lane in enumerate(list(Lane))
        ]

    def _state(
        self, pool: str, lane: Lane, kept: Mapping[str, str], now_ms: int, seen: tuple[int, Any, bytes | None, int]
    ) -> LaneState:
        depth, head, tokens, retrying = seen
        oldest_ms = int(head[0][0].partition(b"-")[0]) if head else now_ms
        return LaneState(
            pool,
            lane,
            depth,
            max(0, now_ms - oldest_ms),
            int(float(tokens or 0)),
            retrying,
            paused=kept.get(f"{lane}.{PAUSED}") == "1",
            draining=kept.get(f"{lane}.{DRAINING}") == "1",
            settings={name: self._in_force(lane, name, kept.get(f"{lane}.{name}")) for name in SETTINGS},
        )

    def _in_force(self, lane: Lane, name: str, live: str | None) -> InForce:
        if live is not None:
            return InForce(int(live) if live.isdecimal() else float(live), "live")
        queue = next(queue for queue in QUEUES if queue.name == lane)
        if name == "weight":
            return InForce(queue.weight, "default")
        if name == "age_limit_ms":
            return InForce(queue.age_limit_ms, "default")
        bounds = self._bounds
        if bounds is None:
            return InForce(None, "replica")
        started_with = {"max_requests": bounds.requests, "max_bytes": bounds.body_bytes, "max_tokens": bounds.tokens}
        return InForce(started_with[name], "replica")

    async def change(self, pool: str, lane: Lane, changes: Mapping[str, str]) -> int:
        """Sets, or takes back (empty value), what `lane_settings` has parsed. Returns how many have changed."""
        return await self._scripts(Keys(pool, prefix=self._prefix)).setlane(lane, changes)

    async def purge(
        self, pool: str, lane: Lane, *, tenant: str | None = None, older_than_s: float = 0
    ) -> AsyncIterator[int]:
        """Ends what waits in a lane now, slice by slice, and says how many each slice has ended.

        `tenant`: only that one's. `older_than_s`: only what was admitted that long ago. What has started is left
        alone, also when it waits for another worker; so is what comes meanwhile.
        """
        keys = Keys(pool, prefix=self._prefix)
        now_ms = await self._now_ms()
        by_ms = now_ms - int(older_than_s * 1000)
        after = "-"
        while page := await self._page(keys.queue(lane), after, now_ms):
            after = f"({page[-1][0]}"
            rids = [rid for _, rid in page]
            rids = await self._chosen(keys, rids, tenant, by_ms)
            for first in range(0, len(rids), _AT_ONCE):
                yield await self._cancel(keys, lane, rids[first : first + _AT_ONCE])

    async def _cancel(self, keys: Keys, lane: Lane, rids: list[str]) -> int:
        """How many of them waited in the lane and have ended now.

        Where the script says RETRY, somebody was faster: it runs, or waits elsewhere.
        """
        scripts = self._scripts(keys)
        ends = [scripts.cancel(rid, owner="-", queue=lane, reason=PURGED) for rid in rids]
        return (await asyncio.gather(*ends)).count("DONE")

    @broker_errors
    async def _now_ms(self) -> int:
        seconds, micros = await self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    @broker_errors
    async def _page(self, queue: str, after: str, until_ms: int) -> list[tuple[str, str]]:
        """(entry, rid) of the next ones in the queue."""
        entries = await self._client.xrange(queue, after, str(until_ms), count=_PAGE)
        return [(entry.decode(), fields[b"rid"].decode()) for entry, fields in entries]

    @broker_errors
    async def _chosen(self, keys: Keys, rids: list[str], tenant: str | None, by_ms: int) -> list[str]:
        pipe = self._client.pipeline(transaction=False)
        for rid in rids:
            pipe.hmget(keys.record(rid), ["tenant", "queued_at_ms", "claims"])
        facts = [(whose or b"", int(at or 0), int(claims or 0)) for whose, at, claims in await pipe.execute()]
        return [
            rid
            for rid, (whose, queued_at_ms, claims) in zip(rids, facts, strict=True)
            if not claims and queued_at_ms <= by_ms and tenant in {None, whose.decode()}
        ]

    def _scripts(self, keys: Keys) -> Scripts:
        return Scripts(RedisCaller(self._client), keys, result_ttl_ms=self._ttl_ms)
