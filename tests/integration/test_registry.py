"""The registry: which models are served, by whom."""

from __future__ import annotations

import json

import pytest
import redis.asyncio

from shared.keys import Keys
from shared.registry import Registry
from shared.wire import WorkerCard, encode
from tests.integration.shard import Shard


def card(wid: str, *names: str, slots: int = 4, state: str = "ready") -> WorkerCard:
    models = [json.dumps({"id": name, "object": "model"}).encode() for name in names]
    return WorkerCard(wid, "sim", "1", slots, models, state)


@pytest.fixture
def registry(client: redis.asyncio.Redis, prefix: str) -> Registry:
    return Registry(client, prefix)


async def test_a_registered_living_worker_serves_its_models(registry: Registry, shard: Shard) -> None:
    await registry.register("pool", card("w1", "llama", "alias"), ["llama", "alias"])
    await shard.scripts.beat("w1")
    models = await registry.models()
    assert set(models.pools) == set(models.cards) == {"llama", "alias"}
    assert models.pools["llama"].keys == Keys("pool", prefix=shard.keys.prefix)
    assert models.pools["llama"].slots == 4
    assert models.cards["llama"] == {"id": "llama", "object": "model"}


async def test_slots_add_up_over_the_living_ready_workers(registry: Registry, shard: Shard) -> None:
    await registry.register("pool", card("w1", "llama", slots=4), ["llama"])
    await registry.register("pool", card("w2", "llama", slots=8), ["llama"])
    await registry.register("pool", card("draining", "llama", slots=16, state="draining"), ["llama"])
    await registry.register("pool", card("dead", "llama", slots=32), ["llama"])
    for wid in ("w1", "w2", "draining"):
        await shard.scripts.beat(wid)
    pool = (await registry.models()).pools["llama"]
    assert {worker.wid for worker in pool.workers} == {"w1", "w2"}
    assert pool.slots == 12


async def test_a_model_stays_known_when_its_last_worker_leaves(registry: Registry, shard: Shard) -> None:
    await registry.register("pool", card("w1", "llama"), ["llama"])
    await shard.scripts.beat("w1")
    await shard.die()
    assert await shard.scripts.bury("w1") == "OK"
    assert await registry.pools() == {"llama": "pool"}
    assert (await registry.models()).pools["llama"].workers == ()
    assert await registry.workers(shard.keys) == {}


async def test_a_model_without_a_worker_has_the_card_that_was_last_said_of_it(registry: Registry, shard: Shard) -> None:
    await registry.register("pool", card("w1", "llama", "poet"), ["llama", "poet"])
    await registry.register("other", card("w2"), ["nameless"])
    cards = (await registry.models()).cards
    assert cards["poet"] == {"id": "poet", "object": "model"}
    assert cards["nameless"] == {"id": "nameless", "object": "model", "created": 0, "owned_by": "penstock"}
    await registry.register("pool", card("w3", "llama"), ["llama"])
    await shard.scripts.beat("w3")
    assert set((await registry.models()).cards) == {"llama", "nameless"}, (
        "a living pool that does not serve it any more"
    )


async def test_what_the_last_worker_took_to_start_is_known_once_none_lives(registry: Registry, shard: Shard) -> None:
    await registry.register("pool", card("w1", "llama"), ["llama"])
    assert (await registry.models()).pools["llama"].cold_start_ms == 0, "it has not said"
    await registry.register("pool", card("w1", "llama"), ["llama"], cold_start_ms=90_000)
    await registry.register("pool", card("w2", "llama"), ["llama"], cold_start_ms=12_345)
    for wid in ("w1", "w2"):
        await shard.scripts.beat(wid)
        await shard.die(wid)
        assert await shard.scripts.bury(wid) == "OK"
    assert (await registry.models()).pools["llama"].cold_start_ms == 12_345


async def test_a_card_that_cannot_be_read_hides_nobody_else(registry: Registry, shard: Shard) -> None:
    await shard.claimed()  # a worker whose card was lost: the claim made it known, without a card
    await shard.client.hset(shard.keys.workers, "newer", b"\xc1 another release")  # type: ignore[misc]
    await registry.register("pool", card("w2", "llama"), ["llama"])
    for wid in ("newer", "w2"):
        await shard.scripts.beat(wid)
    assert [worker.wid for worker in (await registry.models()).pools["llama"].workers] == ["w2"]


async def test_the_lease_says_who_lives(registry: Registry, shard: Shard) -> None:
    await shard.scripts.beat("w1")
    assert await registry.alive(shard.keys, ["w1", "w2"]) == [True, False]
    assert await registry.workers(shard.keys) == {}


async def test_registering_twice_is_as_good_as_once(registry: Registry, shard: Shard) -> None:
    for _ in range(2):
        await registry.register("pool", card("w1", "llama"), ["llama"])
    assert await registry.workers(shard.keys) == {"w1": encode(card("w1", "llama"))}
