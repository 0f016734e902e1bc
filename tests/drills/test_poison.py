"""Drills 10 and 11: requests that kill their workers, and requests that nobody can read."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.drills.acting import KEYS as K
from tests.drills.acting import control, worker_metric
from tests.drills.catalogue import size, within
from tests.drills.conftest import Figures
from tests.support.history import check_history
from tests.support.load import Ask, ask, start_many
from tests.support.stack import Stack, eventually
from tests.support.supervisor import supervised

ADMIN = {"X-API-Key": "operator"}


@pytest.mark.drill(10)
async def test_poison_is_set_aside_after_three_kills_and_no_innocent_is_lost(stack: Stack, figures: Figures) -> None:
    innocents = size(15, 63)
    flags = ("--", "--faults", "--ttft-ms", str(size(500, 1500)), "--itl-ms", "5")
    stack.worker(*flags)
    stack.worker(*flags)
    api = stack.api(env={"PENSTOCK_ADMIN_KEYS": "operator"})
    began_s = time.monotonic()
    async with supervised(stack, restart=True) as watch:
        tasks = start_many(innocents, Ask([api.url], 10, patience_s=110))
        poison = asyncio.create_task(ask(Ask([api.url], 10, content="fault:crash", patience_s=110)))
        end = await poison
        poisoned_s = time.monotonic() - began_s
        seen = await asyncio.gather(*tasks)
        verdict = await check_history(stack.redis_url, seen, 10)
        figures |= {"innocents whole": verdict.whole, "worker restarts": watch.restarted}
        figures |= {"to dead letter s": poisoned_s, "all done s": time.monotonic() - began_s}
        assert [error["code"] for error in end.errors] == ["too_many_attempts"]
        assert verdict.whole == innocents
        assert watch.restarted == 3
        async with httpx.AsyncClient(base_url=api.url, headers=ADMIN) as client:
            (letter,) = (await client.get("/v1/admin/dlq")).json()["data"]
            shown = (await client.get(f"/v1/admin/dlq/{end.rid}")).json()
    assert (letter["request"], letter["kills"], letter["reason"]) == (end.rid, 3, "too_many_attempts")
    assert [event["what"] for event in letter["history"]] == ["worker_died"] * 3
    assert len({event["worker"] for event in letter["history"]}) == 3
    assert "fault:crash" in shown["body"]


@pytest.mark.drill(11)
async def test_a_request_that_cannot_be_read_is_a_dead_letter_at_once_and_the_worker_lives(
    stack: Stack, figures: Figures
) -> None:
    worker = stack.worker("--max-active", "1", "--", "--itl-ms", "100")
    api = stack.api(env={"PENSTOCK_ADMIN_KEYS": "operator"})
    ahead = asyncio.create_task(ask(Ask([api.url], 80)))
    await eventually(lambda: worker.metric("penstock_attempts_running") == 1, 30, "the slot is taken")
    spoiled = asyncio.create_task(ask(Ask([api.url], 20)))
    with control(stack) as server:
        await eventually(lambda: len(list(server.scan_iter(match=K.body("*")))) == 2, 30, "it waits")
        (waiting,) = [fields[b"rid"].decode() for _, fields in server.xrange(K.queue("standard"))]
        server.set(K.body(waiting), b"\xc1 not a request")
    seen = [await ahead, await spoiled]
    told_s = seen[1].ended_s - seen[0].ended_s
    figures |= {"slot free to error s": told_s}
    assert [error["code"] for error in seen[1].errors] == ["engine_error"]
    assert told_s < within(1)
    assert (await ask(Ask([api.url], 3))).whole
    assert worker_metric(stack, "penstock_attempts_running") == 0
    async with httpx.AsyncClient(base_url=api.url, headers=ADMIN) as client:
        (letter,) = (await client.get("/v1/admin/dlq")).json()["data"]
        redriven = await client.post(f"/v1/admin/dlq/{letter['id']}/redrive")
        again = await client.post(f"/v1/admin/dlq/{letter['request']}/redrive")
        dropped = await client.delete(f"/v1/admin/dlq/{letter['id']}")
        gone = await client.get(f"/v1/admin/dlq/{letter['id']}")
    assert (letter["request"], letter["reason"]) == (waiting, "undecodable")
    assert redriven.json()["new"]
    assert again.json() == {**redriven.json(), "new": False}
    assert dropped.json() == {"dropped": 1}
    assert gone.status_code == 404
    await check_history(stack.redis_url, seen[:1], 80)


@pytest.mark.drill(11)
async def test_the_admin_routes_are_closed_without_a_key(stack: Stack) -> None:
    closed = stack.api(ready=False)
    locked = stack.api(ready=False, env={"PENSTOCK_ADMIN_KEYS": "operator,other"})
    async with httpx.AsyncClient() as client:
        shut = await client.get(f"{closed.url}/v1/admin/dlq")
        refused = [await client.get(f"{locked.url}/v1/admin/dlq", headers=key) for key in ({}, {"X-API-Key": "x"})]
        opened = await client.get(f"{locked.url}/v1/admin/dlq", headers={"Authorization": "Bearer other"})
    assert shut.status_code == 403
    assert "PENSTOCK_ADMIN_KEYS" in shut.json()["error"]["message"]
    assert [answer.status_code for answer in refused] == [401, 401]
    assert opened.json() == {"object": "list", "data": []}
