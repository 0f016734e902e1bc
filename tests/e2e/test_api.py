"""The replica's surface, by the unmodified OpenAI SDK and by plain HTTP, on real processes with the sim engine."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.client import check_whole, stream_chat
from tests.support.stack import Stack, eventually, get, running_stack
from worker.engines.sim_answers import answer_text

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
QUEUED = re.compile(r"^: queued position=(\d) depth=(\d)(?: eta_s=[\d.]+)? reason=(\w+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Two replicas and two workers."""
    with running_stack() as started:
        flags = (
            "--model",
            "sim-model",
            "--",
            "--ttft-ms",
            "5",
            "--itl-ms",
            "2",
            "--slots",
            "64",
            "--max-model-len",
            "2000",
        )
        started.worker(*flags)
        started.worker(*flags)
        started.api()
        started.api("--queue-timeout-s", "1")
        yield started


def rid_of(body_id: str) -> str:
    return body_id.partition("-")[2]


async def test_the_sdk_chats(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(
        model="sim-model", messages=[{"role": "user", "content": "hello"}], max_tokens=7
    )
    assert answer.choices[0].message.content == answer_text(rid_of(answer.id), 7)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7


async def test_the_sdk_streams_a_chat_with_usage(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="sim-model",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer_text(rid_of(chunks[0].id), 30)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 30


async def test_the_sdk_completes_streamed_and_not(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.completions.create(model="sim-model", prompt="hello", max_tokens=4)
    assert answer.choices[0].text == answer_text(rid_of(answer.id), 4)
    stream = await sdk.completions.create(model="sim-model", prompt="hello", max_tokens=9, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer_text(rid_of(chunks[0].id), 9)


async def test_models_are_listed_and_retrieved(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["sim-model"]
    assert (await sdk.models.retrieve("sim-model")).id == "sim-model"
    with pytest.raises(openai.NotFoundError) as raised:
        await sdk.models.retrieve("other")
    assert raised.value.code == "model_not_found"


async def test_without_a_model_name_the_served_model_answers(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1})
    assert answer.json()["model"] == "sim-model"


async def test_generate_takes_a_prompt_and_gives_text(http: httpx.AsyncClient) -> None:
    answer = await http.post("/generate", json={"prompt": "hello", "max_new_tokens": 5})
    assert answer.status_code == 200
    assert answer.json()["text"] == answer_text(answer.headers["x-penstock-request"], 5)
    assert answer.json()["usage"]["completion_tokens"] == 5


async def test_every_response_has_a_request_id_and_the_clients_own_comes_back(http: httpx.AsyncClient) -> None:
    for path in ("/livez", "/v1/models", "/no/such/path"):
        assert (await http.get(path)).headers["x-request-id"]
        named = await http.get(path, headers={"X-Request-Id": "mine-1"})
        assert named.headers.get_list("x-request-id") == ["mine-1"]
    answer = await http.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "mine-2"})
    assert answer.headers.get_list("x-request-id") == ["mine-2"]


async def test_every_generation_says_which_request_it_was(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=CHAT, headers={"X-Priority-Lane": "batch"})
    assert answer.headers["x-request-id"] == answer.headers["x-penstock-request"]
    assert answer.headers["x-penstock-lane"] == "batch"


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/chat/completions", b"{", 400, "invalid_request_error", None),
        ("/v1/chat/completions", b"[1]", 400, "invalid_request_error", None),
        ("/v1/chat/completions", b"\xff\xfe", 400, "invalid_request_error", None),
        ("/v1/chat/completions", b"[" * 100_000, 400, "invalid_request_error", None),
        ("/v1/chat/completions", b"{}", 400, "invalid_request_error", "messages"),
        ("/v1/chat/completions", b'{"messages": []}', 400, "invalid_request_error", "messages"),
        ("/v1/chat/completions", b'{"messages": [{}], "stream": "yes"}', 400, "invalid_request_error", "stream"),
        ("/v1/chat/completions", b'{"messages": [{}], "model": 3}', 400, "invalid_request_error", "model"),
        (
            "/v1/chat/completions",
            b'{"messages": [{}], "service_tier": "x"}',
            400,
            "invalid_request_error",
            "service_tier",
        ),
        ("/v1/chat/completions", b'{"messages": [{}], "n": 100000}', 400, "limit_exceeded", "n"),
        ("/v1/chat/completions", b'{"messages": [{}], "model": "gpt-9"}', 404, "model_not_found", "model"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "n": 2}', 400, "invalid_request_error", "n"),
        (
            "/v1/chat/completions",
            b'{"messages": [{"role": "user"}], "max_tokens": 9999}',
            400,
            "context_length_exceeded",
            "input_tokens",
        ),
        ("/v1/completions", b"{}", 400, "invalid_request_error", "prompt"),
        ("/v1/completions", b'{"prompt": "x", "max_tokens": -1}', 400, "invalid_request_error", "max_tokens"),
        ("/generate", b'{"prompt": 3}', 400, "invalid_request_error", "prompt"),
        ("/generate", b'{"prompt": "x", "stream": true}', 400, "invalid_request_error", "stream"),
        ("/v1/nothing", b"{}", 404, "not_found", None),
        ("/v1/models", b"{}", 405, "method_not_allowed", None),
    ],
)
async def test_bad_input_gets_the_envelope_with_its_status_and_code(
    http: httpx.AsyncClient, path: str, body: bytes, status: int, code: str, param: str | None
) -> None:
    answer = await http.post(path, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), answer.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if status == 400:
        assert answer.headers["x-should-retry"] == "false"


async def test_an_engines_refusal_keeps_its_status_when_the_client_asked_for_a_stream(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True, "max_tokens": 99_999})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["message"].startswith("This model's maximum context length is")


