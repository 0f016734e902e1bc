"""`restore`: a worker gives back to Redis what Redis has lost, and nothing that is somebody else's."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from shared.errors import FencedError
from shared.outcomes import Claimed, Held
from tests.integration.shard import Shard, delta, ending, in_ms, next_message

ONE, TWO = delta("a1", b"one"), delta("a1", b"two", 1)


async def running(shard: Shard, *frames: bytes, **changes: object) -> Claimed:
    """Request r1, run by w1 as a1, of which these frames are published."""
    claimed = await shard.claimed(**changes)
    log_len = 0
    for frame in frames:
        assert (await shard.scripts.step("w1", [("r1", "a1", log_len, frame)])).refused == {}
        log_len += len(frame)
    return claimed


def held(claimed: Claimed, *frames: bytes, attempt: str = "a1", ending: bool = False) -> Held:
    last_bytes = len(frames[-1]) if frames else 0
    return Held("r1", attempt, claimed, claimed.log + b"".join(frames), last_bytes, ending)


async def taken_over(shard: Shard, *frames: bytes) -> Claimed:
    """Request r1 is run by w2 as a2, which has published these frames."""
    await shard.scripts.beat("w2")
    (entry,) = await shard.scripts.pull("w2", 1)
    claimed = await shard.scripts.claim("w2", entry, "a2")
    assert isinstance(claimed, Claimed)
    log_len = len(claimed.log)
    for frame in frames:
        assert (await shard.scripts.step("w2", [("r1", "a2", log_len, frame)])).refused == {}
        log_len += len(frame)
    return claimed


async def everything(shard: Shard) -> dict[bytes, bytes | None]:
    """Every key of the shard, as it is."""
    names = [name async for name in shard.client.scan_iter(match=f"{shard.keys.prefix}:*")]
    lasting = [name for name in names if b":w:" not in name and b":ws" not in name and b":q:" not in name]
    return {name: await shard.client.dump(name) for name in sorted(lasting)}


async def flush(shard: Shard) -> None:
    async for name in shard.client.scan_iter(match=f"{shard.keys.prefix}:*"):
        await shard.client.delete(name)


async def test_after_a_flush_everything_is_as_it_was(shard: Shard) -> None:
    claimed = await running(shard, ONE, TWO, idempotency="key", idempotency_ttl_ms=60_000, keep_ms=50_000, stays=True)
    before = await everything(shard)
    await flush(shard)
    assert await shard.scripts.restore("w1", held(claimed, ONE, TWO)) == "OK"
    assert await shard.scripts.restore("w1", held(claimed, ONE, TWO)) == "OK", "it may be sent twice"
    after = await everything(shard)
    assert after.keys() == before.keys() - {shard.keys.sched.encode()}
    same = [name for name in after if b":r:" not in name and b":idem:" not in name]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert await shard.client.pttl(shard.keys.idempotency("key")) > 50_000
    assert (await shard.record())["stays"] == "1"
    end = len(ONE + TWO)
    done = await shard.scripts.done(
        "w1", "r1", "a1", state="succeeded", reason="completed", frame=ending("a1"), expected=end
    )
    assert done.outcome == "OK"
    assert await shard.log() == ONE + TWO + ending("a1")
    assert await shard.client.exists(shard.keys.tenants, shard.keys.deadlines, shard.keys.body("r1")) == 0


async def test_what_nobody_has_seen_gives_way_to_the_request_that_has_its_key_by_now(shard: Shard) -> None:
    keyed = {"idempotency": "key", "idempotency_ttl_ms": 60_000}
    claimed = await running(shard, **keyed)
    await flush(shard)
    await shard.admit("r2", **keyed)
    assert await shard.scripts.restore("w1", held(claimed)) == "STALE"
    assert await shard.scripts.restore("w1", held(claimed, ONE)) == "STALE", "its first frame was refused"
    assert await shard.client.exists(shard.keys.record("r1"), shard.keys.log("r1"), shard.keys.run("w1")) == 0
    assert await shard.scripts.restore("w1", held(claimed, ONE, TWO)) == "OK", "somebody has seen that"
    await shard.client.delete(shard.keys.record("r1"), shard.keys.log("r1"), shard.keys.run("w1"))
    assert await shard.scripts.restore("w1", replace(held(claimed, ONE), seen=True)) == "OK", "that was published"
    assert (await shard.client.get(shard.keys.idempotency("key")) or b"").startswith(b"r2|"), "and the key stays"


async def test_the_last_missing_frame_is_published_with_its_place(shard: Shard) -> None:
    claimed = await running(shard, ONE)
    await flush(shard)
    async with await shard.listen() as pubsub:
        await shard.scripts.restore("w1", held(claimed, ONE, TWO))
        message = await next_message(pubsub)
    assert message[6:] == TWO
    assert int.from_bytes(message[2:6]) == len(ONE + TWO)


async def test_a_log_that_lost_its_tail_is_completed(shard: Shard) -> None:
    claimed = await running(shard, ONE, TWO)
    await shard.client.set(shard.keys.log("r1"), ONE)
    assert await shard.scripts.restore("w1", held(claimed, ONE, TWO)) == "OK"
    assert await shard.log() == ONE + TWO


async def test_a_log_that_holds_something_else_is_left_alone(shard: Shard) -> None:
    claimed = await running(shard, ONE)
    assert await shard.scripts.restore("w1", held(claimed, TWO)) == "DIFFERS"
    assert await shard.scripts.restore("w1", held(claimed)) == "DIFFERS", "the log is longer"
    assert await shard.log() == ONE


async def test_what_a_replica_has_admitted_again_meanwhile_is_taken_from_the_queue(shard: Shard) -> None:
    deadline_ms = in_ms(60_000)
    claimed = await running(shard, ONE, deadline_ms=deadline_ms, finish_by_ms=deadline_ms + 5_000)
    await flush(shard)
    assert (await shard.admit(deadline_ms=deadline_ms, finish_by_ms=deadline_ms + 5_000)).outcome == "OK"
    entry = await shard.delivered("w2")
    assert await shard.scripts.restore("w1", held(claimed, ONE)) == "OK"
    assert await shard.state() == "running"
    assert await shard.client.xlen(shard.keys.queue("standard")) == 0
    assert (await shard.client.xpending(shard.keys.queue("standard"), "g"))["pending"] == 0
    assert await shard.client.hget(shard.keys.tenants, "acme") == b"1"  # type: ignore[misc]
    assert await shard.client.zscore(shard.keys.deadlines, "r1") == deadline_ms + 5_000
    claim = await shard.scripts.claim("w2", entry, "a2")
    assert getattr(claim, "outcome", "") == "SKIP"
    assert (await shard.admit()).outcome == "OK", "an admission that comes late changes nothing"
    assert await shard.state() == "running"


async def test_another_attempt_that_has_shown_nothing_gives_way(shard: Shard) -> None:
    claimed = await running(shard, ONE)
    await flush(shard)
    await shard.admit()
    other = await taken_over(shard)
    assert await shard.scripts.restore("w1", held(claimed, ONE)) == "OK"
    assert (await shard.record())["owner"] == "w1"
    assert await shard.client.exists(shard.keys.run("w2")) == 0
    mine = delta("a2", b"other")
    assert (await shard.scripts.step("w2", [("r1", "a2", 0, mine)])).refused == {0: -1}
    assert await shard.scripts.restore("w2", held(other, mine, attempt="a2")) == "STALE"


async def test_another_attempt_that_has_shown_something_keeps_it(shard: Shard) -> None:
    claimed = await running(shard, ONE)
    await flush(shard)
    await shard.admit()
    await taken_over(shard, other := delta("a2", b"other"))
    before = await everything(shard)
    assert await shard.scripts.restore("w1", held(claimed, ONE)) == "STALE"
    assert await shard.scripts.restore("w1", held(claimed, ONE, ending=True)) == "STALE"
    assert await everything(shard) == before
    assert await shard.log() == other


async def test_of_two_attempts_that_have_shown_nothing_the_one_that_is_ready_goes_first(shard: Shard) -> None:
    claimed = await running(shard)
    await flush(shard)
    await shard.admit()
    await taken_over(shard)
    assert await shard.scripts.restore("w1", held(claimed)) == "STALE"
    assert await shard.scripts.restore("w1", held(claimed, ending=True)) == "OK"
    assert (await shard.record())["attempt"] == "a1"


async def test_a_condemned_worker_gets_nothing_back(shard: Shard) -> None:
    claimed = await running(shard, ONE)
    await shard.die()
    await shard.client.delete(shard.keys.record("r1"))
    with pytest.raises(FencedError):
        await shard.scripts.restore("w1", held(claimed, ONE))
    assert await shard.state() == ""


async def test_what_has_ended_is_not_touched(shard: Shard) -> None:
    claimed = await running(shard, ONE)
    await shard.scripts.done(
        "w1", "r1", "a1", state="succeeded", reason="completed", frame=ending("a1"), expected=len(ONE)
    )
    before = await everything(shard)
    assert await shard.scripts.restore("w1", held(claimed, ONE)) == "STALE"
    assert await shard.scripts.restore("w1", held(claimed, ONE, ending("a1"))) == "STALE"
    assert await everything(shard) == before


async def test_long_after_its_deadline_nothing_is_brought_back(shard: Shard) -> None:
    """The record of a request that has ended may be gone by then, by rights."""
    claimed = await running(shard, ONE, finish_by_ms=in_ms(-700_000))
    await flush(shard)
    assert await shard.scripts.restore("w1", held(claimed, ONE)) == "STALE"
    assert await shard.state() == ""


async def test_a_request_that_others_were_told_to_cancel_is_cancelled(shard: Shard) -> None:
    claimed = await running(shard, ONE)
    await flush(shard)
    await shard.admit()
    await taken_over(shard)
    assert await shard.scripts.cancel("r1", owner="w2", queue="standard", reason="client_gone") == "SENT"
    assert await shard.scripts.restore("w1", held(claimed, ONE)) == "OK"
    assert await shard.scripts.beat("w1") == [b"cancel r1"]


async def test_a_large_answer_comes_back_whole(shard: Shard) -> None:
    claimed = await running(shard)
    frames = [delta("a1", b"x" * 1000, index) for index in range(4_000)]
    await flush(shard)
    await asyncio.wait_for(shard.scripts.restore("w1", held(claimed, *frames)), 30)
    assert await shard.log() == b"".join(frames)


async def test_an_attempt_that_was_begun_under_an_old_id_is_not_taken_along_to_the_new_one(shard: Shard) -> None:
    """It stays the old one's, from which the reapers take it: or two ids would own it, and both be served."""
    claimed = await running(shard, ONE)
    await shard.die("w1")
    await shard.scripts.beat("w2")
    assert await shard.scripts.restore("w2", held(claimed, ONE)) == "STALE"
    assert await shard.client.exists(shard.keys.run("w2")) == 0
    assert await shard.scripts.restore("w2", held(claimed, ONE, TWO)) == "OK", "it has shown more than the old one"
    assert await shard.client.exists(shard.keys.run("w1")) == 0
    assert (await shard.record())["owner"] == "w2"
