"""The door of a replica on a real server: what it leaves behind when a request cannot be followed."""

from __future__ import annotations

import asyncio
import json

import pytest
import redis.asyncio

from api.admission import Door
from api.catalog import Catalog
from api.idempotency import Terms
from api.requests import Requests
from api.schemas import validate_chat
from api.settings import ApiSettings
from api.tokens import Tokens
from api.waiting import Waiting
from api.watch import RelayWatch
from shared import channels as channels_module
from shared.channels import Channels
from shared.clock import SystemClock
from shared.errors import BrokerUnavailableError
from shared.hot import HotClient
from shared.registry import Registry
from shared.wire import WorkerCard
from tests.integration.shard import Shard

BODY = json.dumps({"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}).encode()


async def none(name: str) -> bytes | None:
    del name
    return None


@pytest.fixture
async def deaf(client: redis.asyncio.Redis, hot: HotClient, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> Door:
    """The door of a replica whose subscriber connection does not come up. Its model has a worker."""
    monkeypatch.setattr(channels_module, "_CONFIRM_TIMEOUT_S", 0.05)
    prefix = shard.keys.prefix
    registry = Registry(client, prefix)
    await registry.register("pool", WorkerCard("w1", "sim", "1", 4, [], "ready"), ["llama"])
    await shard.scripts.beat("w1")
    catalog = Catalog(registry, SystemClock())
    requests = Requests(hot, catalog, result_ttl_ms=60_000)
    silent = Channels("redis://127.0.0.1:1/0", "test-deaf")
    settings = ApiSettings(prefix=prefix, disconnect_grace_s=0)
    return Door(settings, hot, requests, silent, catalog, RelayWatch(), Tokens(none), Waiting(hot, 1))


async def records(shard: Shard) -> dict[str, str]:
    """State by key of every record."""
    found = [key async for key in shard.client.scan_iter(match=shard.keys.record("*"), count=1000)]
    return {key.decode(): (await shard.client.hget(key, "state")).decode() for key in found}  # type: ignore[misc]


async def test_a_request_that_got_in_and_cannot_be_followed_is_cancelled_when_nobody_comes_back_for_it(
    deaf: Door, shard: Shard
) -> None:
    with pytest.raises(BrokerUnavailableError):
        await deaf.enter(validate_chat(BODY, None), "anonymous", [])
    assert list((await records(shard)).values()) == ["queued"], "it did not get in: this proves nothing"
    async with asyncio.timeout(5):
        while list((await records(shard)).values()) != ["cancelled"]:
            await asyncio.sleep(0.005)


async def test_one_that_stays_is_left_to_run(deaf: Door, shard: Shard) -> None:
    with pytest.raises(BrokerUnavailableError):
        await deaf.enter(validate_chat(BODY, None), "anonymous", [], Terms(stays=True))
    for _ in range(20):  # turns of the event loop and round trips, in which a grace of 0 s would be over
        assert list((await records(shard)).values()) == ["queued"]
