"""Idempotency keys at the door, and what an end leaves behind."""

from __future__ import annotations

from typing import Any

from shared.limits import DISCARDED_LOG_MS
from shared.outcomes import Admitted, Finished
from tests.integration.shard import TOMBSTONE_MS, Shard, delta, ending, in_ms, next_message

KEY: dict[str, Any] = {"fingerprint": "fp", "idempotency": "k", "idempotency_ttl_ms": 60_000}


async def bound(shard: Shard) -> bytes | None:
    value = await shard.client.get(shard.keys.idempotency("k"))
    assert value is None or isinstance(value, bytes)
    return value


async def test_a_key_that_its_holder_has_set_free_goes_to_one_of_those_that_ask(shard: Shard) -> None:
    await shard.admit("r1", **KEY)
    assert await shard.admit("r2", **KEY, replaces="r1") == Admitted("OK", "r2", 2)
    assert await shard.admit("r2", **KEY, replaces="r1") == Admitted("OK", "r2", 0)
    assert await shard.admit("r3", **KEY, replaces="r1") == Admitted("DUP", "r2")
    assert await bound(shard) == b"r2|fp"


async def test_a_key_that_was_set_free_is_not_given_to_another_content(shard: Shard) -> None:
    await shard.admit("r1", **KEY)
    other = {**KEY, "fingerprint": "other"}
    assert await shard.admit("r2", **other, replaces="r1") == Admitted("CONFLICT", "r1")


async def test_a_request_whose_record_was_lost_is_admitted_again_under_its_own_key(shard: Shard) -> None:
    await shard.admit("r1", **KEY)
    await shard.client.delete(shard.keys.record("r1"))
    assert (await shard.admit("r1", **KEY)).outcome == "OK"
    assert await shard.state("r1") == "queued"


async def test_a_lost_request_is_led_to_the_one_that_has_taken_its_key_meanwhile(shard: Shard) -> None:
    await shard.admit("r2", **KEY)
    assert await shard.admit("r1", **KEY) == Admitted("DUP", "r2")


async def test_a_key_that_does_not_bind_refuses_nobody_and_remembers_the_last_request(shard: Shard) -> None:
    loose = {**KEY, "binding": False}
    await shard.admit("r1", **loose)
    assert (await shard.admit("r2", **loose)).outcome == "OK"
    assert await bound(shard) == b"r2|fp"
    assert await shard.admit("r3", **KEY) == Admitted("DUP", "r2")


async def test_a_refused_admission_leaves_the_key_as_it_was(shard: Shard) -> None:
    await shard.admit("r1", **KEY)
    assert (await shard.admit("r2", **KEY, replaces="r1", lane_cap=0)).outcome == "FULL"
    assert await bound(shard) == b"r1|fp"


async def test_a_result_stays_as_long_as_its_record_says_and_the_record_longer(shard: Shard) -> None:
    await shard.claimed(keep_ms=5_000_000)
    await shard.scripts.done("w1", "r1", "a1", state="succeeded", reason="x", frame=ending("a1"), expected=0)
    assert 4_990_000 < await shard.client.pttl(shard.keys.log("r1")) <= 5_000_000
    assert 4_990_000 < await shard.client.pttl(shard.keys.record("r1")) - TOMBSTONE_MS <= 5_000_000


async def test_the_end_says_how_many_heard_it_and_what_it_took(shard: Shard) -> None:
    for rid, listens in (("r1", False), ("r2", True)):
        await shard.claimed(rid)
        pubsub = await shard.listen(rid) if listens else None
        await shard.scripts.done(
            "w1", rid, "a1", state="succeeded", reason="x", frame=ending("a1"), expected=0, usage=(7, 3)
        )
        record = await shard.record(rid)
        assert (record["heard"], record["prompt_tokens"], record["completion_tokens"]) == (str(int(listens)), "7", "3")
        if pubsub is not None:
            await pubsub.aclose()  # type: ignore[no-untyped-call]


async def test_the_record_says_why_a_running_request_was_cancelled(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.cancel("r1", owner="w1", queue="standard", reason="client_gone")
    await shard.scripts.done("w1", "r1", "a1", state="cancelled", reason="cancelled", frame=ending("a1"), expected=0)
    assert (await shard.record())["reason"] == "client_gone"


async def test_the_owner_of_a_running_request_hears_at_once_that_it_shall_end(shard: Shard) -> None:
    pubsub = shard.client.pubsub()
    await pubsub.subscribe(shard.keys.control("w1"))
    assert await pubsub.get_message(timeout=30) is not None
    await shard.claimed("r1")
    assert await shard.scripts.cancel("r1", owner="w1", queue="standard", reason="x") == "SENT"
    assert await next_message(pubsub) == b"cancel r1"
    await shard.claimed("r2")
    await shard.client.hset(shard.keys.record("r2"), "deadline_ms", in_ms(-1_000))  # type: ignore[misc]
    await shard.client.zadd(shard.keys.deadlines, {"r2": in_ms(-1_000)})
    assert await shard.scripts.expire("r2", owner="w1", queue="standard") == "SENT"
    assert await next_message(pubsub) == b"expire r2"
    assert await shard.client.lrange(shard.keys.box("w1"), 0, -1) == [b"cancel r1", b"expire r2"]  # type: ignore[misc]
    await pubsub.aclose()  # type: ignore[no-untyped-call]


async def test_a_discarded_result_is_gone_and_its_record_is_the_mark_of_it(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.done("w1", "r1", "a1", state="succeeded", reason="x", frame=ending("a1"), expected=0)
    for _ in range(2):
        assert await shard.scripts.discard("r1") == "OK"
    assert await shard.client.exists(shard.keys.log("r1")) == 0
    assert (await shard.record())["discarded"] == "1"


async def test_readers_of_a_request_that_is_discarded_while_it_runs_still_find_its_end(shard: Shard) -> None:
    await shard.claimed(keep_ms=5_000_000)
    text = delta("a1")
    await shard.scripts.step("w1", [("r1", "a1", 0, text)])
    assert await shard.scripts.discard("r1") == "OK"
    frame = ending("a1")
    done = await shard.scripts.done("w1", "r1", "a1", state="succeeded", reason="x", frame=frame, expected=len(text))
    assert done == Finished("OK")
    assert await shard.log() == text + frame
    assert 0 < await shard.client.pttl(shard.keys.log("r1")) <= DISCARDED_LOG_MS


async def test_what_is_not_known_cannot_be_discarded(shard: Shard) -> None:
    assert await shard.scripts.discard("r1") == "GONE"
    assert await shard.record() == {}
