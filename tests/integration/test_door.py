"""The door of a replica on a real server: what it leaves behind when a request cannot be followed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from api import retries as retries_module
from api.admission import Door
from api.catalog import Catalog
from api.idempotency import Terms
from api.images import Images, Rules
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
from tests.support.polling import serving
from tests.support.servers import Server

BODY = json.dumps({"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}).encode()


async def none(name: str) -> bytes | None:
    del name
    return None


async def door_with(channels: Channels, hot: HotClient, shard: Shard, grace_s: float) -> Door:
    """The door of a replica. Its model has a worker."""
    prefix = shard.keys.prefix
    registry = Registry(shard.client, prefix)
    await registry.register("pool", WorkerCard("w1", "sim", "1", 4, [], "ready"), ["llama"])
    await shard.scripts.beat("w1")
    catalog = Catalog(registry, SystemClock())
    requests = Requests(hot, catalog, result_ttl_ms=60_000)
    settings = ApiSettings(prefix=prefix, disconnect_grace_s=grace_s)
    return Door(
        settings,
        hot,
        requests,
        channels,
        catalog,
        RelayWatch(),
        Tokens(none),
        Waiting(hot, catalog, 1),
        Images(Rules(None)),
    )


@pytest.fixture
async def deaf(hot: HotClient, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> Door:
    """The door of a replica whose subscriber connection does not come up."""
    monkeypatch.setattr(channels_module, "_CONFIRM_TIMEOUT_S", 0.05)
    return await door_with(Channels("redis://127.0.0.1:1/0", "test-deaf"), hot, shard, 0)


@pytest.fixture
async def door(server: Server, hot: HotClient, shard: Shard) -> AsyncIterator[Door]:
    """The door of a replica that lacks nothing."""
    channels = Channels(server.url, "test-door")
    async with serving(channels):
        yield await door_with(channels, hot, shard, 5)


async def records(shard: Shard) -> dict[str, str]:
    """State by key of every record."""
    found = [key async for key in shard.client.scan_iter(match=shard.keys.record("*"), count=1000)]
    return {key.decode(): (await shard.client.hget(key, "state")).decode() for key in found}  # type: ignore[misc]


async def test_a_request_that_got_in_and_cannot_be_followed_is_cancelled_when_nobody_comes_back_for_it(
    deaf: Door, shard: Shard
) -> None:
    with pytest.raises(BrokerUnavailableError):
        await deaf.enter(validate_chat(BODY, None), "anonymous", [])
    assert len(await records(shard)) == 1, "it did not get in: this proves nothing"
    async with asyncio.timeout(5):
        while list((await records(shard)).values()) != ["cancelled"]:
            await asyncio.sleep(0.005)


async def test_one_that_stays_is_left_to_run(deaf: Door, shard: Shard) -> None:
    with pytest.raises(BrokerUnavailableError):
        await deaf.enter(validate_chat(BODY, None), "anonymous", [], Terms(stays=True))
    for _ in range(20):  # turns of the event loop and round trips, in which a grace of 0 s would be over
        assert list((await records(shard)).values()) == ["queued"]


async def remembered(shard: Shard) -> bytes:
    """The one key by which a request is remembered."""
    (key,) = [key async for key in shard.client.scan_iter(match=shard.keys.idempotency("*"), count=1000)]
    return bytes(key)


async def for_longer(shard: Shard, than_ms: int) -> None:
    """Returns when the request is remembered for longer than that."""
    async with asyncio.timeout(5):
        while await shard.client.pttl(await remembered(shard)) <= than_ms:
            await asyncio.sleep(0.005)


async def test_a_retry_joins_the_request_that_it_repeats_however_long_ago_that_came(
    door: Door, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries_module, "RENEW_S", 0.02)
    valid = validate_chat(BODY, None)
    first = await door.enter(valid, "anonymous", [])
    async with serving(door.retries):
        await shard.client.pexpire(await remembered(shard), 60_000)  # nearly all of its time has passed
        await for_longer(shard, 120_000)
        retry = await door.enter(valid, "anonymous", [], Terms(retry=True))
        assert (retry.rid, retry.status) == (first.rid, "coalesced")
        door.leave(first)  # the one that has joined is a follower like the first
        await shard.client.pexpire(await remembered(shard), 60_000)
        await for_longer(shard, 120_000)
        door.leave(retry)
    assert await shard.client.pttl(await remembered(shard)) <= 125_000, "for the grace, and a while for retries"


async def test_what_goes_on_without_its_client_is_remembered_as_long_as_it_may_take(door: Door, shard: Shard) -> None:
    ticket = await door.enter(validate_chat(BODY, None), "anonymous", [], Terms(stays=True))
    assert await shard.client.pttl(await remembered(shard)) > 3_600_000
    door.leave(ticket)


async def test_a_request_that_is_admitted_again_is_followed_even_if_its_channel_cannot_be_at_first(
    door: Door, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid, terms = validate_chat(BODY, None), Terms(key="k", stays=True)
    lost = await door.enter(valid, "anonymous", [], terms)
    lost_rid = lost.rid
    async for key in shard.client.scan_iter(match=f"{shard.keys.prefix}:*", count=1000):
        if b"{" in key:  # what the pool's shard has; that there is a worker stays known
            await shard.client.delete(key)
    other = await door.enter(valid, "anonymous", [], terms)
    readmit = lost.relay.readmit
    assert readmit is not None

    async def deaf(*_: object) -> None:
        raise BrokerUnavailableError("no subscriber connection")

    with monkeypatch.context() as patch:
        patch.setattr(door._channels, "subscribe", deaf)
        with pytest.raises(BrokerUnavailableError):
            await readmit()
        assert lost.rid == lost.relay.rid == lost_rid, "or the next look would take it for followed"
    await readmit()
    assert lost.rid == lost.relay.rid == other.rid != lost_rid
    door.leave(other)  # the one that was admitted again is heard all the same
    channel = shard.keys.channel(other.rid)
    assert dict(await shard.client.pubsub_numsub(channel)) == {channel.encode(): 1}
    door.leave(lost)
