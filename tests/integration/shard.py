"""One shard of one pool, driven by hand: short forms of what the tests of the scripts do again and again."""

from __future__ import annotations

import time
from typing import Any

import redis.asyncio
from redis.asyncio.client import PubSub

from shared.keys import Keys
from shared.outcomes import Admission, Admitted, Bounds, Claimed, Entry
from shared.scripts import Scripts
from shared.wire import DELTA, END, Frame, Meta, encode

RESULT_TTL_MS = 600_000
"""The default of Scripts."""
TOMBSTONE_MS = 600_000
"""How much longer a record stays than its log."""


def in_ms(span_ms: int) -> int:
    """Unix time, `span_ms` from now."""
    return time.time_ns() // 1_000_000 + span_ms


def delta(attempt: str, data: bytes = b"text", index: int = 0) -> bytes:
    """A frame of an answer."""
    return encode(Frame(DELTA, attempt, index, [7], len(data), None, data))


def ending(attempt: str, state: str = "succeeded", reason: str = "completed") -> bytes:
    """A terminal frame."""
    return encode(Frame(END, attempt, 0, [], 0, Meta(state=state, reason=reason), b""))


class Shard:
    """Keys, scripts and a client of one shard."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, scripts: Scripts) -> None:
        self.client = client
        self.keys = keys
        self.scripts = scripts

    async def admit(self, rid: str = "r1", **changes: Any) -> Admitted:
        """Admits a request of 5 tokens that nothing stands in the way of, unless `changes` say so.

        `lane_cap` is short for the bound on its requests, `cost` for a prompt that makes it cost so much.
        """
        if "lane_cap" in changes:
            changes["bounds"] = Bounds(requests=changes.pop("lane_cap"), share=1.0)
        if "cost" in changes:
            changes["prompt_tokens"] = changes.pop("cost") - 1
        facts: dict[str, Any] = {
            "rid": rid,
            "fingerprint": f"fp-{rid}",
            "lane": "standard",
            "body": b"body of " + rid.encode(),
            "tenant": "acme",
            "tenant_cap": 100,
            "prompt_tokens": 4,
            "output_limit": 1,
            "deadline_ms": in_ms(60_000),
        }
        return await self.scripts.admit(Admission(**{**facts, **changes}))

    async def delivered(self, wid: str = "w1") -> Entry:
        """Pulls the one entry that is there."""
        (entry,) = await self.scripts.pull(wid, 1)
        return entry

    async def claimed(self, rid: str = "r1", wid: str = "w1", attempt: str = "a1", **changes: Any) -> Claimed:
        """Admits a request and lets a living worker own it."""
        await self.scripts.beat(wid)
        assert (await self.admit(rid, **changes)).outcome == "OK"
        claimed = await self.scripts.claim(wid, await self.delivered(wid), attempt)
        assert isinstance(claimed, Claimed)
        return claimed

    async def ended(self, rid: str = "r1", wid: str = "w1", attempt: str = "a1") -> None:
        """Ends a request of which nothing was published."""
        end = ending(attempt)
        done = await self.scripts.done(wid, rid, attempt, state="succeeded", reason="completed", frame=end, expected=0)
        assert done.outcome == "OK"

    async def die(self, wid: str = "w1") -> None:
        """The worker is condemned."""
        await self.client.delete(self.keys.lease(wid))
        assert await self.scripts.condemn(wid)

    async def record(self, rid: str = "r1") -> dict[str, str]:
        """The record, as text."""
        fields = await self.client.hgetall(self.keys.record(rid))  # type: ignore[misc]
        return {name.decode(): value.decode() for name, value in fields.items()}

    async def state(self, rid: str = "r1") -> str:
        """The record's state; empty without a record."""
        return (await self.record(rid)).get("state", "")

    async def log(self, rid: str = "r1") -> bytes:
        """The log; empty without one."""
        return await self.client.get(self.keys.log(rid)) or b""

    async def finished(self) -> list[tuple[str, str, str]]:
        """The outbox: rid, state, reason."""
        entries = await self.client.xrange(self.keys.finished)
        return [tuple(fields[name].decode() for name in (b"rid", b"state", b"reason")) for _, fields in entries]  # type: ignore[misc]

    async def listen(self, rid: str = "r1") -> PubSub:
        """A confirmed subscription to a request's channel."""
        pubsub = self.client.pubsub()
        await pubsub.subscribe(self.keys.channel(rid))
        assert await pubsub.get_message(timeout=30) is not None
        return pubsub

    async def assert_over(self, state: str, reason: str, rid: str = "r1") -> None:
        """The request has ended so, and nothing of it is left but its record and its log, for a while."""
        record, keys = await self.record(rid), self.keys
        assert (record["state"], record["reason"]) == (state, reason)
        assert not {"owner", "attempt"} & record.keys()
        assert int(record["finished_at_ms"]) >= int(record["queued_at_ms"])
        assert (rid, state, reason) in await self.finished()
        assert len(await self.finished()) == 1
        assert await self.client.exists(keys.body(rid), keys.tenants) == 0
        assert await self.client.zscore(keys.deadlines, rid) is None
        for key, longer_ms in ((keys.record(rid), TOMBSTONE_MS), (keys.log(rid), 0)):
            ttl_ms = await self.client.pttl(key) - longer_ms
            assert RESULT_TTL_MS - 5_000 < ttl_ms <= RESULT_TTL_MS


async def next_message(pubsub: PubSub) -> bytes:
    """The next live message."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.5)
        if message is not None:
            return bytes(message["data"])
    raise AssertionError("no live message came")
