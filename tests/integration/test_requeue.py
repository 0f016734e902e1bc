"""requeue: running → queued again, with its log, or → an end."""

from __future__ import annotations

from shared.limits import MOST_KILLS
from shared.outcomes import Claimed
from tests.integration.shard import Shard, delta


async def test_an_invisible_request_of_a_dead_worker_runs_again_elsewhere(shard: Shard) -> None:
    await shard.claimed()
    await shard.die()
    assert await shard.scripts.requeue("w1", "r1", "a1") == "OK"
    record = await shard.record()
    assert {"state": "queued", "queue": "standard", "kills": "1", "lane": "standard"}.items() <= record.items()
    assert not {"owner", "attempt"} & record.keys()
    assert await shard.client.exists(shard.keys.run("w1")) == 0
    assert await shard.client.hget(shard.keys.tenants, "acme") == b"1"  # type: ignore[misc]
    claimed = await shard.scripts.claim("w2", await shard.delivered("w2"), "a2")
    assert isinstance(claimed, Claimed)
    assert (claimed.claims, claimed.body) == (2, b"body of r1")


async def test_a_request_whose_text_was_visible_goes_to_another_worker_with_its_log(shard: Shard) -> None:
    await shard.claimed()
    frame = delta("a1")
    await shard.scripts.step("w1", [("r1", "a1", 0, frame)])
    await shard.die()
    assert await shard.scripts.requeue("w1", "r1", "a1") == "OK"
    assert (await shard.record())["kills"] == "1"
    claimed = await shard.scripts.claim("w2", await shard.delivered("w2"), "a2")
    assert isinstance(claimed, Claimed)
    assert (claimed.body, claimed.log) == (b"body of r1", frame)
    more = delta("a2")
    assert (await shard.scripts.step("w2", [("r1", "a2", len(frame), more)])).refused == {}
    assert await shard.log() == frame + more


async def test_a_living_workers_request_is_not_taken_away(shard: Shard) -> None:
    await shard.claimed()
    assert await shard.scripts.requeue("w1", "r1", "a1") == "ALIVE"
    await shard.client.delete(shard.keys.lease("w1"))
    assert await shard.scripts.requeue("w1", "r1", "a1") == "ALIVE"
    assert await shard.state() == "running"


async def test_a_repeated_requeue_is_stale_and_queues_once(shard: Shard) -> None:
    await shard.claimed()
    await shard.die()
    await shard.scripts.requeue("w1", "r1", "a1")
    assert await shard.scripts.requeue("w1", "r1", "a1") == "STALE"
    assert await shard.client.xlen(shard.keys.queue("standard")) == 1
    assert (await shard.record())["kills"] == "1"


async def test_another_attempt_than_the_owned_one_is_stale(shard: Shard) -> None:
    await shard.claimed()
    assert await shard.scripts.requeue("w1", "r1", "a0", how="hand_back") == "STALE"
    assert await shard.state() == "running"


async def test_a_run_set_that_a_rollback_brought_back_takes_nothing_from_the_new_owner(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.requeue("w1", "r1", "a1", how="hand_back")
    await shard.scripts.claim("w2", await shard.delivered("w2"), "a2")
    await shard.client.hset(shard.keys.run("w1"), "r1", "a1")  # type: ignore[misc]
    assert await shard.scripts.requeue("w1", "r1", "a1", how="hand_back") == "STALE"
    assert (await shard.record())["owner"] == "w2"
    assert await shard.client.exists(shard.keys.run("w1")) == 0


async def test_handing_back_is_no_kill_and_needs_no_dead_worker(shard: Shard) -> None:
    await shard.claimed()
    assert await shard.scripts.requeue("w1", "r1", "a1", how="hand_back") == "OK"
    assert (await shard.record())["kills"] == "0"
    assert (await shard.delivered("w2")).queue == "standard"


async def test_a_request_that_killed_its_workers_is_set_aside_with_its_body(shard: Shard) -> None:
    await shard.admit()
    for kill in range(1, MOST_KILLS + 1):
        wid, attempt = f"w{kill}", f"a{kill}"
        await shard.scripts.claim(wid, await shard.delivered(wid), attempt)
        await shard.die(wid)
        assert await shard.scripts.requeue(wid, "r1", attempt) == ("OK" if kill < MOST_KILLS else "ENDED")
        await shard.scripts.release("-", "r1")
    await shard.assert_over("failed", "too_many_attempts")
    ((_, letter),) = await shard.client.xrange(shard.keys.dead_letters)
    assert (letter[b"rid"], letter[b"kills"], letter[b"body"]) == (b"r1", b"3", b"body of r1")


async def test_a_cancelled_request_of_a_dead_worker_ends_cancelled(shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.cancel("r1", owner="w1", queue="standard", reason="client_gone")
    await shard.die()
    assert await shard.scripts.requeue("w1", "r1", "a1") == "ENDED"
    await shard.assert_over("cancelled", "client_gone")


async def test_a_deadline_that_was_told_to_a_dead_worker_is_watched_again(shard: Shard) -> None:
    await shard.claimed()
    await shard.client.zrem(shard.keys.deadlines, "r1")
    await shard.die()
    await shard.scripts.requeue("w1", "r1", "a1")
    assert await shard.client.zscore(shard.keys.deadlines, "r1") is not None
