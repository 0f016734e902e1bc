"""Poison: kills are counted, suspects wait in quarantine, the third kill makes a dead letter."""

from __future__ import annotations

import pytest
import redis.asyncio

from shared.limits import MOST_KILLS, SUSPECT_KILLS
from shared.metrics import RELEASED
from shared.outcomes import Claimed
from shared.reaper import Reaper
from shared.registry import Registry
from shared.wire import WorkerCard
from tests.integration.shard import Shard


@pytest.fixture
async def reaper(client: redis.asyncio.Redis, shard: Shard) -> Reaper:
    """A reaper that knows the pool."""
    await Registry(client, shard.keys.prefix).register("pool", WorkerCard("w0", "sim", "1", 4, []), ["llama"])
    return Reaper(client, shard.keys.prefix)


async def kill(shard: Shard, reaper: Reaper, number: int) -> None:
    """Worker `w<number>` takes all there is, and dies."""
    wid = f"w{number}"
    for entry in await shard.scripts.pull(wid, 10):
        assert isinstance(await shard.scripts.claim(wid, entry, f"{wid}-{entry.rid}"), Claimed)
    await shard.die(wid)
    await reaper.bury(shard.keys, shard.scripts, wid)


async def release(shard: Shard, reaper: Reaper) -> None:
    await reaper._release(shard.keys, shard.scripts)


async def where(shard: Shard, rid: str) -> tuple[str, str]:
    record = await shard.record(rid)
    return record["state"], record["queue"]


async def test_the_second_kill_makes_a_suspect_that_nobody_pulls(shard: Shard, reaper: Reaper) -> None:
    await shard.admit()
    await kill(shard, reaper, 1)
    assert await where(shard, "r1") == ("queued", "standard")
    await kill(shard, reaper, 2)
    assert await where(shard, "r1") == ("queued", "quarantine")
    assert (await shard.record())["kills"] == str(SUSPECT_KILLS)
    assert await shard.scripts.pull("w3", 10) == []


async def test_one_suspect_at_a_time_is_let_out_and_the_next_when_it_has_ended(shard: Shard, reaper: Reaper) -> None:
    for rid in ("r1", "r2", "r3"):
        await shard.admit(rid)
    await kill(shard, reaper, 1)
    await kill(shard, reaper, 2)
    released = RELEASED._value.get()
    for _ in range(3):
        await release(shard, reaper)
    assert RELEASED._value.get() == released + 1
    entry = await shard.delivered("w3")
    await release(shard, reaper)
    assert isinstance(await shard.scripts.claim("w3", entry, "a3"), Claimed)
    await release(shard, reaper)
    assert await shard.scripts.pull("w4", 10) == [], "while one is out the others wait"
    await shard.scripts.done("w3", entry.rid, "a3", state="succeeded", reason="completed", frame=b"", expected=0)
    await release(shard, reaper)
    assert (await shard.delivered("w4")).rid != entry.rid


async def test_a_suspect_that_dies_alone_becomes_a_dead_letter_with_its_history(shard: Shard, reaper: Reaper) -> None:
    await shard.admit()
    for number in (1, 2):
        await kill(shard, reaper, number)
    await release(shard, reaper)
    await kill(shard, reaper, 3)
    await shard.assert_over("failed", "too_many_attempts")
    ((_, letter),) = await shard.client.xrange(shard.keys.dead_letters)
    assert (letter[b"body"], letter[b"kills"], letter[b"lane"]) == (b"body of r1", b"3", b"standard")
    lines = [line.split() for line in letter[b"history"].decode().splitlines()]
    assert [line[1:4] for line in lines] == [["worker_died", f"w{number}", f"w{number}-r1"] for number in (1, 2, 3)]
    spans = [(int(line[4]), int(line[0])) for line in lines]
    assert all(0 < began_ms <= ended_ms for began_ms, ended_ms in spans), "each says when its attempt began and ended"


async def test_who_dies_beside_the_suspect_that_is_out_is_not_blamed(shard: Shard, reaper: Reaper) -> None:
    await shard.admit("r1")
    for number in (1, 2):
        await kill(shard, reaper, number)
    await release(shard, reaper)
    for rid in ("a-neighbour", "z-neighbour"):
        await shard.admit(rid)
    await kill(shard, reaper, 3)
    assert await shard.state("r1") == "failed"
    for rid in ("a-neighbour", "z-neighbour"):
        assert await where(shard, rid) == ("queued", "standard")
        assert (await shard.record(rid))["kills"] == "0"


async def test_every_innocent_survives_one_poison(shard: Shard, reaper: Reaper) -> None:
    innocents = [f"i{number}" for number in range(6)]
    for rid in ("poison", *innocents):
        await shard.admit(rid)
    for number in range(1, 40):
        wid = f"w{number}"
        died = False
        for entry in await shard.scripts.pull(wid, 10):
            await shard.scripts.claim(wid, entry, f"{wid}-{entry.rid}")
            died = died or entry.rid == "poison"
        owned = await shard.client.hkeys(shard.keys.run(wid))  # type: ignore[misc]
        if died:
            await shard.die(wid)
            await reaper.bury(shard.keys, shard.scripts, wid)
        for raw in owned if not died else []:
            rid = raw.decode()
            await shard.scripts.done(
                wid, rid, f"{wid}-{rid}", state="succeeded", reason="completed", frame=b"", expected=0
            )
        await release(shard, reaper)
    assert [await shard.state(rid) for rid in innocents] == ["succeeded"] * len(innocents)
    assert await shard.state("poison") == "failed"
    assert await shard.client.xlen(shard.keys.dead_letters) == 1


async def test_handing_a_suspect_back_keeps_it_out_and_blames_it_for_nothing(shard: Shard, reaper: Reaper) -> None:
    await shard.admit()
    for number in (1, 2):
        await kill(shard, reaper, number)
    await release(shard, reaper)
    entry = await shard.delivered("w3")
    await shard.scripts.claim("w3", entry, "a3")
    assert await shard.scripts.requeue("w3", "r1", "a3", how="hand_back") == "OK"
    assert await where(shard, "r1") == ("queued", "standard")
    assert int((await shard.record())["kills"]) == MOST_KILLS - 1


async def test_a_suspect_that_waits_can_be_cancelled_and_does_not_block_the_next(shard: Shard, reaper: Reaper) -> None:
    for rid in ("r1", "r2"):
        await shard.admit(rid)
    for number in (1, 2):
        await kill(shard, reaper, number)
    first = (await reaper._next_suspect(shard.keys)) or ""
    assert await shard.scripts.cancel(first, owner="-", queue="quarantine", reason="operator") == "DONE"
    await release(shard, reaper)
    assert (await shard.delivered("w3")).rid != first


async def test_a_release_that_somebody_else_has_done_is_told_to_look_again(shard: Shard, reaper: Reaper) -> None:
    for rid in ("r1", "r2"):
        await shard.admit(rid)
    for number in (1, 2):
        await kill(shard, reaper, number)
    waits = (await reaper._next_suspect(shard.keys)) or ""
    assert await shard.scripts.release("-", waits) == "OK"
    assert await shard.scripts.release("-", waits) == "RETRY"
    assert await shard.scripts.release(waits, waits) == "BUSY"
