"""`Prefer: respond-async` and the list of requests, by SDKs and plain HTTP, on real processes with the sim engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
import redis
from openai import AsyncOpenAI

from shared.keys import Keys
from tests.support.stack import Stack, eventually, running_stack
from worker.engines.sim_answers import answer_text

SAY: Any = [{"role": "user", "content": "count"}]
CHAT: dict[str, Any] = {"model": "sim", "messages": SAY, "max_tokens": 20}
SLOW: dict[str, Any] = {**CHAT, "model": "slow"}
LATER = {"Prefer": "respond-async"}
KEYED = {"GATEWAY_API_KEYS": "alpha,beta,gamma"}
TEXTS = ["a queue", "a gate"]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Two replicas with keys; a worker, and one of the model `slow`, which never begins and runs two at once."""
    with running_stack() as started:
        started.worker("--max-active", "64", "--", "--ttft-ms", "20", "--itl-ms", "10")
        started.worker("--model", "slow", "--max-active", "2", "--", "--ttft-ms", "50000")
        for _ in range(2):
            started.api("--disconnect-grace-s", "0.3", env=KEYED)
        yield started


@pytest.fixture
async def here(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(stack, 0) as client:
        yield client


@pytest.fixture
async def there(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(stack, 1) as client:
        yield client


def client_of(stack: Stack, replica: int, key: str = "alpha") -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=stack.apis[replica].url, headers={"X-API-Key": key}, timeout=30)


async def polled(client: httpx.AsyncClient, location: str) -> dict[str, Any]:
    """The request once it has ended."""
    end_s = time.monotonic() + 20
    while "Retry-After" in (answer := await client.get(location)).headers:
        assert answer.json()["response"] is None
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)
    found: dict[str, Any] = answer.json()
    return found


async def test_a_chat_is_accepted_at_once_and_any_replica_has_its_answer(
    here: httpx.AsyncClient, there: httpx.AsyncClient
) -> None:
    made = await here.post("/v1/chat/completions", json=CHAT, headers=LATER)
    rid = made.headers["x-penstock-request"]
    assert (made.status_code, made.headers["preference-applied"]) == (202, "respond-async")
    assert (made.headers["location"], made.headers["x-penstock-lane"]) == (f"/v1/requests/{rid}", "standard")
    assert int(made.headers["retry-after"]) >= 1
    assert made.json()["id"] == rid
    assert made.json()["state"] in {"queued", "running"}
    found = await polled(there, made.headers["location"])
    assert (found["state"], found["endpoint"], found["model"]) == ("succeeded", "/v1/chat/completions", "sim")
    answer = found["response"]
    assert (answer["status_code"], answer["content_type"]) == (200, "application/json")
    assert answer["body"]["choices"][0]["message"]["content"] == answer_text(rid, 20)
    assert found["usage"]["completion_tokens"] == answer["body"]["usage"]["completion_tokens"] == 20


