"""Drills 30, 31 and 32: bursts whose clients come back, a batch backlog, more interactive requests than there is room.

How long people wait is measured by `python -m scripts.bench --only lanes`; here the order counts, not the clock.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import openai
import pytest
import redis

from shared.connection import RedisCaller, connect
from shared.ids import new_request_id
from shared.keys import Keys
from shared.lanes import Lane
from shared.outcomes import Admission, Bounds
from shared.scripts import Scripts
from shared.wire import Request, encode
from tests.drills.acting import KEYS as K
from tests.drills.acting import control
from tests.drills.catalogue import size
from tests.drills.conftest import Figures
from tests.support.history import check_history, leftovers
from tests.support.load import Ask, ask, ask_many
from tests.support.stack import Stack, eventually

ENDLESS = Bounds(requests=1 << 30, tokens=1 << 50, body_bytes=1 << 50, share=1.0)
NEVER_MS = 1 << 40
TOKENS = 8
SLOTS = 4
BITE = 4
"""Most that a worker pulls at once (`worker/intake.py`)."""


async def backlog(stack: Stack, lane: Lane, count: int) -> None:
    """So many requests wait in a lane that nobody follows."""
    body = json.dumps(
        {"model": "sim", "messages": [{"role": "user", "content": "count"}], "max_tokens": TOKENS}
    ).encode()
    client = connect(stack.redis_url)
    scripts = Scripts(RedisCaller(client), Keys(K.pool))

    async def admit() -> None:
        rid = new_request_id(0)
        request = Request("POST", "/v1/chat/completions", [("x-request-id", rid)], body, lane, stays=True)
        facts = Admission(rid, rid, lane, encode(request), "backlog", 1 << 30, 8, TOKENS, 0, ENDLESS, stays=True)
        assert (await scripts.admit(facts)).outcome == "OK"

    try:
        for _ in range(0, count, 10):
            await asyncio.gather(*(admit() for _ in range(10)))
    finally:
        await client.aclose()
        await client.connection_pool.disconnect()


def never_aged(server: redis.Redis) -> None:
    """Nothing goes first for its age."""
    server.hset(K.lanes, mapping={f"{lane}.age_limit_ms": NEVER_MS for lane in Lane})


def started(server: redis.Redis) -> list[tuple[int, int, str]]:
    """When each was queued and started (Unix ms), and its lane, in the order of their starts."""
    rows = []
    for key in server.scan_iter(match=K.record("*"), count=1_000):
        queued, began, lane = server.hmget(key, "queued_at_ms", "started_at_ms", "lane")  # type: ignore[misc]
        if began:
            rows.append((int(began), int(queued), lane.decode()))
    return [(queued, began, lane) for began, queued, lane in sorted(rows)]


@pytest.mark.drill(30)
async def test_clients_that_come_back_when_they_are_told_are_all_served(stack: Stack, figures: Figures) -> None:
    """Ten times what runs and waits; everybody uses the official SDK with the retries that it has by itself."""
    stack.worker("--max-active", str(SLOTS), "--", "--itl-ms", "10")
    api = stack.api("--queue-max", "12")
    await ask(Ask([api.url], 2))
    before_bytes = api.rss_bytes
    client = openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none")
    async with client:
        raw = asyncio.create_task(ask_many(10 * (SLOTS + 12), Ask([api.url], TOKENS)))

        async def one(number: int) -> str:
            answer = await client.chat.completions.create(
                model="sim",
                messages=[{"role": "user", "content": f"count {number}"}],
                max_tokens=TOKENS,
                user=f"person{number}",
            )
            return answer.choices[0].message.content or ""

        answers = await asyncio.gather(*(one(number) for number in range(size(24, 60))))
        seen = await raw
    refused = [reply for reply in seen if reply.status == 429]
    verdict = await check_history(stack.redis_url, [reply for reply in seen if reply.status != 429], TOKENS)
    assert refused, "the burst did not fill the queue"
    assert verdict.whole + len(refused) == len(seen)
    assert all(len(answer.split()) == TOKENS for answer in answers)
    figures |= {"refused": len(refused), "by the SDK, served": len(answers)}
    figures["replica grew by MB"] = (api.rss_bytes - before_bytes) / 1e6
    with control(stack) as server:
        await eventually(lambda: not leftovers(server, K), 30, "nothing is left")


@pytest.mark.drill(31)
async def test_interactive_requests_pass_a_batch_backlog_and_batch_goes_on(stack: Stack, figures: Figures) -> None:
    stack.worker("--max-active", str(SLOTS), "--", "--itl-ms", "10")
    api = stack.api()
    with control(stack) as server:
        never_aged(server)
        await backlog(stack, Lane.BATCH, size(1_000, 50_000))
        waiting = server.xlen(K.queue(Lane.BATCH))
        for _ in range(size(20, 150)):
            seen = await ask(Ask([api.url], TOKENS, headers={"X-Priority-Lane": "interactive"}))
            assert seen.whole, seen
        assert server.xlen(K.queue(Lane.BATCH)), "the backlog was too short to matter"
        starts = started(server)
    waits_ms, passed = [], []
    for queued_ms, began_ms, lane in starts:
        if lane == Lane.INTERACTIVE:
            waits_ms.append(began_ms - queued_ms)
            passed.append(sum(queued_ms < other < began_ms for _, other, of in starts if of == Lane.BATCH))
    share = sum(lane == Lane.BATCH for *_, lane in starts) / len(starts)
    figures |= {"batch waiting": waiting, "batch of starts": share, "longest interactive wait ms": max(waits_ms)}
    figures["most batch starts before one"] = max(passed)
    assert share >= 1 / 12
    assert max(passed) <= SLOTS + BITE


@pytest.mark.drill(32)
async def test_more_interactive_requests_than_there_is_room_for_leave_the_others_their_part(
    stack: Stack, figures: Figures
) -> None:
    stack.worker("--max-active", str(SLOTS), "--", "--itl-ms", "10")
    count = size(240, 2_400)
    with control(stack) as server:
        never_aged(server)
        for lane in Lane:
            server.hset(K.lanes, f"{lane}.paused", 1)
            await backlog(stack, lane, count)
        server.hdel(K.lanes, *(f"{lane}.paused" for lane in Lane))
        await eventually(lambda: server.xlen(K.queue(Lane.INTERACTIVE)) < count / 3, 120, "most has started")
        picks = Counter(lane for *_, lane in started(server)[: count // 2])
        shares = {lane: picks[lane] / (count // 2) for lane in Lane}
        server.hset(K.lanes, mapping={f"{lane}.age_limit_ms": 0 for lane in Lane})
        before = len(started(server))
        await eventually(lambda: len(started(server)) >= before + count / 2, 120, "more has started")
        aged = sum(int(server.hget(K.sched, f"aged:{lane}") or 0) for lane in Lane)  # type: ignore[arg-type, misc]
        of = len(started(server)) - before
    figures |= {f"{lane} of starts": share for lane, share in shares.items()} | {"for age": aged / of}
    for lane, weight in ((Lane.INTERACTIVE, 8), (Lane.STANDARD, 3), (Lane.BATCH, 1)):
        assert shares[lane] == pytest.approx(weight / 12, abs=2 * BITE / (count // 2))
    assert 0 < aged <= of / 4 + SLOTS + BITE