async def test_a_body_over_the_limit_is_refused(stack: Stack) -> None:
    api = stack.api("--max-body-bytes", "2000")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1000

    async with httpx.AsyncClient(base_url=api.url) as client:
        declared = await client.post("/v1/completions", content=b" " * 2001)
        chunked = await client.post("/v1/completions", content=chunks())
    for answer in (declared, chunked):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_with_keys_set_only_their_holders_get_in(stack: Stack) -> None:
    api = stack.api(ready=False, env={"GATEWAY_API_KEYS": "alpha,beta"})
    async with httpx.AsyncClient(base_url=api.url) as client:
        refused = [await client.get("/v1/models"), await client.get("/v1/models", headers={"X-API-Key": "gamma"})]
        let_in = [
            await client.get("/v1/models", headers={"Authorization": "Bearer alpha"}),
            await client.get("/v1/models", headers={"X-API-Key": "beta"}),
        ]
        alive = await client.get("/livez")
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in refused] == [
        (401, "invalid_api_key")
    ] * 2
    assert [answer.status_code for answer in (*let_in, alive)] == [200, 200, 200]


async def test_requests_land_on_both_workers_and_either_replica_serves_a_stream(stack: Stack) -> None:
    before = [worker.metric("penstock_claims_total", outcome="ok") for worker in stack.workers]
    async with httpx.AsyncClient(timeout=30) as client:
        urls = [stack.apis[number % 2].url for number in range(40)]
        seen = await asyncio.gather(*(stream_chat(client, url, 50) for url in urls))
    check_whole(seen, 50)
    after = [worker.metric("penstock_claims_total", outcome="ok") for worker in stack.workers]
    assert all(now - then >= 5 for now, then in zip(after, before, strict=True)), (before, after)


async def test_a_request_that_no_worker_can_start_in_time_is_told_so() -> None:
    with running_stack() as small:
        worker = small.worker("--max-active", "1", "--", "--itl-ms", "100")
        api = small.api("--queue-timeout-s", "1")
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            long = asyncio.create_task(client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 60}))
            await eventually(lambda: worker.metric("penstock_attempts_running") == 1, 30, "the slot is taken")
            whole = await client.post("/v1/chat/completions", json=CHAT)
            streamed = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
            assert (await long).status_code == 200
    for answer in (whole, streamed):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_timeout")
        assert int(answer.headers["Retry-After"]) >= 1