async def test_it_goes_on_without_a_follower_far_longer_than_a_client_that_has_gone_is_waited_for(
    here: httpx.AsyncClient, there: httpx.AsyncClient
) -> None:
    made = await here.post("/v1/chat/completions", json={**CHAT, "max_tokens": 150}, headers=LATER)  # 1.5 s
    found = await polled(there, made.headers["location"])
    assert (found["state"], found["usage"]["completion_tokens"]) == ("succeeded", 150)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "sim", "prompt": "say", "max_tokens": 12}),
        ("/generate", {"model": "sim", "prompt": "say", "max_tokens": 12}),
        ("/v1/messages", {"model": "sim", "messages": SAY, "max_tokens": 12}),
        ("/v1/messages/count_tokens", {"model": "sim", "messages": SAY}),
        ("/v1/embeddings", {"model": "sim", "input": TEXTS}),
        ("/v1/score", {"model": "sim", "queries": "a queue", "documents": TEXTS}),
        ("/v1/rerank", {"model": "sim", "query": "a queue", "documents": TEXTS}),
        ("/classify", {"model": "sim", "input": TEXTS}),
        ("/pooling", {"model": "sim", "input": TEXTS}),
        ("/tokenize", {"model": "sim", "prompt": "a queue"}),
        ("/detokenize", {"model": "sim", "tokens": [17]}),
    ],
)
async def test_every_route_answers_later_as_it_would_have_at_once(
    here: httpx.AsyncClient, there: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    made = await here.post(path, json=body, headers={**LATER, "X-Priority-Lane": "batch"})
    assert (made.status_code, made.json()["lane"]) == (202, "batch")
    found = await polled(there, made.headers["location"])
    at_once = await here.post(path, json=body)
    assert path.endswith(found["endpoint"]), "of its several names one"
    assert found["response"]["status_code"] == 200
    answer = found["response"]["body"]
    assert set(answer) == set(at_once.json())
    if "usage" in answer:
        assert answer["usage"] == at_once.json()["usage"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
async def test_what_was_asked_for_as_a_stream_has_events_and_a_whole_answer(
    here: httpx.AsyncClient, there: httpx.AsyncClient, path: str
) -> None:
    prompt = {"prompt": "say"} if path == "/v1/completions" else {"messages": SAY}
    body = {"model": "sim", "max_tokens": 20, **prompt}
    made = await here.post(path, json={**body, "stream": True}, headers=LATER)
    assert made.status_code == 202
    rid = made.json()["id"]
    events = await there.get(f"{made.headers['location']}/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    found = await polled(there, made.headers["location"])
    whole = found["response"]["body"]
    at_once = (await here.post(path, json=body)).json()
    assert set(whole) == set(at_once)
    assert whole["usage"] == at_once["usage"]
    if path == "/v1/messages":
        text = "".join(block.get("text", "") for block in whole["content"])
        assert (whole["stop_reason"], whole["type"]) == (at_once["stop_reason"], "message")
    else:
        choice = whole["choices"][0]
        text = choice["text"] if path == "/v1/completions" else choice["message"]["content"]
    assert text == answer_text(rid, 20)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_what_a_stream_has_said_can_be_polled_while_it_runs_and_where_it_was_cancelled(
    here: httpx.AsyncClient, there: httpx.AsyncClient, path: str
) -> None:
    made = await here.post(path, json={**CHAT, "max_tokens": 3000, "stream": True}, headers=LATER)
    rid, location = made.json()["id"], made.headers["location"]
    seen: list[str] = []

    async def look() -> str:
        found = (await there.get(location, params={"partial": "true"})).json()
        if found["partial"] is None:
            return ""
        if path == "/v1/messages":
            return "".join(block.get("text", "") for block in found["partial"]["content"])
        text: str = found["partial"]["choices"][0]["message"]["content"]
        return text

    async with asyncio.timeout(20):
        while len(set(seen)) < 4:
            seen.append(await look())
    await there.post(f"{location}/cancel")
    ended = await polled(there, location)
    seen.append(await look())
    whole = answer_text(rid, 3000)
    assert all(whole.startswith(text) for text in seen)
    assert seen == sorted(seen, key=len)
    assert ended["response"]["status_code"] == 499
    assert "partial" not in ended


async def test_the_preference_is_found_in_whichever_of_several_headers_it_stands(here: httpx.AsyncClient) -> None:
    for prefer in (["wait=1", "respond-async"], ["respond-async", "wait=1"], ["handling=lenient, respond-async; x=1"]):
        headers = [("Prefer", one) for one in prefer]
        assert (await here.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 202
    other = await here.post("/v1/chat/completions", json=CHAT, headers={"Prefer": "wait=1"})
    assert (other.status_code, "preference-applied" in other.headers) == (200, False)


async def test_the_openai_sdk_gets_it_with_extra_headers(stack: Stack, there: httpx.AsyncClient) -> None:
    async with AsyncOpenAI(base_url=f"{stack.apis[0].url}/v1", api_key="alpha", max_retries=0) as sdk:
        made = await sdk.chat.completions.with_raw_response.create(**CHAT, extra_headers=LATER)
        assert (made.status_code, made.headers["preference-applied"]) == (202, "respond-async")
        found = await polled(there, made.headers["location"])
        plain = await sdk.chat.completions.create(**CHAT, extra_headers=LATER)
        assert plain.id.startswith("req_")
    completion = openai.types.chat.ChatCompletion.model_validate(found["response"]["body"])
    assert completion.choices[0].message.content == answer_text(found["id"], 20)


async def test_the_anthropic_sdk_gets_it_with_extra_headers(stack: Stack, there: httpx.AsyncClient) -> None:
    async with anthropic.AsyncAnthropic(base_url=stack.apis[0].url, api_key="alpha", max_retries=0) as sdk:
        made = await sdk.messages.with_raw_response.create(
            model="sim", messages=SAY, max_tokens=20, extra_headers=LATER
        )
        assert (made.status_code, made.headers["request-id"]) == (202, made.headers["x-penstock-request"])
        found = await polled(there, made.headers["location"])
    message = anthropic.types.Message.model_validate(found["response"]["body"])
    assert "".join(block.text for block in message.content if block.type == "text") == answer_text(found["id"], 20)


async def test_the_answer_is_there_although_the_replica_that_said_202_was_killed(
    stack: Stack, there: httpx.AsyncClient
) -> None:
    doomed = stack.api("--disconnect-grace-s", "0.3", env=KEYED)
    stack.apis.remove(doomed)
    async with httpx.AsyncClient(base_url=doomed.url, headers={"X-API-Key": "alpha"}, timeout=30) as client:
        made = [
            await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 200, "stream": stream}, headers=LATER)
            for stream in (False, True)
        ]
    doomed.kill()
    seen = [(await there.get(one.headers["location"])).json()["state"] for one in made]
    assert set(seen) <= {"queued", "running"}, "it was killed too late"
    for one in made:
        found = await polled(there, one.headers["location"])
        text = found["response"]["body"]["choices"][0]["message"]["content"]
        assert text == answer_text(one.json()["id"], 200)


async def test_a_key_leads_to_the_same_request_and_keeps_its_answer(
    stack: Stack, here: httpx.AsyncClient, there: httpx.AsyncClient
) -> None:
    keyed, asked = {**LATER, "Idempotency-Key": "later-1"}, {**CHAT, "max_tokens": 400}
    made = await here.post("/v1/chat/completions", json=asked, headers=keyed)
    again = await there.post("/v1/chat/completions", json=asked, headers=keyed)
    assert (made.headers["idempotency-status"], again.headers["idempotency-status"]) == ("created", "attached")
    assert (again.status_code, again.headers["location"]) == (202, made.headers["location"])
    await polled(here, made.headers["location"])
    ended = await there.post("/v1/chat/completions", json=asked, headers=keyed)
    assert (ended.status_code, ended.headers["idempotency-status"]) == (202, "replayed")
    assert "retry-after" not in ended.headers
    at_once = await there.post("/v1/chat/completions", json=asked, headers={"Idempotency-Key": "later-1"})
    assert (at_once.status_code, at_once.json()["id"]) == (200, f"chatcmpl-{made.json()['id']}")
    with redis.Redis.from_url(stack.redis_url) as server:
        left_s: Any = server.ttl(Keys("sim").log(made.json()["id"]))
    assert 86_000 < left_s <= 86_400


async def test_an_sdks_retry_leads_to_the_request_whose_202_was_lost(here: httpx.AsyncClient) -> None:
    asked = {**CHAT, "messages": [{"role": "user", "content": "only once"}]}
    made = await here.post("/v1/chat/completions", json=asked, headers=LATER)
    again = await here.post("/v1/chat/completions", json=asked, headers={**LATER, "x-stainless-retry-count": "1"})
    assert again.headers["location"] == made.headers["location"]


async def test_the_preference_is_not_applied_where_the_request_ends_with_its_client(
    here: httpx.AsyncClient, there: httpx.AsyncClient
) -> None:
    answer = await here.post("/v1/chat/completions", json=CHAT, headers={**LATER, "X-On-Disconnect": "cancel"})
    assert (answer.status_code, "preference-applied" in answer.headers) == (200, False)
    keyed = {"Idempotency-Key": "ends-with-me", "X-On-Disconnect": "cancel"}
    asked = {**CHAT, "max_tokens": 400}
    first = asyncio.create_task(here.post("/v1/chat/completions", json=asked, headers=keyed))
    running = {"state": ["queued", "running"]}
    end_s = time.monotonic() + 30
    while not (await there.get("/v1/requests", params=running)).json()["data"]:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.05)
    joined = await there.post("/v1/chat/completions", json=asked, headers={**LATER, "Idempotency-Key": "ends-with-me"})
    assert (joined.status_code, joined.headers["idempotency-status"]) == (200, "attached")
    assert joined.json() == (await first).json()


async def test_refusals_before_the_queue_come_at_once_and_those_of_the_engine_are_polled(
    here: httpx.AsyncClient, there: httpx.AsyncClient
) -> None:
    wrong = await here.post("/v1/chat/completions", json={"model": "sim"}, headers=LATER)
    unknown = await here.post("/v1/chat/completions", json={**CHAT, "model": "nobody"}, headers=LATER)
    assert (wrong.status_code, unknown.status_code) == (400, 404)
    for path, stream in (("/v1/chat/completions", False), ("/v1/chat/completions", True), ("/v1/messages", True)):
        asked = {**CHAT, "max_tokens": 500_000, "stream": stream}
        made = await here.post(path, json=asked, headers=LATER)
        at_once = await here.post(path, json=asked)
        found = await polled(there, made.headers["location"])
        assert (made.status_code, found["state"]) == (202, "succeeded")
        assert (found["response"]["status_code"], found["response"]["body"]) == (400, at_once.json())


async def test_one_that_is_cancelled_says_so_in_the_envelope_of_its_route(
    here: httpx.AsyncClient, there: httpx.AsyncClient
) -> None:
    for path, envelope in (("/v1/chat/completions", "cancelled"), ("/v1/messages", None)):
        made = await here.post(path, json=SLOW, headers=LATER)
        location = made.headers["location"]
        await there.post(f"{location}/cancel")
        found = await polled(there, location)
        body = found["response"]["body"]
        assert (found["state"], found["response"]["status_code"]) == ("cancelled", 499)
        assert body["error"]["code"] == "cancelled"
        assert body.get("type") == (None if envelope else "error")


async def test_its_time_in_the_queue_ends_as_for_any_request(here: httpx.AsyncClient, there: httpx.AsyncClient) -> None:
    headers = {**LATER, "X-Request-Timeout-Ms": "2000"}
    made = await here.post("/v1/chat/completions", json=SLOW, headers=headers)
    found = await polled(there, made.headers["location"])
    assert (found["state"], found["response"]["status_code"]) == ("expired", 504)


async def test_an_answer_that_is_not_kept_any_more_is_null_and_foreign_ones_are_not_found(
    stack: Stack, here: httpx.AsyncClient
) -> None:
    made = await here.post("/v1/chat/completions", json=CHAT, headers=LATER)
    location = made.headers["location"]
    await polled(here, location)
    async with client_of(stack, 1, "beta") as other:
        assert (await other.get(location)).status_code == 404
    with redis.Redis.from_url(stack.redis_url) as server:
        assert server.delete(Keys("sim").log(made.json()["id"])) == 1
    gone = (await here.get(location)).json()
    assert (gone["state"], gone["response"]) == ("succeeded", None)


async def test_a_response_is_polled_as_the_object_that_it_is(stack: Stack, there: httpx.AsyncClient) -> None:
    async with AsyncOpenAI(base_url=f"{stack.apis[0].url}/v1", api_key="alpha", max_retries=0) as sdk:
        made = await sdk.responses.create(model="sim", input="say", background=True, extra_headers=LATER)
    found = await polled(there, f"/v1/requests/{made.id.replace('resp_', 'req_')}")
    assert (found["endpoint"], found["response"]["body"]["id"]) == ("/v1/responses", made.id)
    assert found["response"]["body"]["status"] == "completed"


# ---- the list


async def walk(client: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = await client.get("/v1/requests", params={**params, **({"after": after} if after else {})})
        assert page.status_code == 200, page.text
        listed = page.json()
        assert (listed["object"], listed["has_more"]) == ("list", listed["next"] is not None)
        found += listed["data"]
        if not listed["has_more"]:
            return found
        after = listed["next"]


async def test_a_tenant_sees_its_own_requests_in_the_order_in_which_they_move(
    stack: Stack, there: httpx.AsyncClient
) -> None:
    async with client_of(stack, 0, "gamma") as client:
        ended = [(await client.post("/v1/chat/completions", json=CHAT, headers=LATER)).json()["id"] for _ in range(5)]
        for rid in ended:
            await polled(client, f"/v1/requests/{rid}")

        async def begun(lane: str) -> str:
            headers = {**LATER, "X-Priority-Lane": lane}
            return str((await client.post("/v1/chat/completions", json=SLOW, headers=headers)).json()["id"])

        slow = [await begun("interactive") for _ in range(2)]
        worker = stack.workers[1]
        await eventually(lambda: worker.metric("penstock_attempts_running") == 2, 30, "two of them run")
        slow += [await begun(lane) for lane in ("standard", "batch", "batch")]
        deleted = (await client.post("/v1/chat/completions", json=CHAT, headers=LATER)).json()["id"]
        await polled(client, f"/v1/requests/{deleted}")
        await client.delete(f"/v1/requests/{deleted}")
    async with client_of(stack, 1, "gamma") as client:
        for limit in (1, 2, 3, 100):
            whole = await walk(client, limit=limit)
            assert {one["id"] for one in whole} == {*ended, *slow}
            assert [one["state"] for one in whole] == ["queued"] * 3 + ["running"] * 2 + ["succeeded"] * 5, limit
            assert len(whole) == 10
        assert {one["id"] for one in whole[-5:]} == set(ended)
        assert [one["finished_at_ms"] for one in whole[-5:]] == sorted(
            (one["finished_at_ms"] for one in whole[-5:]), reverse=True
        )
        assert [one["id"] for one in await walk(client, lane="batch", limit=1)] == slow[3:]
        assert {one["id"] for one in await walk(client, model="slow")} == set(slow)
        assert {one["id"] for one in await walk(client, model="slow", state="running")} == set(slow[:2])
        both = await client.get("/v1/requests", params=[("state", "succeeded"), ("state", "queued"), ("limit", "100")])
        assert [one["state"] for one in both.json()["data"]] == ["queued"] * 3 + ["succeeded"] * 5
        assert await walk(client, model="nobody") == []
        assert await walk(client, state="expired") == []
        for rid in slow:
            await client.post(f"/v1/requests/{rid}/cancel")
    assert not {one["id"] for one in await walk(there, limit=100)} & {*ended, *slow}, "somebody else's"


@pytest.mark.parametrize(
    "params",
    [
        {"state": "asleep"},
        {"lane": "fast"},
        {"limit": "0"},
        {"limit": "101"},
        {"after": "nonsense"},
        {"after": "queued:standard:abc:sim"},
        {"after": "queued:standard:99999999999999999999-0:sim"},
        {"after": "ended::1-1:nobody"},
        {"after": "running::\x00:sim"},
        {"state": "queued", "after": "ended::1-1:sim"},
    ],
)
async def test_what_cannot_be_listed_is_refused(here: httpx.AsyncClient, params: dict[str, str]) -> None:
    refused = await here.get("/v1/requests", params=params)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request_error")
    assert refused.json()["error"]["param"].partition(".")[0] in params
