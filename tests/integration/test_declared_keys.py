"""Every key that a script touches is declared in KEYS, so that the scripts run on a Redis Cluster."""

from __future__ import annotations

import pytest
import redis.asyncio

from shared.hot import PushClient
from shared.keys import Keys
from shared.luascripts import load, script_names
from shared.scripts import Scripts
from tests.integration.monitor import watching
from tests.integration.shard import Shard, delta
from tests.support import servers
from tests.support.modelcheck import Plan, check
from tests.support.polling import eventually, serving

OPS = 400
LEAST_SEEDS = 4
ELSEWHERE = {"file_put", "file_drop", *(name for name in script_names() if name.startswith("batch_")), "forget"}
"""Scripts that move no requests: test_file_index.py and test_batch_scripts.py watch what they touch."""


async def test_no_script_touches_a_key_that_it_does_not_declare(server: servers.Server) -> None:
    every = {load(name).sha for name in script_names() if name not in ELSEWHERE}
    async with watching(server.url) as touched:
        await check(server.url, Plan(2, OPS, faults=True))
        redriven = 0
        for seed in range(1, 31):
            redriven += (await check(server.url, Plan(seed, OPS)))["redrive: ok"]
            if redriven and seed > LEAST_SEEDS and touched.shas >= every:
                break
    assert redriven, "no run had a dead letter"
    assert touched.shas >= every
    assert touched.commands > 2_000
    assert touched.undeclared == set()


async def test_the_watch_sees_an_undeclared_key(
    server: servers.Server, client: redis.asyncio.Redis, keys: Keys
) -> None:
    text = "redis.call('GET', KEYS[1]); return redis.call('GET', KEYS[1] .. 'x')"
    async with watching(server.url) as touched:
        await client.eval(text, 1, keys.sched)  # type: ignore[misc]
    assert touched.undeclared == {("GET", f"{keys.sched}x")}


@pytest.mark.parametrize("faults", [False, True])
async def test_the_scripts_run_where_a_cluster_enforces_declared_keys(cluster: servers.Server, faults: bool) -> None:  # noqa: FBT001
    assert cluster.version >= (7, 0), "older servers do not know #!lua"
    happened = await check(cluster.url, Plan(3, OPS, faults=faults, strict=True))
    assert happened["done succeeded"] > 10


async def test_the_cluster_refuses_a_key_of_another_slot(cluster: servers.Server) -> None:
    async with redis.asyncio.Redis.from_url(cluster.url) as client:
        with pytest.raises(redis.exceptions.ResponseError, match=r"slot|local"):
            await client.eval("#!lua\nreturn redis.call('GET', 'elsewhere')", 1, "here")  # type: ignore[misc]


async def test_live_frames_go_through_sharded_channels_in_a_cluster(cluster: servers.Server) -> None:
    heard: list[list[bytes]] = []
    keys = Keys("pool", prefix="sharded")
    push = PushClient(cluster.url, "test-sharded", heard.append, lambda: None)
    async with serving(push), redis.asyncio.Redis.from_url(cluster.url) as client:
        push.send("SSUBSCRIBE", keys.channel("r1"))
        await eventually(lambda: any(reply[0] == b"ssubscribe" for reply in heard), "the subscription")
        shard = Shard(client, keys, Scripts(_Sender(client), keys, publish="SPUBLISH"))
        await shard.claimed()
        assert (await shard.scripts.step("w1", [("r1", "a1", 0, delta("a1"))])).refused == {}
        await eventually(lambda: any(reply[0] == b"smessage" for reply in heard), "the live frame")


class _Sender:
    """A scripts.Caller without the detour over hashes."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def evalsha(self, sha: str, text: str, keys: list[str], args: list[object]) -> object:
        """See scripts.Caller."""
        del sha
        return await self._client.eval(text, len(keys), *keys, *args)  # type: ignore[misc, arg-type]
