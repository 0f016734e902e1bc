"""The world of a model check: one shard on a real server, and the faults that happen between it and its callers.

Everything random comes from one seeded generator. What the server's clock decides (deadlines) is as deterministic as a
clock can be.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio

from shared.connection import connect
from shared.errors import FencedError
from shared.hot import HotClient
from shared.keys import Keys
from shared.luascripts import Script, load, script_names
from shared.outcomes import Caller
from shared.reaper import Reaper
from shared.scripts import Scripts

LOST_REPLY: Final = 0.15
"""Share of script calls whose reply is lost, so that the caller sends them again as they are."""


class ViolationError(AssertionError):
    """The protocol broke a promise."""


def require(condition: object, *facts: object) -> None:
    """Raises ViolationError with the facts unless the condition holds."""
    if not condition:
        raise ViolationError(" ".join(map(str, facts)))


@dataclass(frozen=True, slots=True)
class Patch:
    """A script made wrong on purpose: `old` is replaced by `new` in its text."""

    script: str
    old: str
    new: str


class FaultyCaller:
    """A scripts.Caller that loses replies, and runs patched scripts where there are any."""

    def __init__(self, inner: Caller, rnd: random.Random, happened: Counter[str]) -> None:
        self._inner = inner
        self._rnd = rnd
        self._happened = happened
        self._patched: dict[str, tuple[str, str]] = {}
        self.loses = True

    def patch(self, patches: Iterable[Patch]) -> None:
        """From now on these scripts are wrong."""
        for patch in patches:
            script = load(patch.script)
            _, text = self._patched.get(script.sha, ("", script.text))
            require(patch.old in text, "nothing to patch in", patch.script)
            self._replace(script, text.replace(patch.old, patch.new))

    def strict(self) -> None:
        """From now on every script opens with `#!lua`, which lets the server refuse what it forgives otherwise."""
        for name in script_names():
            script = load(name)
            self._replace(script, "#!lua\n" + script.text)

    def _replace(self, script: Script, text: str) -> None:
        self._patched[script.sha] = (hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text)

    async def evalsha(self, sha: str, text: str, keys: list[str], args: list[Any]) -> Any:
        """See scripts.Caller."""
        sha, text = self._patched.get(sha, (sha, text))
        if self.loses and self._rnd.random() < LOST_REPLY:
            self._happened["lost reply"] += 1
            with contextlib.suppress(FencedError):
                await self._inner.evalsha(sha, text, keys, args)
        return await self._inner.evalsha(sha, text, keys, args)


class World:
    """The server side, and the generator that decides everything."""

    def __init__(self, rnd: random.Random, hot: HotClient, client: redis.asyncio.Redis, keys: Keys) -> None:
        self.rnd = rnd
        self.hot = hot
        self.client = client
        self.keys = keys
        self.happened: Counter[str] = Counter()
        self.caller = FaultyCaller(hot, rnd, self.happened)
        self.scripts = Scripts(self.caller, keys)
        self.reaper = Reaper(client, keys.prefix)
        self.lineage: dict[str, tuple[str, int]] = {}
        """Attempt that continues → attempt that it stands behind, and how many tokens were there."""
        self.poison: set[str] = set()
        self.redriven: dict[str, str] = {}
        self._snapshot: list[tuple[bytes, bytes, int]] | None = None

    def hex_id(self, digits: int) -> str:
        """A random id that the seed decides."""
        return f"{self.rnd.getrandbits(4 * digits):0{digits}x}"

    async def all_keys(self) -> list[bytes]:
        """Every key of this world."""
        return [key async for key in self.client.scan_iter(match=f"{self.keys.prefix}:*", count=2000)]

    async def now_ms(self) -> int:
        """The server's clock."""
        seconds, micros = await self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def take_snapshot(self) -> None:
        """What a replica of the server knows that has not heard of anything later."""
        found = await self.all_keys()
        pipe = self.client.pipeline(transaction=False)
        for key in found:
            pipe.dump(key)
            pipe.pttl(key)
        values = await pipe.execute()
        self._snapshot = [
            (key, values[2 * i], values[2 * i + 1]) for i, key in enumerate(found) if values[2 * i] is not None
        ]

    async def roll_back(self, *, living: set[str]) -> bool:
        """A failover to that replica. False when there was no snapshot.

        The restored leases of processes that have ended meanwhile run out; here they are taken away at once.
        """
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None:
            return False
        await self.flush()
        pipe = self.client.pipeline(transaction=False)
        for key, value, ttl_ms in snapshot:
            pipe.restore(key, max(ttl_ms, 0), value)
        await pipe.execute()
        leases = self.keys.lease("")
        gone = [key for key in await self.all_keys() if key.decode().startswith(leases)]
        gone = [key for key in gone if key.decode().removeprefix(leases) not in living]
        if gone:
            await self.client.delete(*gone)
        return True

    async def flush(self) -> None:
        """The server loses everything that this world has on it."""
        found = await self.all_keys()
        if found:
            await self.client.delete(*found)


@contextlib.asynccontextmanager
async def opened(url: str, prefix: str, seed: int) -> AsyncIterator[World]:
    """A world on a real server; its keys are deleted afterwards."""
    client, hot = connect(url), HotClient(url, "model-check")
    started = asyncio.Event()
    task = asyncio.create_task(hot.run(started))
    await asyncio.wait_for(started.wait(), 5)
    world = World(random.Random(seed), hot, client, Keys("model", prefix=prefix))
    try:
        yield world
    finally:
        await world.flush()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.aclose()
        await client.connection_pool.disconnect()
