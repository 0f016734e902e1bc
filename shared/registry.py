"""Which models are served: pools, and the cards of their living workers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import msgspec
import redis
import redis.asyncio

from shared.connection import broker_errors
from shared.errors import BrokerUnavailableError
from shared.keys import GlobalKeys, Keys
from shared.wire import WorkerCard, decode_card, encode


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool and its living workers."""

    keys: Keys
    workers: tuple[WorkerCard, ...]
    cold_start_ms: int = 0
    """What its last worker took to be ready; 0 when that is unknown, and not read while workers live."""

    @property
    def slots(self) -> int:
        """Sequences that the living workers run at once."""
        return sum(card.slots for card in self.workers)


@dataclass(frozen=True, slots=True)
class Models:
    """A snapshot of what is served: model name → pool, and the cards for `/v1/models`.

    The cards are those of living workers, and for a model whose pool has none the last one that was said of it. A name
    that its pool's living workers do not say any more has none.
    """

    pools: dict[str, Pool]
    cards: dict[str, dict[str, Any]]


class Registry:
    """Reads and writes the registry. Every method raises BrokerUnavailableError."""

    def __init__(self, client: redis.asyncio.Redis, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._keys = GlobalKeys(prefix)
        self._pools_key = self._keys.pools
        self._known_key = self._keys.known_pools
        self._cards_key = self._keys.cards

    @broker_errors
    async def register(self, pool: str, card: WorkerCard, names: list[str], *, cold_start_ms: int = 0) -> None:
        """Announces a worker and the model names it serves. Repeated now and then, since a server may be flushed.

        `cold_start_ms`: what the worker took from the start of its process until it was ready; 0 for unknown.
        """
        keys = Keys(pool, prefix=self._prefix)
        pipe = self._client.pipeline(transaction=False)
        pipe.sadd(self._known_key, pool)
        pipe.hset(keys.workers, card.wid, encode(card))  # type: ignore[arg-type]
        pipe.hset(self._pools_key, mapping=dict.fromkeys(names, pool))
        if card.models:
            pipe.hset(self._cards_key, mapping={json.loads(model)["id"]: model for model in card.models})
        if cold_start_ms:
            pipe.hset(keys.sched, "cold_start_ms", str(cold_start_ms))
        await pipe.execute()

    @broker_errors
    async def keep_tokenizer(self, name: str, ttl_s: int) -> bool:
        """Lets a tokenizer stay for `ttl_s` from now on. False when it is not there."""
        return bool(await self._client.expire(self._keys.tokenizer(name), ttl_s))

    @broker_errors
    async def publish_tokenizer(self, name: str, packed: bytes, ttl_s: int) -> None:
        """Puts a tokenizer there. A server that does not take values of this size is one that is unavailable."""
        try:
            await self._client.set(self._keys.tokenizer(name), packed, ex=ttl_s)
        except redis.ResponseError as error:
            raise BrokerUnavailableError(str(error)) from error

    @broker_errors
    async def tokenizer(self, name: str) -> bytes | None:
        """A packed tokenizer, if it is there."""
        found: bytes | None = await self._client.get(self._keys.tokenizer(name))
        return found

    @broker_errors
    async def write(self, pool: str) -> None:
        """Writes what is known anyway: it succeeds where anything could be written."""
        await self._client.sadd(self._known_key, pool)  # type: ignore[misc]

    @broker_errors
    async def pools(self) -> dict[str, str]:
        """Model name → pool."""
        names = await self._client.hgetall(self._pools_key)  # type: ignore[misc]
        return {name.decode(): pool.decode() for name, pool in names.items()}

    @broker_errors
    async def known(self) -> set[str]:
        """Every pool of which something may be left, be it that its model has moved to another one."""
        found = await self._client.smembers(self._known_key)  # type: ignore[misc]
        return {pool.decode() for pool in found} | set((await self.pools()).values())

    @broker_errors
    async def forget(self, pool: str) -> bool:
        """Forgets a pool that no model names, if no worker, no request and no dead letter of it is left."""
        if pool in (await self.pools()).values():
            return False
        keys = Keys(pool, prefix=self._prefix)
        pipe = self._client.pipeline(transaction=False)
        pipe.exists(keys.workers, keys.tenants, keys.deadlines)
        pipe.xlen(keys.dead_letters)
        if any(await pipe.execute()):
            return False
        await self._client.srem(self._known_key, pool)  # type: ignore[misc]
        return True

    @broker_errors
    async def workers(self, keys: Keys) -> dict[str, bytes]:
        """Worker id → encoded card, of all workers that have registered and not left, alive or not."""
        cards = await self._client.hgetall(keys.workers)  # type: ignore[misc]
        return {wid.decode(): card for wid, card in cards.items()}

    @broker_errors
    async def alive(self, keys: Keys, wids: list[str]) -> list[bool]:
        """Whether each worker's lease lives."""
        pipe = self._client.pipeline(transaction=False)
        for wid in wids:
            pipe.exists(keys.lease(wid))
        return [bool(found) for found in await pipe.execute()]

    async def models(self) -> Models:
        """A snapshot of everything that is known."""
        names = await self.pools()
        known = sorted(set(names.values()))
        pools = dict(zip(known, await asyncio.gather(*map(self._pool, known)), strict=True))
        cards: dict[str, dict[str, Any]] = {}
        for pool in pools.values():
            for worker in pool.workers:
                for raw in worker.models:
                    card = json.loads(raw)
                    cards.setdefault(card["id"], card)
        cold = [name for name, pool in sorted(names.items()) if not pools[pool].workers]
        return Models({name: pools[pool] for name, pool in names.items()}, cards | await self._last_cards(cold))

    @broker_errors
    async def _last_cards(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """What was last said of models that nobody serves now; little for those of which nothing was."""
        said = await self._client.hmget(self._cards_key, names) if names else []  # type: ignore[misc]
        nothing = {"object": "model", "created": 0, "owned_by": "penstock"}
        return {
            name: {"id": name, **(json.loads(card) if card else nothing)}
            for name, card in zip(names, said, strict=True)
        }

    async def _pool(self, name: str) -> Pool:
        keys = Keys(name, prefix=self._prefix)
        cards = await self.workers(keys)
        alive = await self.alive(keys, list(cards)) if cards else []
        living = []
        for card, lives in zip(cards.values(), alive, strict=True):
            if lives:
                try:
                    living.append(decode_card(card))
                except msgspec.MsgspecError:  # a release that we cannot read; it is not ours to remove
                    continue
        ready = tuple(worker for worker in living if worker.state == "ready")
        return Pool(keys, ready, 0 if ready else await self._cold_start_ms(keys))

    @broker_errors
    async def _cold_start_ms(self, keys: Keys) -> int:
        return int(await self._client.hget(keys.sched, "cold_start_ms") or 0)  # type: ignore[misc]