async def test_a_request_that_runs_past_its_deadline_is_stopped_and_told_so() -> None:
    with running_stack() as small:
        worker = small.worker("--", "--itl-ms", "100")
        api = small.api("--request-timeout-s", "1")
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            whole = asyncio.create_task(client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 300}))
            streamed = await stream_chat(client, api.url, 300)
            assert (await whole).status_code == 504
            assert (await whole).json()["error"]["code"] == "deadline_exceeded"
        streamed.check(300)
        assert [error["code"] for error in streamed.errors] == ["deadline_exceeded"]
        await eventually(lambda: worker.metric("penstock_attempts_running") == 0, 30, "the engine is freed")


async def test_a_client_that_hangs_up_behind_a_large_body_is_noticed_while_it_waits_for_its_answer() -> None:
    """Behind 64 KiB that nobody has asked for uvicorn stops reading, and so does not see the hang-up by itself."""
    with running_stack() as small:
        worker = small.worker("--", "--ttft-ms", "50000")
        api = small.api("--disconnect-grace-s", "0.2")
        body = {"messages": [{"role": "user", "content": "x" * 300_000}]}
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            asked = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await eventually(lambda: worker.metric("penstock_attempts_running") == 1, 30, "it runs")
            asked.cancel()
            await eventually(lambda: worker.metric("penstock_attempts_running") == 0, 30, "the engine is freed")
        assert worker.metric("penstock_attempts_total", outcome="cancelled") == 1


async def test_a_full_queue_refuses_at_the_door() -> None:
    with running_stack() as small:
        worker = small.worker("--max-active", "1", "--", "--itl-ms", "50")
        api = small.api("--queue-max", "2")
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            first = asyncio.create_task(client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 20}))
            await eventually(lambda: worker.metric("penstock_attempts_running") == 1, 30, "the slot is taken")
            rest = await asyncio.gather(
                *(client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 2}) for _ in range(5))
            )
            assert (await first).status_code == 200
    assert sorted(answer.status_code for answer in rest) == [200, 200, 429, 429, 429]
    refused = next(answer for answer in rest if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["Retry-After"]) >= 1


async def test_a_stream_whose_answer_is_slow_to_come_is_opened_with_a_comment() -> None:
    with running_stack() as small:
        small.worker("--", "--ttft-ms", "4000")
        api = small.api("--header-hold-s", "0.3", "--heartbeat-s", "0.3")
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True, "max_tokens": 2})
    assert answer.status_code == 200
    assert answer.text.startswith(": running\n\n")
    assert answer.text.count(": running\n\n") > 1, "comments keep a silent stream open"
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_who_waits_is_told_where_it_stands_and_why() -> None:
    with running_stack() as small:
        worker = small.worker("--max-active", "1", "--", "--itl-ms", "30")
        api = small.api("--header-hold-s", "0.2", "--heartbeat-s", "0.3")
        async with httpx.AsyncClient(base_url=api.url, timeout=60) as client:
            ask = {**CHAT, "stream": True, "max_tokens": 100}
            first = asyncio.create_task(client.post("/v1/chat/completions", json=ask))
            await eventually(lambda: worker.metric("penstock_attempts_running") == 1, 30, "the first one runs")
            rest = [asyncio.create_task(client.post("/v1/chat/completions", json=ask)) for _ in range(3)]
            await eventually(lambda: api.metric("penstock_streams_open") == 4, 30, "the others wait")
            polled = await client.post("/v1/chat/completions", json={**ask, "stream": False, "max_tokens": 1})
            answers = [await one for one in (first, *rest)]
    said = [QUEUED.findall(answer.text) for answer in answers]
    assert said[0] == []
    for waited in said[1:]:
        places = [int(position) for position, _, _ in waited]
        assert places == sorted(places, reverse=True), "a place only gets better where nobody goes before it"
        assert {reason for *_, reason in waited} == {"busy"}
    assert sorted(int(waited[0][0]) for waited in said[1:]) == [1, 2, 3]
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)
    assert polled.status_code == 200


