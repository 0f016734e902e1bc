"""What no client should send gets a clean refusal and harms nobody: `tests/hostile` on real processes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence

import httpx
import pytest
import redis

from shared.keys import Keys
from tests.hostile.for_engines import BORNE, ENGINE, forms
from tests.hostile.heads import KEYED
from tests.hostile.inputs import DOOR
from tests.hostile.rows import CLAUDE, FLAGS, Hostile
from tests.hostile.sending import code_of, send, talk
from tests.hostile.sockets import RAW
from tests.support.stack import Api, Stack, eventually, running_stack
from worker.engines.sim_answers import answer_text

SIM = ("--model", "sim-model", "--", "--ttft-ms", "1", "--itl-ms", "1", "--slots", "64", "--max-model-len", "2000")
MOST_GROWN_BYTES = 100 * 2**20
ADMIN = {"PENSTOCK_API_KEYS": "alpha", "PENSTOCK_ADMIN_KEYS": "boss"}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A worker and two replicas: one without keys, one with keys and admin routes. Both count tokens exactly by now."""
    with running_stack() as started:
        started.worker(*SIM)
        started.api(*FLAGS)
        started.api(*FLAGS, ready=False, env=ADMIN)
        for api in started.apis:
            asyncio.run(check_unharmed(api))
        yield started


async def check_unharmed(api: Api) -> None:
    """An ordinary request gets its whole answer."""
    async with httpx.AsyncClient(base_url=api.url, timeout=30, headers={"X-API-Key": "alpha"}) as client:
        answer = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 9})
        rid = answer.headers["x-penstock-request"]
        assert answer.json()["choices"][0]["text"] == answer_text(rid, 9)
        assert (await client.delete(f"/v1/requests/{rid}")).status_code == 200


def left_behind(stack: Stack) -> set[bytes]:
    """What requests leave in Redis: records, bodies, logs, keys, and what waits."""
    base = Keys("sim-model").base
    with redis.Redis.from_url(stack.redis_url) as server:
        kept = {
            key for kind in ("r", "b", "o", "idem", "rs", "ro", "fair", "led") for key in server.keys(f"*:{kind}:*")
        }
        waiting = {key for key in server.keys(f"{base}q:*") if server.xlen(key)}
        return {*kept, *waiting, *server.keys(f"{base}ten")}


def test_the_list_is_long_and_no_input_is_in_it_twice() -> None:
    plain = {(row.method, row.target, row.content, row.headers) for row in (*DOOR, *KEYED)}
    engines = {(path, json.dumps(body)) for path, body in ENGINE}
    assert (len(plain), len(engines)) == (len(DOOR) + len(KEYED), len(ENGINE))
    assert len({row.sent for row in RAW}) == len({row.name for row in RAW}) == len(RAW)
    assert len(plain) > 400
    assert min(len(engines), len(RAW)) > 60


@pytest.mark.parametrize(("replica", "rows"), [(0, DOOR), (1, KEYED)], ids=["door", "keyed"])
async def test_a_refusal_has_its_envelope_and_one_code_and_leaves_nothing(
    stack: Stack, replica: int, rows: Sequence[Hostile]
) -> None:
    api = stack.apis[replica]
    before, rss_bytes = left_behind(stack), api.rss_bytes
    counted = {row.code: api.metric("penstock_requests_rejected_total", code=row.code) for row in rows}
    logged = len(api.log.read_text())
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
        for row in rows:
            answer = await send(client, row)
            assert (answer.status_code, code_of(answer.content)) == (row.status, row.code), (str(row), answer.text)
            assert ("type" in answer.json()) is row.target.startswith(CLAUDE), str(row)
            assert answer.headers["content-type"] == "application/json", str(row)
            assert answer.headers["x-request-id"], str(row)
            assert row.status != 405 or row.method not in answer.headers["allow"].split(", "), str(row)
    assert left_behind(stack) == before
    assert api.rss_bytes - rss_bytes < MOST_GROWN_BYTES
    log = api.log.read_text()[logged:]
    for code, count in Counter(row.code for row in rows).items():
        assert api.metric("penstock_requests_rejected_total", code=code) - counted[code] == count, code
        assert len([line for line in log.splitlines() if f" {code}: " in line]) == count, code
    assert "Traceback" not in log
    assert not [line for line in log.splitlines() if line.startswith("forged")]
    await check_unharmed(api)


async def test_what_is_no_http_is_refused_or_cut_and_nothing_is_smuggled_in(stack: Stack) -> None:
    api = stack.apis[0]
    before, rss_bytes, logged = left_behind(stack), api.rss_bytes, len(api.log.read_text())
    for row in RAW:
        answers = await talk(api.url, row)
        first = answers[0][0] if answers else None
        assert first in row.statuses, (row.name, answers)
        assert not [status for status, _, _ in answers if status in range(200, 400)], (row.name, answers)
        for status, headers, body in answers:
            assert status == 100 or (code_of(body) and headers["x-request-id"]), (row.name, body)
    assert left_behind(stack) == before
    assert api.rss_bytes - rss_bytes < MOST_GROWN_BYTES
    assert "Traceback" not in api.log.read_text()[logged:]
    await check_unharmed(api)


async def test_what_reaches_an_engine_is_never_a_5xx_and_the_worker_goes_on(stack: Stack) -> None:
    """The simulated engine looks at types and ranges only, so it takes some of what vLLM refuses."""
    api, worker = stack.apis[0], stack.workers[0]
    rss_bytes = worker.rss_bytes
    refused = 0
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
        for path, body in (*ENGINE, *BORNE):
            for asked in forms(path, body):
                answer = await client.post(path, json={"model": "sim-model", **asked})
                assert answer.status_code == 200 or (400 <= answer.status_code < 500), (path, asked, answer.text)
                assert answer.status_code == 200 or code_of(answer.content), (path, asked, answer.text)
                refused += answer.status_code != 200
    assert refused > 400
    await eventually(lambda: not worker.metric("penstock_attempts_running"), 30, "nothing runs")
    assert worker.rss_bytes - rss_bytes < MOST_GROWN_BYTES
    assert "Traceback" not in worker.log.read_text() + api.log.read_text()
    await check_unharmed(api)
