"""Dead letters: what is kept, and what people can do with it."""

from __future__ import annotations

import pytest
import redis.asyncio

from shared.dead_letters import DeadLetters
from shared.outcomes import Claimed
from shared.registry import Registry
from shared.wire import Request, WorkerCard, decode_request, encode
from tests.integration.shard import Shard, ending


def body_of(rid: str) -> bytes:
    return encode(Request("POST", "/v1/completions", [("x-request-id", rid)], b'{"prompt": "x"}', "batch"))


@pytest.fixture
async def letters(client: redis.asyncio.Redis, shard: Shard) -> DeadLetters:
    """The dead letters of a pool in which r1 has been given up."""
    await Registry(client, shard.keys.prefix).register("pool", WorkerCard("w0", "sim", "1", 4, []), ["llama"])
    await give_up(shard, "r1")
    return DeadLetters(client, shard.keys.prefix)


async def give_up(shard: Shard, rid: str, body: bytes | None = None) -> None:
    await shard.claimed(rid, attempt=f"a-{rid}", body=body or body_of(rid), lane="batch", cost=7)
    ended = await shard.scripts.done(
        "w1", rid, f"a-{rid}", state="failed", reason="undecodable", frame=ending("a"), expected=0
    )
    assert ended.outcome == "OK"


async def test_a_letter_keeps_the_request_its_facts_and_what_happened(letters: DeadLetters) -> None:
    (letter,) = await letters.all()
    assert (letter.rid, letter.reason, letter.lane, letter.tenant, letter.cost) == (
        "r1",
        "undecodable",
        "batch",
        "acme",
        7,
    )
    assert (letter.kills, letter.claims, letter.body) == (0, 1, body_of("r1"))
    assert [(event.what, event.wid, event.attempt) for event in letter.history] == [("undecodable", "w1", "a-r1")]
    assert letter.at_ms >= letter.queued_at_ms > 0
    assert letter.facts()["redriven_as"] is None


async def test_a_repeated_end_keeps_one_letter(letters: DeadLetters, shard: Shard) -> None:
    again = await shard.scripts.done(
        "w1", "r1", "a-r1", state="failed", reason="undecodable", frame=ending("a"), expected=0
    )
    assert again.outcome == "OK"
    assert len(await letters.all()) == 1


async def test_a_letter_is_found_by_its_entry_and_by_its_request(letters: DeadLetters) -> None:
    (letter,) = await letters.all()
    assert await letters.find(letter.entry) == letter
    assert await letters.find("r1") == letter
    assert await letters.find("r2") is None


async def test_the_latest_come_first_and_pages_are_joined(
    letters: DeadLetters, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.dead_letters._PAGE", 2)
    for number in range(2, 6):
        await give_up(shard, f"r{number}")
    assert [letter.rid for letter in await letters.all()] == ["r5", "r4", "r3", "r2", "r1"]
    assert [letter.rid for letter in await letters.all(most=3)] == ["r5", "r4", "r3"]


async def test_redriving_admits_the_same_request_under_a_new_id_in_its_lane(letters: DeadLetters, shard: Shard) -> None:
    (letter,) = await letters.all()
    outcome, rid = await letters.redrive(letter)
    assert outcome == "OK"
    assert rid != "r1"
    record = await shard.record(rid)
    assert {"state": "queued", "lane": "batch", "tenant": "acme", "cost": "7", "kills": "0"}.items() <= record.items()
    entry = await shard.delivered("w2")
    claimed = await shard.scripts.claim("w2", entry, "a2")
    assert isinstance(claimed, Claimed)
    request = decode_request(claimed.body)
    assert request.headers == [("x-request-id", rid)]
    assert request.stays, "nobody follows it: the worker's orphan timer would stop it"
    assert request.body == b'{"prompt": "x"}'
    done = await shard.scripts.done(
        "w2", rid, "a2", state="succeeded", reason="completed", frame=ending("a2"), expected=0
    )
    assert done.outcome == "OK"
    assert await shard.client.exists(shard.keys.tenants) == 0


async def test_redriving_twice_gives_one_request(letters: DeadLetters, shard: Shard) -> None:
    (letter,) = await letters.all()
    _, rid = await letters.redrive(letter)
    assert await letters.redrive(letter) == ("DUP", rid)
    assert await shard.client.xlen(shard.keys.queue("batch")) == 1
    assert (await letters.all())[0].redriven_as == rid


async def test_what_cannot_be_read_is_redriven_as_it_is(letters: DeadLetters, shard: Shard) -> None:
    await give_up(shard, "r2", b"\xc1 not a request")
    letter = await letters.find("r2")
    assert letter is not None
    assert letter.request is None
    _, rid = await letters.redrive(letter)
    assert await shard.client.get(shard.keys.body(rid)) == b"\xc1 not a request"


async def test_a_dropped_letter_is_gone_and_cannot_be_redriven(letters: DeadLetters) -> None:
    (letter,) = await letters.all()
    assert await letters.drop(letter)
    assert not await letters.drop(letter)
    assert await letters.all() == []
    assert await letters.redrive(letter) == ("GONE", "")
