"""cancel and expire: ending what waits, and telling the owner of what runs."""

from __future__ import annotations

import pytest

from shared.outcomes import Unclaimed
from shared.wire import decode_message, split_log
from tests.integration.shard import Shard, in_ms, next_message


async def cancel(shard: Shard, owner: str = "-", queue: str = "standard") -> str:
    return await shard.scripts.cancel("r1", owner=owner, queue=queue, reason="client_gone")


async def expire(shard: Shard, owner: str = "-", queue: str = "standard") -> str:
    return await shard.scripts.expire("r1", owner=owner, queue=queue)


async def pass_deadline(shard: Shard) -> None:
    """The deadline is a second ago."""
    await shard.client.hset(shard.keys.record("r1"), "deadline_ms", in_ms(-1_000))  # type: ignore[misc]
    await shard.client.zadd(shard.keys.deadlines, {"r1": in_ms(-1_000)})


async def test_cancelling_a_queued_request_ends_it_at_once(shard: Shard) -> None:
    await shard.admit()
    pubsub = await shard.listen()
    assert await cancel(shard) == "DONE"
    await shard.assert_over("cancelled", "client_gone")
    assert await shard.client.xlen(shard.keys.queue("standard")) == 0
    assert await shard.scripts.pull("w1", 1) == []
    _, frame = decode_message(await next_message(pubsub))
    assert frame.meta is not None
    assert frame.meta.reason == "client_gone"
    await pubsub.aclose()


async def test_cancelling_between_delivery_and_claim_leaves_nothing_to_claim(shard: Shard) -> None:
    await shard.admit()
    entry = await shard.delivered()
    assert await cancel(shard) == "DONE"
    assert (await shard.client.xpending(shard.keys.queue("standard"), "g"))["pending"] == 0
    assert await shard.scripts.claim("w1", entry, "a1") == Unclaimed("SKIP", "cancelled")


async def test_cancelling_twice_is_told_the_state(shard: Shard) -> None:
    await shard.admit()
    await cancel(shard)
    assert await cancel(shard) == "cancelled"
    assert len(await shard.finished()) == 1


async def test_cancelling_a_running_request_tells_its_owner(shard: Shard) -> None:
    await shard.claimed()
    assert await cancel(shard, owner="w1") == "SENT"
    assert await shard.state() == "running"
    assert (await shard.record())["cancel"] == "client_gone"
    assert await shard.scripts.beat("w1") == [b"cancel r1"]
    assert 0 < await shard.client.pttl(shard.keys.box("w1")) <= 60_000


async def test_a_cancel_that_looked_too_early_looks_again(shard: Shard) -> None:
    await shard.claimed()
    assert await cancel(shard, owner="-") == "RETRY"
    await shard.scripts.requeue("w1", "r1", "a1", how="hand_back")
    assert await cancel(shard, queue="batch") == "RETRY"
    assert await cancel(shard, queue="standard") == "DONE"
    await shard.assert_over("cancelled", "client_gone")


async def test_cancelling_nothing_is_gone(shard: Shard) -> None:
    assert await cancel(shard) == "GONE"
    assert await shard.client.keys(f"{shard.keys.prefix}:*") == []


@pytest.mark.parametrize("state", ["succeeded", "failed"])
async def test_cancelling_what_has_ended_is_told_its_state(shard: Shard, state: str) -> None:
    await shard.claimed()
    await shard.scripts.done("w1", "r1", "a1", state=state, reason="why", frame=b"\x90", expected=0)
    assert await cancel(shard) == state


async def test_a_deadline_ahead_is_too_early(shard: Shard) -> None:
    await shard.admit()
    assert await expire(shard) == "EARLY"
    assert await shard.state() == "queued"


async def test_a_queued_request_expires_at_its_deadline(shard: Shard) -> None:
    await shard.admit()
    await pass_deadline(shard)
    assert await expire(shard) == "DONE"
    await shard.assert_over("expired", "queue_timeout")
    assert await shard.client.xlen(shard.keys.queue("standard")) == 0
    assert await expire(shard) == "expired"


async def test_the_owner_of_a_running_request_is_told_of_its_deadline_once(shard: Shard) -> None:
    await shard.claimed()
    await pass_deadline(shard)
    assert await expire(shard, owner="w1") == "SENT"
    assert await shard.scripts.beat("w1") == [b"expire r1"]
    assert await shard.client.zscore(shard.keys.deadlines, "r1") is None
    assert await shard.state() == "running"


async def test_an_expiry_that_looked_too_early_looks_again(shard: Shard) -> None:
    await shard.admit()
    await pass_deadline(shard)
    assert await expire(shard, queue="batch") == "RETRY"
    await shard.scripts.claim("w1", await shard.delivered(), "a1")  # ends it: the deadline has passed
    assert await expire(shard) == "expired"


async def test_the_wrong_owner_of_a_running_request_is_not_told(shard: Shard) -> None:
    await shard.claimed()
    await pass_deadline(shard)
    assert await expire(shard, owner="w2") == "RETRY"
    assert await shard.client.exists(shard.keys.box("w2")) == 0


async def test_a_deadline_without_record_is_forgotten(shard: Shard) -> None:
    await shard.client.zadd(shard.keys.deadlines, {"r1": 1})
    assert await expire(shard) == "GONE"
    assert await shard.client.exists(shard.keys.deadlines) == 0


async def test_what_had_started_and_waits_for_another_worker_exceeds_its_deadline(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.requeue("w1", "r1", "a1", how="hand_back")
    await pass_deadline(shard)
    assert await expire(shard, queue="standard") == "DONE"
    await shard.assert_over("expired", "deadline_exceeded")
    (_, last), *_ = reversed(list(split_log(await shard.log(), 0)))
    assert last.meta is not None
    assert last.meta.reason == "deadline_exceeded"


async def test_a_claim_ends_what_had_started_before_in_the_same_way(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.requeue("w1", "r1", "a1", how="hand_back")
    await pass_deadline(shard)
    assert await shard.scripts.claim("w1", await shard.delivered(), "a2") == Unclaimed("ENDED", "deadline_exceeded")
    await shard.assert_over("expired", "deadline_exceeded")
    (_, last), *_ = reversed(list(split_log(await shard.log(), 0)))
    assert last.meta is not None
    assert last.meta.reason == "deadline_exceeded"
