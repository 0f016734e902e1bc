"""step: one flush of a worker."""

from __future__ import annotations

import pytest

from shared.errors import FencedError
from shared.limits import LEASE_MS
from shared.outcomes import Stepped
from shared.wire import MESSAGE_HEADER_BYTES, decode_frame, decode_message
from tests.integration.shard import Shard, delta, next_message


async def test_a_frame_is_appended_to_the_log_and_published_with_the_logs_length(shard: Shard) -> None:
    await shard.claimed()
    pubsub = await shard.listen()
    one, two = delta("a1", b"one"), delta("a1", b"two", 1)
    assert await shard.scripts.step("w1", [("r1", "a1", 0, one)]) == Stepped({}, [])
    await shard.scripts.step("w1", [("r1", "a1", len(one), two)])
    assert await shard.log() == one + two
    messages = [await next_message(pubsub), await next_message(pubsub)]
    assert [message[MESSAGE_HEADER_BYTES:] for message in messages] == [one, two]
    assert [decode_message(message)[0] for message in messages] == [len(one), len(one + two)]
    assert decode_message(messages[1])[1] == decode_frame(two)
    await pubsub.aclose()


async def test_a_blind_retry_publishes_again_and_appends_once(shard: Shard) -> None:
    await shard.claimed()
    pubsub = await shard.listen()
    first, frame = delta("a1", b"first"), delta("a1", b"text")
    await shard.scripts.step("w1", [("r1", "a1", 0, first)])
    for _ in range(3):
        assert (await shard.scripts.step("w1", [("r1", "a1", len(first), frame)])).refused == {}
    assert await shard.log() == first + frame
    await next_message(pubsub)
    assert len({await next_message(pubsub) for _ in range(3)}) == 1
    await pubsub.aclose()


async def test_a_frame_of_another_attempt_is_fenced_and_nobody_sees_it(shard: Shard) -> None:
    await shard.claimed()
    pubsub = await shard.listen()
    assert await shard.scripts.step("w1", [("r1", "a0", 0, delta("a0"))]) == Stepped({0: -1}, [])
    assert await shard.log() == b""
    assert await pubsub.get_message(timeout=0.05) is None
    await pubsub.aclose()


async def test_a_zombie_that_nobody_condemned_is_fenced_by_its_attempt(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.requeue("w1", "r1", "a1", how="hand_back")
    await shard.scripts.claim("w2", await shard.delivered("w2"), "a2")
    assert (await shard.scripts.step("w1", [("r1", "a1", 0, delta("a1"))])).refused == {0: -1}
    assert (await shard.scripts.step("w2", [("r1", "a2", 0, delta("a2"))])).refused == {}
    assert await shard.log() == delta("a2")


async def test_a_frame_after_the_end_is_fenced(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.done("w1", "r1", "a1", state="succeeded", reason="completed", frame=b"\x90", expected=0)
    assert (await shard.scripts.step("w1", [("r1", "a1", 1, delta("a1"))])).refused == {0: -1}
    assert await shard.log() == b"\x90"


async def test_a_log_that_is_not_where_the_worker_thinks_refuses_with_its_length(shard: Shard) -> None:
    await shard.claimed()
    frame = delta("a1")
    await shard.scripts.step("w1", [("r1", "a1", 0, frame)])
    pubsub = await shard.listen()
    for expected in (0, 1, 1_000):
        stepped = await shard.scripts.step("w1", [("r1", "a1", expected, delta("a1", b"other text"))])
        assert stepped.refused == {0: len(frame)}
    assert await shard.log() == frame
    assert await pubsub.get_message(timeout=0.05) is None
    await pubsub.aclose()


async def test_a_rolled_back_log_refuses_even_when_it_is_empty(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.step("w1", [("r1", "a1", 0, delta("a1"))])
    await shard.client.delete(shard.keys.log("r1"))
    stepped = await shard.scripts.step("w1", [("r1", "a1", len(delta("a1")), delta("a1", b"more"))])
    assert stepped.refused == {0: 0}
    assert await shard.log() == b""


async def test_one_refused_sequence_does_not_hold_up_the_others(shard: Shard) -> None:
    for rid in ("r1", "r2", "r3"):
        await shard.claimed(rid, attempt=f"a-{rid}")
    frames = [("r1", "a-r1", 0, delta("a-r1")), ("r2", "wrong", 0, delta("wrong")), ("r3", "a-r3", 0, delta("a-r3"))]
    stepped = await shard.scripts.step("w1", frames)
    assert stepped.refused == {1: -1}
    assert [bool(await shard.log(rid)) for rid in ("r1", "r2", "r3")] == [True, False, True]


async def test_a_step_renews_the_lease_and_revives_a_lapsed_one(shard: Shard) -> None:
    await shard.claimed()
    await shard.client.delete(shard.keys.lease("w1"))
    await shard.scripts.step("w1", [("r1", "a1", 0, delta("a1"))])
    assert 0 < await shard.client.pttl(shard.keys.lease("w1")) <= LEASE_MS


async def test_a_step_brings_the_box_and_leaves_it_there(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.cancel("r1", owner="w1", queue="standard", reason="client_gone")
    for _ in range(2):
        assert (await shard.scripts.step("w1", [("r1", "a0", 0, b"")])).box == [b"cancel r1"]


async def test_a_condemned_worker_writes_nothing(shard: Shard) -> None:
    await shard.claimed()
    await shard.die()
    with pytest.raises(FencedError):
        await shard.scripts.step("w1", [("r1", "a1", 0, delta("a1"))])
    assert await shard.log() == b""
    assert await shard.client.exists(shard.keys.lease("w1")) == 0


async def test_256_sequences_fit_into_one_step(shard: Shard) -> None:
    await shard.scripts.beat("w1")
    await shard.client.hset(shard.keys.run("w1"), mapping={f"r{i}": "a1" for i in range(256)})  # type: ignore[misc]
    for i in range(256):
        await shard.client.hset(shard.keys.record(f"r{i}"), mapping={"state": "running", "attempt": "a1"})  # type: ignore[misc]
    stepped = await shard.scripts.step("w1", [(f"r{i}", "a1", 0, delta("a1")) for i in range(256)])
    assert stepped.refused == {}
