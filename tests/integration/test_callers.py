"""Both ways to run a script: redis-py and the thin client."""

from __future__ import annotations

import asyncio
import hashlib
import socket

import hiredis
import pytest
import redis.asyncio
import redis.exceptions

from shared.connection import RedisCaller, connect
from shared.errors import BrokerUnavailableError, FencedError
from shared.hot import HotClient
from shared.keys import Keys
from shared.luascripts import load, script_names
from shared.outcomes import Caller
from shared.scripts import Scripts


@pytest.fixture(params=["redis-py", "thin"])
def caller(request: pytest.FixtureRequest, client: redis.asyncio.Redis, hot: HotClient) -> Caller:
    return RedisCaller(client) if request.param == "redis-py" else hot


async def test_a_server_that_has_lost_its_scripts_is_given_them_again(
    caller: Caller, client: redis.asyncio.Redis, keys: Keys
) -> None:
    scripts = Scripts(caller, keys)
    for _ in range(2):
        await client.script_flush()
        assert await scripts.beat("w1") == []
        assert await client.script_exists(load("beat").sha) == [True]


async def test_many_calls_at_once_survive_the_loss_of_the_scripts(
    caller: Caller, client: redis.asyncio.Redis, keys: Keys
) -> None:
    scripts = Scripts(caller, keys)
    await client.script_flush()
    assert await asyncio.gather(*(scripts.beat(f"w{i}") for i in range(20))) == [[]] * 20


async def test_a_refused_worker_gets_our_error(caller: Caller, keys: Keys) -> None:
    scripts = Scripts(caller, keys)
    await scripts.condemn("w1")
    with pytest.raises(FencedError):
        await scripts.beat("w1")


async def test_a_bug_of_ours_is_not_taken_for_an_outage(
    caller: Caller, client: redis.asyncio.Redis, keys: Keys
) -> None:
    await client.set(keys.box("w1"), "not a list")
    with pytest.raises((redis.exceptions.ResponseError, hiredis.ReplyError), match="WRONGTYPE"):
        await Scripts(caller, keys).beat("w1")


async def test_bytes_arrive_as_they_were_sent(caller: Caller, client: redis.asyncio.Redis, keys: Keys) -> None:
    everything = bytes(range(256))
    text = "redis.call('SET', KEYS[1], ARGV[1]); return redis.call('GET', KEYS[1])"
    assert (
        await caller.evalsha(
            hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text, [keys.sched], [everything]
        )
        == everything
    )
    assert await client.get(keys.sched) == everything


def test_the_hash_of_a_script_is_the_servers_hash_of_its_text() -> None:
    assert all(len(load(name).sha) == 40 and load(name).text.startswith("local PUBLISH") for name in script_names())


async def test_every_script_compiles_on_this_server(client: redis.asyncio.Redis) -> None:
    for name in script_names():
        for publish in ("PUBLISH", "SPUBLISH"):
            assert await client.script_load(load(name, publish).text) == load(name, publish).sha


async def test_a_server_that_is_not_there_is_an_unavailable_broker(keys: Keys) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{unused.getsockname()[1]}/0"
        client = connect(url)
        with pytest.raises(BrokerUnavailableError):
            await Scripts(RedisCaller(client), keys).beat("w1")
        with pytest.raises(BrokerUnavailableError):
            await Scripts(HotClient(url, "nobody"), keys).beat("w1")
        await client.aclose()
        await client.connection_pool.disconnect()