async def test_a_refusal_of_a_stream_that_was_opened_already_is_its_last_event() -> None:
    with running_stack() as small:
        worker = small.worker("--max-active", "1", "--", "--itl-ms", "50", "--max-model-len", "1000")
        api = small.api("--header-hold-s", "0.3")
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            long = asyncio.create_task(client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 30}))
            await eventually(lambda: worker.metric("penstock_attempts_running") == 1, 30, "the slot is taken")
            streamed = {**CHAT, "stream": True}
            refused, whole = await asyncio.gather(
                client.post("/v1/chat/completions", json={**streamed, "max_tokens": 2000}),
                client.post("/v1/chat/completions", json={**streamed, "max_tokens": 2}),
            )
            assert (await long).status_code == 200
        first = api.metric("penstock_time_to_first_token_seconds_count")
    assert (refused.status_code, refused.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    opening, fault, rest = refused.text.split("\n\n")
    assert opening.startswith(": queued position=")
    assert not rest
    error = json.loads(fault.removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "context_length_exceeded"
    assert whole.text.startswith(": queued position=")
    assert whole.text.endswith("data: [DONE]\n\n")
    assert first == 1, "the time to a stream's first token counts also when it was long; what is whole has none"


async def test_without_a_living_worker_a_known_model_is_503_and_an_unknown_one_404() -> None:
    with running_stack() as small:
        api = small.api(ready=False)
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            assert (await client.get("/readyz")).status_code == 503
            unknown = await client.post("/v1/chat/completions", json={**CHAT, "model": "sim"})
            worker = small.worker()
            assert (await client.post("/v1/chat/completions", json={**CHAT, "model": "sim"})).status_code == 200
            worker.stop()
            await eventually(lambda: get(f"{api.url}/readyz")[0] == 503, 30, "the worker is gone")
            known = await client.post("/v1/chat/completions", json={**CHAT, "model": "sim"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert (known.status_code, known.json()["error"]["code"]) == (503, "no_capacity")


async def test_without_redis_a_replica_says_so_and_recovers() -> None:
    with running_stack() as small:
        small.worker()
        api = small.api()
        small.redis.kill()
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json=CHAT)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
            assert answer.headers["x-should-retry"] == "true"
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503
            small.start_redis()
            await eventually(lambda: get(f"{api.url}/readyz")[0] == 200, 30, "it is ready again")
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_metrics_count_requests_by_route_and_tokens_by_the_engine(stack: Stack, http: httpx.AsyncClient) -> None:
    await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 3, "stream": True})
    await http.get("/no/such/path")
    api = stack.apis[0]
    assert api.metric("penstock_http_requests_total", route="/v1/completions", code="200") >= 1
    assert api.metric("penstock_http_requests_total", route="unmatched", code="404") >= 1
    assert api.metric("penstock_time_to_first_token_seconds_count", model="sim-model") >= 1
    assert sum(worker.metric("penstock_tokens_total") for worker in stack.workers) > 3


async def test_a_replica_counts_prompts_as_the_engine_does(stack: Stack, http: httpx.AsyncClient) -> None:
    def counted(how: str) -> float:
        return stack.apis[0].metric("penstock_prompt_tokens_counted_total", how=how)

    async def asked(path: str, **prompt: Any) -> int:
        answer = await http.post(path, json={"max_tokens": 1, **prompt})
        return int(answer.json()["usage"]["prompt_tokens"])

    end_s = time.monotonic() + 30
    while not counted("tokenizer"):
        assert time.monotonic() < end_s, "the replica has the tokenizer"
        await asyncio.sleep(0.05)
        await asked("/v1/completions", prompt="x")
    estimated, before = counted("estimate"), counted("tokenizer")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What\tis  a lease?\n"}]
    used = [
        await asked("/v1/chat/completions", messages=messages),
        await asked("/v1/completions", prompt="one two three"),
        await asked("/v1/completions", prompt=["one two", "three"]),
        await asked("/v1/completions", prompt=[1, 2, 3, 4]),
        await asked("/v1/completions", prompt=[[1, 2], [3]]),
    ]
    assert used == [2 + 2 * 3 + 6, 3, 3, 4, 3]
    assert (counted("tokenizer") - before, counted("estimate")) == (sum(used), estimated)


async def test_the_openapi_document_is_served(http: httpx.AsyncClient) -> None:
    document = json.loads((await http.get("/openapi.json")).text)
    assert "/v1/chat/completions" in document["paths"]
