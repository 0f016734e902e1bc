"""Lanes in the hands of an operator, with real replicas and workers: over HTTP, by command, under load."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import redis

from shared.keys import Keys
from tests.support.client import Seen, stream_chat
from tests.support.history import check_history, leftovers
from tests.support.load import Ask, ask, start_many
from tests.support.stack import Stack, eventually, running_stack

LANES = "/v1/admin/lanes"
BATCH = {"X-Priority-Lane": "batch"}
K = Keys("sim")
RESUMED_S = 10
"""An idle worker asks once a second; the rest is for a busy machine."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        for _ in range(2):
            started.worker("--max-active", "2", "--", "--ttft-ms", "5", "--itl-ms", "5")
        for _ in range(2):
            flags = ("--heartbeat-s", "0.1", "--header-hold-s", "0.1", "--queue-max", "1000")
            started.api(*flags, env={"PENSTOCK_ADMIN_KEYS": "operator,other"})
        yield started


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """An operator. Every lane is as it was started with, before and after."""
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=30, headers={"X-API-Key": "operator"}) as client:
        await reset(client)
        yield client
        await reset(client)


async def reset(client: httpx.AsyncClient) -> None:
    for lane in ("interactive", "standard", "batch"):
        assert (await client.post(f"{LANES}/{lane}/resume")).status_code == 200
    unset = dict.fromkeys(("weight", "age_limit_ms", "max_requests", "max_bytes", "max_tokens"))
    assert (await client.patch(f"{LANES}/batch", json=unset)).status_code == 200


@pytest.fixture
def server(stack: Stack) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(stack.redis_url) as client:
        yield client


async def lane_of(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    found = (await client.get(LANES)).json()["data"]
    (lane,) = [lane for lane in found if lane["lane"] == name]
    return dict(lane)


async def until(client: httpx.AsyncClient, name: str, **least: int) -> None:
    """Returns once a lane's figures are at least so high."""
    deadline_s = time.monotonic() + 30
    while True:
        lane = await lane_of(client, name)
        if all(lane[fact] >= number for fact, number in least.items()):
            return
        assert time.monotonic() < deadline_s, f"{least} did not come: {lane}"
        await asyncio.sleep(0.05)


def command(stack: Stack, *argv: str) -> subprocess.CompletedProcess[str]:
    """`penstock lanes …`, as a process."""
    environment = {**os.environ, "PENSTOCK_REDIS_URL": stack.redis_url}
    line = [sys.executable, "-m", "cli", "lanes", *argv]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=30, check=False)


async def test_only_an_admin_key_opens_the_lanes(stack: Stack) -> None:
    closed = await asyncio.to_thread(stack.api)
    ways = [("GET", ""), ("PATCH", "/batch"), *(("POST", f"/batch/{act}") for act in ("pause", "purge"))]
    async with httpx.AsyncClient() as client:
        for method, path in ways:
            shut = await client.request(method, f"{closed.url}{LANES}{path}", json={"weight": 5})
            assert (shut.status_code, shut.json()["error"]["code"]) == (403, "admin_closed")
            for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
                url = f"{stack.apis[0].url}{LANES}{path}"
                refused = await client.request(method, url, json={"weight": 5}, headers=headers)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        opened = await client.get(f"{stack.apis[0].url}{LANES}", headers={"Authorization": "Bearer other"})
    assert opened.status_code == 200
    batch = next(lane for lane in opened.json()["data"] if lane["lane"] == "batch")
    assert (batch["paused"], batch["settings"]["weight"]["source"]) == (False, "default")


