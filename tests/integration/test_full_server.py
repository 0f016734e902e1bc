"""A server at `maxmemory`: nothing is done by halves, ends get through, everything else waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import hiredis
import pytest
import redis.asyncio

from api.memory import Memory
from shared.clock import SystemClock
from shared.connection import RedisCaller, connect
from shared.errors import BrokerUnavailableError
from shared.hot import HotClient
from shared.keys import Keys
from shared.outcomes import Caller
from shared.reaper import Reaper
from shared.registry import Registry
from shared.scripts import Scripts
from shared.wire import WorkerCard
from tests.integration.shard import Shard, delta, ending
from tests.support import servers
from tests.support.polling import serving


@pytest.fixture(scope="module", params=servers.KINDS)
def own(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """A server of its own: its memory is no other test's business."""
    if request.param not in servers.available():
        pytest.skip(f"this machine has no {request.param} server")
    with servers.running(request.param) as running:
        yield running


@pytest.fixture
async def client(own: servers.Server) -> AsyncIterator[redis.asyncio.Redis]:
    client = connect(own.url)
    await client.flushall()
    yield client
    await client.config_set("maxmemory", 0)
    await client.config_set("min-replicas-to-write", 0)
    await client.aclose()


@pytest.fixture
async def hot(own: servers.Server) -> AsyncIterator[HotClient]:
    hot = HotClient(own.url, "test-full")
    async with serving(hot):
        yield hot


@pytest.fixture(params=["redis-py", "thin"])
def shard(request: pytest.FixtureRequest, client: redis.asyncio.Redis, hot: HotClient) -> Shard:
    keys = Keys("pool", prefix="full")
    caller: Caller = RedisCaller(client) if request.param == "redis-py" else hot
    return Shard(client, keys, Scripts(caller, keys))


async def fill(client: redis.asyncio.Redis) -> None:
    await client.config_set("maxmemory", 1)


async def test_frames_and_admissions_are_refused_whole_and_ends_get_through(shard: Shard) -> None:
    claimed = await shard.claimed()
    frame = delta("a1")
    assert (await shard.scripts.step("w1", [("r1", "a1", 0, frame)])).refused == {}
    await shard.admit("r2")
    entry = await shard.delivered()
    assert claimed.log == b""
    keys = shard.keys
    names = [keys.record("r3"), keys.body("r3"), keys.log("r1"), keys.tenants, keys.queue("standard")]
    before = [await shard.client.dump(name) for name in names]
    await fill(shard.client)
    with pytest.raises(BrokerUnavailableError):
        await shard.scripts.step("w1", [("r1", "a1", len(frame), delta("a1", b"more", 1))])
    with pytest.raises(BrokerUnavailableError):
        await shard.admit("r3")
    with pytest.raises(BrokerUnavailableError):
        await shard.scripts.beat("w1")
    assert [await shard.client.dump(name) for name in names] == before
    again = await shard.scripts.claim("w1", entry, "a2")
    assert again.__class__.__name__ == "Claimed"
    ended = await shard.scripts.done(
        "w1", "r1", "a1", state="succeeded", reason="completed", frame=ending("a1"), expected=len(frame)
    )
    assert ended.outcome == "OK"
    await shard.client.config_set("maxmemory", 0)
    assert await shard.state() == "succeeded"
    assert await shard.log() == frame + ending("a1")
    assert await shard.client.hget(keys.tenants, "acme") == b"1"  # type: ignore[misc]
    assert (await shard.scripts.step("w1", [("r2", "a2", 0, delta("a2"))])).refused == {}


async def test_a_reaper_declares_nobody_dead_whose_lease_could_not_be_renewed(
    shard: Shard, client: redis.asyncio.Redis
) -> None:
    keys = shard.keys
    await Registry(client, keys.prefix).register(keys.pool, WorkerCard("w1", "sim", "0", 1, []), ["model"])
    reaper = Reaper(client, keys.prefix)
    reaper._undisturbed_since_s -= 60
    await fill(client)
    for _ in range(3):
        await reaper.tick()
    await client.config_set("maxmemory", 0)
    reaper._undisturbed_since_s -= 60  # it was full for long
    await reaper.tick()
    assert await client.exists(keys.dead("w1")) == 0, "the worker could not beat until just now"


async def test_a_card_that_finds_no_room_is_an_unavailable_broker(client: redis.asyncio.Redis) -> None:
    await fill(client)
    with pytest.raises(BrokerUnavailableError):
        await Registry(client, "full").register("pool", WorkerCard("w1", "sim", "0", 1, []), ["model"])


async def test_a_server_without_its_replicas_is_an_unavailable_broker(
    shard: Shard, client: redis.asyncio.Redis
) -> None:
    await client.config_set("min-replicas-to-write", 1)
    for refused in (
        shard.scripts.beat("w1"),
        shard.admit(),
        Registry(client, "full").register("pool", WorkerCard("w1", "sim", "0", 1, []), ["model"]),
    ):
        with pytest.raises(BrokerUnavailableError):
            await refused


# ---- the replica's look at it


class Ahead(SystemClock):
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        """See Clock."""
        return self.now_s


async def test_admission_closes_above_the_limit_and_opens_below(client: redis.asyncio.Redis, hot: HotClient) -> None:
    clock = Ahead()
    memory = Memory(hot, clock, limit=0.8)
    used = int((await client.info("memory"))["used_memory"])
    assert await memory.refusal() is None, "without maxmemory there is no limit"
    for share, refused in ((0.7, False), (0.95, True), (0.5, False)):
        await client.config_set("maxmemory", int(used / share))
        clock.now_s += 1
        refusal = await memory.refusal()
        assert (refusal is not None) is refused, share
        if refusal is not None:
            assert (refusal.status, refusal.code) == (503, "broker_unavailable")
            assert "memory" in refusal.message
            assert refusal.retry_after_s


async def test_it_is_asked_once_a_second_at_most(hot: HotClient, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ahead()
    memory = Memory(hot, clock, limit=0.8)
    asked = []
    honest = hot.call

    async def call(*command: object, timeout_s: float) -> object:
        asked.append(command)
        return await honest(*command, timeout_s=timeout_s)

    monkeypatch.setattr(hot, "call", call)
    for _ in range(10):
        clock.now_s += 0.2
        await asyncio.gather(*(memory.refusal() for _ in range(5)))
    assert len(asked) == 2


@pytest.mark.parametrize("error", [BrokerUnavailableError("away"), hiredis.ReplyError("NOPERM")])
async def test_a_server_that_does_not_say_has_room(
    hot: HotClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def call(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(hot, "call", call)
    assert await Memory(hot, Ahead(), limit=0.8).refusal() is None
