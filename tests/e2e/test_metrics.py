"""What the processes of a running stack count, seen from outside; and that their expositions are sound."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support.stack import Api, Stack, eventually, get, running_stack

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
ROUTE = "/v1/chat/completions"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        started.worker("--pool", "gpus", "--", "--ttft-ms", "20", "--itl-ms", "10")
        started.api("--disconnect-grace-s", "0", env={"GATEWAY_API_KEYS": "alpha", "PENSTOCK_ADMIN_KEYS": "root"})
        yield started


@pytest.fixture
def api(stack: Stack) -> Api:
    return stack.apis[0]


@pytest.fixture
async def http(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30, base_url=api.url, headers={"X-API-Key": "alpha"}) as client:
        yield client


def key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


async def test_the_time_of_a_request_is_that_of_its_whole_stream(api: Api, http: httpx.AsyncClient) -> None:
    name = "penstock_http_request_duration_seconds"
    before = api.metric(f"{name}_count", route=ROUTE), api.metric(f"{name}_sum", route=ROUTE)
    answer = await http.post(ROUTE, json={**CHAT, "stream": True})
    assert answer.status_code == 200
    await eventually(lambda: api.metric(f"{name}_count", route=ROUTE) == before[0] + 1, 30, "it was counted")
    assert api.metric(f"{name}_sum", route=ROUTE) - before[1] > 19 * 0.01
    await http.get("/nowhere")
    assert api.metric(f"{name}_count", route="unmatched") >= 1


async def test_methods_that_clients_make_up_are_one_label(api: Api) -> None:
    for method in ("PROPFIND", "PURGE"):
        async with httpx.AsyncClient() as client:
            await client.request(method, f"{api.url}/livez")
    assert api.metric("penstock_http_requests_total", method="other") == 2


async def test_keys_that_are_missing_or_wrong_are_counted_by_kind(api: Api) -> None:
    async with httpx.AsyncClient(base_url=api.url) as client:
        assert (await client.post(ROUTE, json=CHAT)).status_code == 401
        for _ in range(2):
            assert (await client.post(ROUTE, json=CHAT, headers={"X-API-Key": "beta"})).status_code == 401
        assert (await client.get("/v1/admin/dlq", headers={"X-API-Key": "alpha"})).status_code == 401
    kinds = {
        kind: api.metric("penstock_auth_failures_total", kind=kind) for kind in ("missing", "invalid", "not_admin")
    }
    assert kinds == {"missing": 1, "invalid": 2, "not_admin": 1}


async def test_what_became_of_requests_with_a_key_is_counted(api: Api, http: httpx.AsyncClient) -> None:
    keyed, body = key(), {**CHAT, "max_tokens": 400}
    first, second = await asyncio.gather(*(http.post(ROUTE, json=body, headers=keyed) for _ in range(2)))
    assert first.content == second.content
    await http.post(ROUTE, json=body, headers=keyed)
    assert (await http.post(ROUTE, json={**CHAT, "max_tokens": 3}, headers=keyed)).status_code == 422
    outcomes = ("created", "attached", "replayed", "idempotency_key_mismatch")
    assert [api.metric("penstock_idempotency_total", outcome=each) for each in outcomes] == [1, 1, 1, 1]


async def test_streams_that_are_gone_on_with_are_counted(api: Api, http: httpx.AsyncClient) -> None:
    answer = await http.post(ROUTE, json={**CHAT, "stream": True})
    ids = [line[4:] for line in answer.text.splitlines() if line.startswith("id: ")]
    url = f"/v1/requests/{answer.headers['x-penstock-request']}/events"
    await http.get(url)
    assert api.metric("penstock_streams_resumed_total") == 0, "from the beginning is no resumption"
    assert (await http.get(url, headers={"Last-Event-ID": ids[4]})).status_code == 200
    assert api.metric("penstock_streams_resumed_total", via="events") == 1


async def test_a_stream_that_is_gone_on_with_counts_under_its_model_and_has_no_first_byte(
    api: Api, http: httpx.AsyncClient
) -> None:
    def counted(name: str, **labels: str) -> float:
        return api.metric(f"penstock_{name}", **labels)

    answer = await http.post(ROUTE, json={**CHAT, "stream": True})
    model = json.loads(next(line for line in answer.text.splitlines() if line.startswith("data: "))[6:])["model"]
    first, ended = "time_to_first_token_seconds_count", "requests_finished_total"
    before = counted(first), counted(ended, model=model)
    await http.get(f"/v1/requests/{answer.headers['x-penstock-request']}/events")
    await eventually(lambda: counted(ended, model=model) == before[1] + 1, 5, "it was counted")
    assert counted(first) == before[0]
    assert counted(ended) == counted(ended, model=model)
    assert counted("request_duration_seconds_count") == counted("request_duration_seconds_count", model=model)


async def test_clients_that_hang_up_are_counted_by_what_they_had(api: Api, http: httpx.AsyncClient) -> None:
    async with http.stream("POST", ROUTE, json={**CHAT, "max_tokens": 2000, "stream": True}) as answer:
        async for _ in answer.aiter_lines():
            break
    await eventually(
        lambda: api.metric("penstock_client_disconnects_total", phase="reading") == 1, 30, "the hang-up was counted"
    )


async def test_the_tenants_and_the_server_are_told(api: Api, http: httpx.AsyncClient) -> None:
    await http.post(ROUTE, json=CHAT)
    await eventually(lambda: api.metric("penstock_tenant_recent_tokens", kind="completion") >= 20, 30, "usage was read")
    assert api.metric("penstock_redis_memory_used_bytes") > 0
    assert api.metric("penstock_redis_ping_seconds") > 0
    assert b'tenant="key-' in get(f"{api.url}/metrics")[1]
    assert b"alpha" not in get(f"{api.url}/metrics")[1]


async def test_promtool_has_nothing_to_say_about_any_exposition(stack: Stack, api: Api) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("this machine has no promtool (Debian: apt install prometheus)")
    for url in (api.url, f"http://127.0.0.1:{stack.workers[0].ops_port}"):
        _, text = get(f"{url}/metrics")
        assert b"penstock_build_info" in text
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


async def test_arrivals_are_counted_under_the_name_that_the_queues_have(stack: Stack, api: Api) -> None:
    stack.worker("--model", "Some/Model")
    async with httpx.AsyncClient(timeout=30, base_url=api.url, headers={"X-API-Key": "alpha"}) as client:
        ready = {"model": "Some-Model", "state": "ready"}
        await eventually(lambda: api.metric("penstock_pool_workers", **ready) == 1, 20, "the replica has seen it")
        answer = await client.post(ROUTE, json={**CHAT, "model": "Some/Model"})
    assert answer.status_code == 200
    assert api.metric("penstock_requests_admitted_total", model="Some-Model") == 1
    assert api.metric("penstock_requests_finished_total", model="Some/Model") == 1