async def test_a_paused_lane_keeps_its_clients_waiting_and_serves_them_soon_after_its_end(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    assert (await http.post(f"{LANES}/standard/pause")).json()["data"][0]["paused"] is True
    lines: list[str] = []

    async def stream() -> None:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "stream": True}
        url = f"{stack.apis[1].url}/v1/chat/completions"
        async with httpx.AsyncClient(timeout=30) as client, client.stream("POST", url, json=body) as answer:
            assert answer.status_code == 200
            lines.extend([line async for line in answer.aiter_lines()])

    waiting = asyncio.create_task(stream())
    await eventually(lambda: stack.apis[1].metric("penstock_streams_open") == 1, 30, "it waits")
    other = await ask(Ask([stack.apis[0].url], 5, headers=BATCH))
    assert other.whole, "another lane is served meanwhile"
    lane = await lane_of(http, "standard")
    assert lane["depth"] == 1
    assert lane["work_tokens"] > 0
    await until(http, "standard", oldest_age_ms=1_500)  # longer than a worker sleeps
    assert not waiting.done()
    assert (await http.post(f"{LANES}/standard/resume")).status_code == 200
    began_s = time.monotonic()
    await waiting
    assert time.monotonic() - began_s < RESUMED_S
    assert sum(line.startswith(":") for line in lines) >= 3, lines
    assert lines.count("data: [DONE]") == 1


async def test_what_runs_goes_on_when_its_lane_is_paused(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis
) -> None:
    seen = Seen()
    running = asyncio.create_task(ask(Ask([stack.apis[0].url], 1_000), seen))
    await eventually(lambda: seen.text, 30, "it runs")
    await http.post(f"{LANES}/standard/pause")
    assert server.hget(K.record(seen.rid), "state") == b"running"
    await running
    assert seen.whole
    seen.check(1_000)


async def test_a_draining_lane_runs_out_and_takes_nothing_new(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis
) -> None:
    await http.post(f"{LANES}/batch/pause")
    tasks = start_many(12, Ask([api.url for api in stack.apis], 40, headers=BATCH))
    await eventually(lambda: server.xlen(K.queue("batch")) == 12, 30, "they wait")
    await http.post(f"{LANES}/batch/resume")
    drained = await http.post(f"{LANES}/batch/drain")
    assert drained.json()["data"][0]["draining"] is True
    refused = await ask(Ask([stack.apis[1].url], 5, headers=BATCH))
    assert (refused.status, refused.errors[0]["code"]) == (503, "lane_draining")
    assert len(refused.errors) == 1
    assert (await ask(Ask([stack.apis[1].url], 5))).whole, "other lanes are open"
    assert all(seen.whole for seen in await asyncio.gather(*tasks))
    await http.post(f"{LANES}/batch/resume")
    assert (await ask(Ask([stack.apis[1].url], 5, headers=BATCH))).whole


async def test_a_purge_under_load_gives_every_client_one_error_or_its_whole_answer(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis
) -> None:
    def served() -> float:
        return sum(worker.metric("penstock_attempts_total") for worker in stack.workers)

    urls, before = [api.url for api in stack.apis], served()
    tasks = start_many(300, Ask(urls, 20, headers=BATCH))
    tasks += start_many(100, Ask(urls, 20, headers=BATCH, stream=False))
    others = start_many(20, Ask(urls, 20))
    await eventually(lambda: server.xlen(K.queue("batch")) > 200, 30, "they wait")
    await eventually(lambda: served() >= before + 10, 30, "they are served")
    purged = (await http.post(f"{LANES}/batch/purge")).json()
    seen, spared = list(await asyncio.gather(*tasks)), list(await asyncio.gather(*others))
    verdict = await check_history(stack.redis_url, [*seen, *spared], 20)
    assert all(one.whole for one in spared), "another lane was purged, too"
    assert purged["purged"] == purged["data"][0]["purged"] == verdict.errors["cancelled"]
    assert verdict.errors.keys() == {"cancelled"}
    assert purged["purged"] > 100
    assert verdict.whole + purged["purged"] == 420
    messages = {str(error["message"]) for one in seen for error in one.errors}
    assert messages == {"An operator removed the request from the queue. Send it again only if you are told to."}
    assert {one.status for one in seen if one.errors} <= {200, 499}


async def test_a_purge_of_one_tenant_or_of_what_is_old_leaves_the_others(
    stack: Stack, http: httpx.AsyncClient, server: redis.Redis
) -> None:
    await http.post(f"{LANES}/standard/pause")
    tasks = start_many(4, Ask([stack.apis[0].url], 5))
    await eventually(lambda: server.xlen(K.queue("standard")) == 4, 30, "they wait")
    for params in ({"tenant": "somebody"}, {"older_than_s": 3600}):
        assert (await http.post(f"{LANES}/standard/purge", params=params)).json()["purged"] == 0
    params = {"tenant": "anonymous", "older_than_s": 0, "model": "sim"}
    assert (await http.post(f"{LANES}/standard/purge", params=params)).json()["purged"] == 4
    assert [len(seen.errors) for seen in await asyncio.gather(*tasks)] == [1] * 4
    assert not leftovers(server, K)


