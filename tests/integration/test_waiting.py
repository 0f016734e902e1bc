"""What waiting clients are told, when the server has something to say that no release of ours has written."""

from __future__ import annotations

from api.relay import Relay
from api.ticket import Ticket
from api.waiting import PLAIN, Waiting
from shared.hot import HotClient
from tests.integration.shard import Shard
from tests.support.polling import eventually, serving


def ticket(hot: HotClient, shard: Shard, rid: str) -> Ticket:
    relay = Relay(hot, shard.keys, rid, grace_s=1, lost_grace_s=1, readmit=None)
    return Ticket(rid, "m", "standard", relay, shard.keys, 0.0)


async def test_a_request_whose_place_cannot_be_told_costs_neither_its_stream_nor_the_replica(
    hot: HotClient, shard: Shard
) -> None:
    waiting = Waiting(hot, 0.01)
    for rid in ("r1", "r2"):
        await shard.admit(rid)
    await shard.client.hset(shard.keys.workers, "w1", b"card")  # type: ignore[misc]
    await shard.client.hset(shard.keys.sched, "rate:standard", "nonsense")  # type: ignore[misc]
    async with serving(waiting) as task:
        told = ticket(hot, shard, "r1")
        await waiting.add(told)
        assert told.relay.comment == PLAIN
        await shard.client.hset(shard.keys.sched, "rate:standard", "20 10 0")  # type: ignore[misc]
        await eventually(lambda: b"position=1" in told.relay.comment, "its place, once there is one")
        assert not task.done()
