"""Letting a request go by its id, while others move it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.auth import ANONYMOUS
from api.catalog import Catalog
from api.requests import Requests
from shared.clock import SystemClock
from shared.errors import BrokerUnavailableError, RequestError
from shared.hot import HotClient
from shared.ids import new_request_id
from shared.outcomes import Claimed
from shared.registry import Registry
from shared.wire import WorkerCard
from tests.integration.shard import Shard


class Restless:
    """The connection of a replica beside which request r1 changes hands whenever somebody has asked whose it is."""

    def __init__(self, hot: HotClient, shard: Shard, moves: int) -> None:
        self._hot = hot
        self._shard = shard
        self._left = moves
        self._owner = 1

    async def call(self, *command: Any, timeout_s: float) -> Any:
        reply = await self._hot.call(*command, timeout_s=timeout_s)
        if command[0] == "HMGET" and self._left:
            self._left -= 1
            await self._move()
        return reply

    async def evalsha(self, sha: str, text: str, keys: list[str], args: list[Any]) -> Any:
        return await self._hot.evalsha(sha, text, keys, args)

    async def _move(self) -> None:
        shard, old = self._shard, self._owner
        self._owner = new = old + 1
        assert await shard.scripts.requeue(f"w{old}", "r1", f"a{old}", how="hand_back") == "OK"
        await shard.scripts.beat(f"w{new}")
        assert isinstance(await shard.scripts.claim(f"w{new}", await shard.delivered(f"w{new}"), f"a{new}"), Claimed)


def requests(client: Any, shard: Shard) -> Requests:
    return Requests(client, Catalog(Registry(shard.client, shard.keys.prefix), SystemClock()), result_ttl_ms=60_000)


async def test_a_cancel_goes_on_while_its_request_changes_hands(hot: HotClient, shard: Shard) -> None:
    await shard.claimed()
    assert await requests(Restless(hot, shard, 12), shard).cancel(shard.keys, "r1", "cancelled") == "SENT"
    assert (await shard.record())["cancel"] == "cancelled"


async def test_a_cancel_that_comes_to_no_decision_does_not_say_that_it_has(hot: HotClient, shard: Shard) -> None:
    await shard.claimed()
    with pytest.raises(BrokerUnavailableError):
        await requests(Restless(hot, shard, 45), shard).cancel(shard.keys, "r1", "cancelled")
    assert "cancel" not in await shard.record()


async def test_a_request_whose_deletion_was_not_completed_is_found_by_the_next_one_alone(
    hot: HotClient, shard: Shard
) -> None:
    rid = new_request_id()
    await Registry(shard.client, shard.keys.prefix).register("pool", WorkerCard("w1", "sim", "1", 4, []), ["llama"])
    await shard.claimed(rid, tenant=ANONYMOUS)
    found = requests(hot, shard)
    await found.discard(shard.keys, rid)
    assert (await found.find(rid, ANONYMOUS, to_delete=True)).rid == rid
    with pytest.raises(RequestError, match="not found"):
        await found.find(rid, ANONYMOUS)
    await shard.scripts.done("w1", rid, "a1", state="cancelled", reason="deleted", frame=b"\x90", expected=0)
    with pytest.raises(RequestError, match="not found"):
        await found.find(rid, ANONYMOUS, to_delete=True)


async def test_a_request_that_redis_has_lost_is_waited_for_by_whom_has_seen_something_of_it(
    hot: HotClient, shard: Shard
) -> None:
    rid = new_request_id()
    waiting = asyncio.create_task(requests(hot, shard).find(rid, ANONYMOUS, lost_grace_s=5))
    for _ in range(5):
        await hot.call("PING", timeout_s=5)
    assert not waiting.done()
    await Registry(shard.client, shard.keys.prefix).register("pool", WorkerCard("w1", "sim", "1", 4, []), ["llama"])
    await shard.claimed(rid, tenant=ANONYMOUS)
    assert (await waiting).state == "running"
    with pytest.raises(RequestError, match="not found"):
        await requests(hot, shard).find(new_request_id(), ANONYMOUS, lost_grace_s=0.3)