async def test_a_bound_and_a_weight_are_in_force_without_a_restart(stack: Stack, http: httpx.AsyncClient) -> None:
    await http.post(f"{LANES}/batch/pause")
    changed = await http.patch(f"{LANES}/batch", json={"max_requests": 1, "weight": 2.5})
    assert changed.json()["data"][0]["settings"]["weight"] == {"value": 2.5, "source": "live"}
    first = asyncio.create_task(ask(Ask([stack.apis[0].url], 5, headers=BATCH)))
    await until(http, "batch", depth=1)
    second = await ask(Ask([stack.apis[1].url], 5, headers=BATCH))
    assert (second.status, second.errors[0]["code"]) == (429, "queue_full")
    settings = (await http.patch(f"{LANES}/batch", json={"max_requests": None})).json()["data"][0]["settings"]
    assert settings["max_requests"] == {"value": 1000, "source": "replica"}
    third = asyncio.create_task(ask(Ask([stack.apis[1].url], 5, headers=BATCH)))
    await until(http, "batch", depth=2)
    await http.post(f"{LANES}/batch/resume")
    assert all(seen.whole for seen in await asyncio.gather(first, third))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/quarantine/pause", None, 400, "quarantine is no lane"),
        ("POST", "/bulk/purge", None, 400, "There is no lane 'bulk'"),
        ("POST", "/batch/pause?model=nobody", None, 404, "The model `nobody` does not exist"),
        ("POST", "/batch/purge?older_than_s=-1", None, 400, "older_than_s"),
        ("PATCH", "/batch", {"weight": 0}, 400, "weight must be a number from 0.001 to 1000"),
        ("PATCH", "/batch", {"weight": True}, 400, "weight must be a number"),
        ("PATCH", "/batch", {"paused": True}, 400, "There is no setting 'paused'"),
        ("PATCH", "/batch", {}, 400, "No setting is named"),
        ("PATCH", "/batch", [5], 400, "JSON object"),
    ],
)
async def test_what_cannot_be_done_is_said_and_changes_nothing(
    http: httpx.AsyncClient, method: str, path: str, body: object, status: int, said: str
) -> None:
    before = await lane_of(http, "batch")
    refused = await http.request(method, LANES + path, json=body)
    assert refused.status_code == status
    assert said in refused.json()["error"]["message"]
    assert await lane_of(http, "batch") == before


async def test_the_command_does_the_same(stack: Stack, http: httpx.AsyncClient, server: redis.Redis) -> None:
    paused = await asyncio.to_thread(command, stack, "pause", "standard", "--model", "sim")
    assert (paused.returncode, paused.stdout) == (0, "sim: standard: paused\n")
    tasks = [asyncio.create_task(_stream(stack)) for _ in range(3)]
    await eventually(lambda: server.xlen(K.queue("standard")) == 3, 30, "they wait")
    shown = await asyncio.to_thread(command, stack, "--json")
    standard = next(lane for lane in json.loads(shown.stdout) if lane["lane"] == "standard")
    assert (standard["paused"], standard["depth"]) == (True, 3)
    purged = await asyncio.to_thread(command, stack, "purge", "standard")
    assert purged.stdout == "sim: standard: 3 purged\n"
    assert [[error["code"] for error in (await task).errors] for task in tasks] == [["cancelled"]] * 3
    wrong = await asyncio.to_thread(command, stack, "set", "batch", "weight=none")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "penstock lanes: weight must be a number" in wrong.stderr
    assert (await lane_of(http, "standard"))["depth"] == 0


async def _stream(stack: Stack) -> Seen:
    async with httpx.AsyncClient(timeout=30) as client:
        return await stream_chat(client, stack.apis[0].url, 5)
