"""done: running → a terminal state, once."""

from __future__ import annotations

import pytest

from shared.outcomes import Finished
from shared.wire import Meta, decode_message
from tests.integration.shard import Shard, delta, ending, next_message
from worker.identity import Identity
from worker.publisher import Publisher


async def done(shard: Shard, attempt: str = "a1", state: str = "succeeded", expected: int = 0) -> Finished:
    frame = ending(attempt, state, "completed")
    return await shard.scripts.done(
        "w1", "r1", attempt, state=state, reason="completed", frame=frame, expected=expected
    )


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "expired"])
async def test_the_owner_ends_its_request_in_any_terminal_state(shard: Shard, state: str) -> None:
    await shard.claimed()
    pubsub = await shard.listen()
    text = delta("a1")
    await shard.scripts.step("w1", [("r1", "a1", 0, text)])
    assert await done(shard, state=state, expected=len(text)) == Finished("OK")
    await shard.assert_over(state, "completed")
    assert await shard.log() == text + ending("a1", state, "completed")
    assert await shard.client.exists(shard.keys.run("w1")) == 0
    await next_message(pubsub)
    log_len, frame = decode_message(await next_message(pubsub))
    assert frame.meta is not None
    assert (log_len, frame.meta.state) == (len(await shard.log()), state)
    await pubsub.aclose()


async def test_a_repeated_done_is_ok_and_changes_nothing(shard: Shard) -> None:
    await shard.claimed()
    await done(shard)
    log = await shard.log()
    assert await done(shard) == Finished("OK")
    assert await shard.log() == log
    await shard.assert_over("succeeded", "completed")


async def test_a_done_that_does_not_know_the_log_is_told_its_length_and_may_come_again(shard: Shard) -> None:
    await shard.claimed()
    text = delta("a1")
    await shard.scripts.step("w1", [("r1", "a1", 0, text)])
    assert await done(shard, expected=1) == Finished("GAP", len(text))
    assert await shard.state() == "running"
    assert await shard.client.hget(shard.keys.run("w1"), "r1") == b"a1"  # type: ignore[misc]
    assert await done(shard, expected=len(text)) == Finished("OK")


async def test_another_attempt_cannot_end_the_request(shard: Shard) -> None:
    await shard.claimed()
    assert await done(shard, attempt="a0") == Finished("FENCED")
    assert await shard.state() == "running"
    assert await shard.finished() == []


async def test_a_request_that_was_given_to_somebody_else_is_not_ended_by_its_former_owner(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.requeue("w1", "r1", "a1", how="hand_back")
    await shard.scripts.claim("w2", await shard.delivered("w2"), "a2")
    assert await done(shard) == Finished("FENCED")
    assert (await shard.record())["owner"] == "w2"


async def test_what_ended_otherwise_stays_ended_so(shard: Shard) -> None:
    await shard.claimed()
    await done(shard)
    assert await done(shard, state="failed") == Finished("FENCED")
    await shard.assert_over("succeeded", "completed")


async def test_a_done_without_record_is_fenced_and_leaves_nothing(shard: Shard) -> None:
    assert await done(shard) == Finished("FENCED")
    assert await shard.client.keys(f"{shard.keys.prefix}:*") == []


async def test_a_tenants_other_requests_keep_their_places(shard: Shard) -> None:
    await shard.claimed()
    await shard.admit("r2")
    await done(shard)
    assert await shard.client.hgetall(shard.keys.tenants) == {b"acme": b"1"}  # type: ignore[misc]


async def test_what_a_tenants_next_request_is_expected_to_cost_is_its_prompt_and_each_sequence_as_long_as_the_last_ones(
    shard: Shard,
) -> None:
    identity = Identity()
    claimed = await shard.claimed("r1", identity.wid, "a1", prompt_tokens=7, output_limit=0, sequences=4)
    publisher = Publisher(shard.scripts, identity, lambda _: None)
    out = publisher.open("r1", "a1", claimed, width=4, priority=0)
    out.usage(7, 40)  # of all four together
    assert await publisher.finish(out, Meta(state="succeeded", reason="completed", usage=out.used))
    costs = {1: "17", 4: "47"}
    for sequences, cost in costs.items():
        rid = f"next-{sequences}"
        assert (await shard.admit(rid, prompt_tokens=7, output_limit=0, sequences=sequences)).outcome == "OK"
        assert (await shard.record(rid))["cost"] == cost
