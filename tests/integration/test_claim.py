"""claim: queued → running, or the end of a request that must not run."""

from __future__ import annotations

import pytest

from shared.errors import FencedError
from shared.limits import MOST_CLAIMS
from shared.outcomes import Claimed, Entry, Unclaimed
from shared.wire import decode_message
from tests.integration.shard import Shard, in_ms, next_message


async def test_a_claim_moves_ownership_to_the_worker_and_the_entry_out_of_the_queue(shard: Shard) -> None:
    claimed = await shard.claimed()
    assert (claimed.body, claimed.log, claimed.claims) == (b"body of r1", b"", 1)
    assert 0 <= claimed.started_at_ms - claimed.queued_at_ms < 5_000
    facts = {"state": "running", "owner": "w1", "attempt": "a1", "claims": "1"}
    assert facts.items() <= (await shard.record()).items()
    assert await shard.client.hgetall(shard.keys.run("w1")) == {b"r1": b"a1"}  # type: ignore[misc]
    queue = shard.keys.queue("standard")
    assert await shard.client.xlen(queue) == 0
    assert (await shard.client.xpending(queue, "g"))["pending"] == 0
    assert await shard.client.exists(shard.keys.body("r1")) == 1


async def test_a_worker_that_owns_something_is_known_to_the_reapers_without_a_card(shard: Shard) -> None:
    await shard.claimed()
    assert await shard.client.hgetall(shard.keys.workers) == {b"w1": b""}  # type: ignore[misc]


async def test_a_claim_keeps_the_card_of_the_worker(shard: Shard) -> None:
    await shard.client.hset(shard.keys.workers, "w1", "card")  # type: ignore[misc]
    await shard.claimed()
    assert await shard.client.hget(shard.keys.workers, "w1") == b"card"  # type: ignore[misc]


async def test_a_repeated_claim_gives_the_same_answer_and_counts_once(shard: Shard) -> None:
    await shard.admit()
    entry = await shard.delivered()
    first = await shard.scripts.claim("w1", entry, "a1")
    assert await shard.scripts.claim("w1", entry, "a1") == first
    assert (await shard.record())["claims"] == "1"


async def test_the_second_deadline_takes_the_place_of_the_first_one_at_claim(shard: Shard) -> None:
    start_by_ms, finish_by_ms = in_ms(1_000), in_ms(60_000)
    await shard.admit(deadline_ms=start_by_ms, finish_by_ms=finish_by_ms)
    assert await shard.client.zscore(shard.keys.deadlines, "r1") == start_by_ms
    for _ in range(2):
        await shard.scripts.claim("w1", Entry("standard", (await shard.record())["entry"], "r1"), "a1")
        assert (await shard.record())["deadline_ms"] == str(finish_by_ms)
        assert await shard.client.zscore(shard.keys.deadlines, "r1") == finish_by_ms


async def test_without_a_second_deadline_the_first_one_stays_in_force(shard: Shard) -> None:
    start_by_ms = in_ms(60_000)
    await shard.claimed(deadline_ms=start_by_ms)
    assert (await shard.record())["deadline_ms"] == str(start_by_ms)
    assert await shard.client.zscore(shard.keys.deadlines, "r1") == start_by_ms


async def test_an_entry_that_was_delivered_twice_is_skipped(shard: Shard) -> None:
    await shard.admit()
    entry = await shard.delivered()
    await shard.scripts.claim("w1", entry, "a1")
    assert await shard.scripts.claim("w2", entry, "a2") == Unclaimed("SKIP", "running")
    assert (await shard.record())["owner"] == "w1"


async def test_an_entry_of_an_earlier_queueing_is_skipped(shard: Shard) -> None:
    await shard.admit()
    stale = Entry("standard", "1-1", "r1")
    assert await shard.scripts.claim("w2", stale, "a2") == Unclaimed("SKIP", "queued")
    assert isinstance(await shard.scripts.claim("w2", await shard.delivered("w2"), "a2"), Claimed)


async def test_an_entry_without_record_is_gone_and_leaves_the_queue(shard: Shard) -> None:
    await shard.admit()
    entry = await shard.delivered()
    await shard.client.delete(shard.keys.record("r1"))
    assert await shard.scripts.claim("w1", entry, "a1") == Unclaimed("GONE", "")
    assert await shard.client.xlen(shard.keys.queue("standard")) == 0


async def test_a_request_whose_deadline_passed_on_the_queue_expires_at_claim(shard: Shard) -> None:
    await shard.admit()
    await shard.client.hset(shard.keys.record("r1"), "deadline_ms", in_ms(-1))  # type: ignore[misc]
    pubsub = await shard.listen()
    assert await shard.scripts.claim("w1", await shard.delivered(), "a1") == Unclaimed("ENDED", "queue_timeout")
    await shard.assert_over("expired", "queue_timeout")
    log_len, frame = decode_message(await next_message(pubsub))
    assert frame.meta is not None
    assert (log_len, frame.meta.state) == (len(await shard.log()), "expired")
    await pubsub.aclose()


async def test_a_request_that_is_marked_cancelled_ends_at_claim(shard: Shard) -> None:
    await shard.admit()
    await shard.client.hset(shard.keys.record("r1"), "cancel", "operator")  # type: ignore[misc]
    assert await shard.scripts.claim("w1", await shard.delivered(), "a1") == Unclaimed("ENDED", "cancelled")
    await shard.assert_over("cancelled", "operator")


async def test_a_request_that_was_claimed_too_often_is_set_aside_with_its_body(shard: Shard) -> None:
    await shard.admit()
    await shard.client.hset(shard.keys.record("r1"), "claims", MOST_CLAIMS)  # type: ignore[misc]
    outcome = await shard.scripts.claim("w1", await shard.delivered(), "a1")
    assert outcome == Unclaimed("ENDED", "too_many_attempts")
    await shard.assert_over("failed", "too_many_attempts")
    ((_, letter),) = await shard.client.xrange(shard.keys.dead_letters)
    assert (letter[b"rid"], letter[b"body"], letter[b"reason"]) == (b"r1", b"body of r1", b"too_many_attempts")


async def test_a_condemned_worker_claims_nothing_and_the_entry_stays(shard: Shard) -> None:
    await shard.admit()
    entry = await shard.delivered()
    await shard.die()
    with pytest.raises(FencedError):
        await shard.scripts.claim("w1", entry, "a1")
    assert await shard.state() == "queued"
    assert isinstance(await shard.scripts.claim("w2", entry, "a2"), Claimed)


async def test_a_claim_of_a_terminal_request_is_skipped(shard: Shard) -> None:
    await shard.admit()
    entry = await shard.delivered()
    await shard.scripts.cancel("r1", owner="-", queue="standard", reason="client_gone")
    claim = await shard.scripts.claim("w1", Entry("standard", entry.entry_id, "r1"), "a1")
    assert claim == Unclaimed("SKIP", "cancelled")
