"""A model's tokenizer on its way through Redis: published by workers, there as long as one of them lives."""

from __future__ import annotations

import asyncio
import logging

import pytest
import redis.asyncio

from api.prompts import Prompt
from api.tokens import Tokens
from shared.clock import SystemClock
from shared.errors import BrokerUnavailableError
from shared.keys import GlobalKeys
from shared.registry import Registry
from shared.tokenizer import MOST_BYTES, TTL_S, unpack
from shared.wire import WorkerCard
from tests.integration.shard import Shard
from tests.support.polling import eventually, serving
from worker import vocabulary as module
from worker.engines.base import Tokenizer
from worker.engines.sim import SimEngine, create
from worker.engines.sim_prompts import TOKENIZER
from worker.identity import Identity
from worker.presence import Presence
from worker.settings import WorkerSettings
from worker.vocabulary import Vocabulary, vocabulary_of


@pytest.fixture
def registry(client: redis.asyncio.Redis, prefix: str) -> Registry:
    return Registry(client, prefix)


@pytest.fixture
def engine() -> SimEngine:
    return create(WorkerSettings(engine="sim"), [])


@pytest.fixture
async def vocabulary(engine: SimEngine) -> Vocabulary:
    found = await vocabulary_of(engine)
    assert found is not None
    return found


@pytest.fixture
def key(vocabulary: Vocabulary, prefix: str) -> str:
    return GlobalKeys(prefix).tokenizer(vocabulary.counting.tokenizer)


async def test_a_worker_that_is_present_has_published_its_tokenizer_and_its_card_names_it(
    registry: Registry, engine: SimEngine, vocabulary: Vocabulary, shard: Shard, key: str
) -> None:
    identity, client = Identity(), shard.client
    models = await engine.models()
    presence = Presence(registry, "pool", engine, models, identity, 4, SystemClock(), vocabulary)
    await shard.scripts.beat(identity.wid)
    async with serving(presence):
        (worker,) = (await registry.models()).pools["sim"].workers
        assert worker.counting == vocabulary.counting
        async with asyncio.timeout(5):
            while (packed := await registry.tokenizer(vocabulary.counting.tokenizer)) is None:
                await asyncio.sleep(0.005)
        assert unpack(vocabulary.counting.tokenizer, packed) == TOKENIZER.text
        assert TTL_S - 5 < await client.ttl(key) <= TTL_S


async def test_a_replica_counts_with_what_a_worker_has_published(registry: Registry, vocabulary: Vocabulary) -> None:
    await vocabulary.keep(registry)
    tokens = Tokens(registry.tokenizer)
    workers = [WorkerCard("w", "sim", "1", 1, [], counting=vocabulary.counting)]
    prompt = Prompt(("three short words",), messages=1)
    assert await tokens.count(prompt, workers) == 17 // 4 + 5
    await eventually(lambda: tokens._counters, "the tokenizer")
    assert await tokens.count(prompt, workers) == 3 + 5
    await tokens.close()


async def test_a_living_worker_keeps_the_tokenizer_there_and_writes_it_once(
    registry: Registry, vocabulary: Vocabulary, client: redis.asyncio.Redis, key: str
) -> None:
    await vocabulary.keep(registry)
    await client.set(key, b"as it was", ex=60)
    await vocabulary.keep(registry)
    assert await client.get(key) == b"as it was"
    assert await client.ttl(key) > TTL_S - 5


async def test_without_its_workers_it_goes_and_the_next_worker_brings_it_back(
    registry: Registry, vocabulary: Vocabulary, client: redis.asyncio.Redis, key: str
) -> None:
    await vocabulary.keep(registry)
    await client.pexpire(key, 1)
    async with asyncio.timeout(5):
        while await registry.tokenizer(vocabulary.counting.tokenizer) is not None:
            await asyncio.sleep(0.005)
    await vocabulary.keep(registry)
    assert await client.get(key) == vocabulary.packed


async def test_a_redis_that_does_not_take_it_is_left_alone_for_a_while(
    registry: Registry,
    vocabulary: Vocabulary,
    client: redis.asyncio.Redis,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limit = await client.config_get("proto-max-bulk-len")
    vocabulary.packed = bytes(2_000_000)
    await client.config_set("proto-max-bulk-len", 1_048_576)
    try:
        with pytest.raises(BrokerUnavailableError):
            await registry.publish_tokenizer("x", vocabulary.packed, TTL_S)
        await vocabulary.keep(registry)
        assert "replicas estimate" in caplog.text
    finally:
        await client.connection_pool.disconnect()  # Redis closes the connection of whoever sends it too much
        await client.config_set("proto-max-bulk-len", limit["proto-max-bulk-len"])
    await vocabulary.keep(registry)
    assert not await client.exists(key)
    monkeypatch.setattr(module, "RETRY_S", 0)
    await vocabulary.keep(registry)
    assert await client.exists(key)


class Odd(SimEngine):
    """An engine with another tokenizer."""

    gives: Tokenizer | Exception | None = None

    async def tokenizer(self) -> Tokenizer:
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("gives", "level"),
    [(None, "INFO"), (RuntimeError("broken"), "WARNING"), (Tokenizer("x" * (MOST_BYTES + 1)), "WARNING")],
)
async def test_an_engine_whose_tokenizer_cannot_be_given_away_serves_all_the_same(
    engine: SimEngine, caplog: pytest.LogCaptureFixture, gives: Tokenizer | Exception | None, level: str
) -> None:
    odd = Odd(engine._options)
    odd.gives = gives
    with caplog.at_level(logging.INFO, "worker.vocabulary"):
        assert await vocabulary_of(odd) is None
    assert [record.levelname for record in caplog.records] == [level]
