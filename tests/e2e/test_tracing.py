"""Traces and logs of real processes on the simulated engine: what they say, and what they must not say."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared import genai
from tests.support.client import Seen, read_line, stream_chat
from tests.support.collector import collecting
from tests.support.stack import Api, Stack, Worker, eventually, free_port, running_stack
from tests.support.traces import Span, complete, spans_in, trace_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHAT = "/v1/chat/completions"
PROMPT = "xylophone-of-the-prompt"
KEY, ADMIN, WRONG = "marker-key-4711-abcdef", "marker-admin-4711-abcdef", "marker-wrong-4711-abcdef"
ASK = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A replica and a worker that write their spans into one file, and all that they can log."""
    with running_stack() as running:
        flags = ("--trace-file", str(running.folder / "spans.jsonl"), "--log-level", "DEBUG")
        running.worker(*flags, "--", "--itl-ms", "2")
        running.api(*flags, "--access-log", env={"PENSTOCK_API_KEYS": KEY, "PENSTOCK_ADMIN_KEYS": ADMIN})
        yield running


@pytest.fixture
def spans(stack: Stack) -> Path:
    return stack.folder / "spans.jsonl"


@pytest.fixture
async def http(stack: Stack) -> Any:
    async with httpx.AsyncClient(
        base_url=stack.apis[0].url, timeout=30, headers={"Authorization": f"Bearer {KEY}"}
    ) as client:
        yield client


def access_lines(api: Api, **facts: str) -> list[dict[str, Any]]:
    whole, _, _ = api.log.read_text().rpartition("\n")  # what stands behind it is being written
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if line["logger"] == "api.access" and facts.items() <= line.items()]


async def test_one_request_is_one_trace_from_http_to_the_attempt(http: httpx.AsyncClient, spans: Path) -> None:
    seen = await stream_chat(http, str(http.base_url).rstrip("/"), 7)
    seen.check(7)
    trace = await complete(spans, seen.rid)
    parents = {span.name: trace.parent_of(span) for span in trace.spans}
    assert parents == {
        f"POST {CHAT}": "",
        "admit": f"POST {CHAT}",
        "send standard": "admit",
        "queue": "send standard",
        "process standard": "send standard",
        "stream": f"POST {CHAT}",
    }
    assert {span.attributes.get(genai.REQUEST, seen.rid) for span in trace.spans} == {seen.rid}
    server, attempt, stream = trace.one(f"POST {CHAT}"), trace.one("process standard"), trace.one("stream")
    assert (server.kind, server.service, server.failed) == ("server", "penstock-api", False)
    assert (server.attributes[genai.HTTP_STATUS], server.attributes[genai.HTTP_ROUTE]) == (200, CHAT)
    assert (attempt.kind, attempt.service) == ("consumer", "penstock-worker")
    assert (attempt.attributes[genai.ATTEMPT_NUMBER], attempt.attributes[genai.OUTCOME]) == (1, "succeeded")
    assert attempt.attributes[genai.OUTPUT_TOKENS] == stream.attributes[genai.OUTPUT_TOKENS] == 7
    (first,) = stream.events
    assert first["name"] == genai.FIRST
    assert server.start_unix_ns < stream.start_unix_ns <= first["at_unix_ns"] < stream.end_unix_ns <= server.end_unix_ns


async def test_the_number_of_spans_does_not_grow_with_the_answer(http: httpx.AsyncClient, spans: Path) -> None:
    counts = []
    for tokens in (3, 300):
        seen = await stream_chat(http, str(http.base_url).rstrip("/"), tokens)
        seen.check(tokens)
        trace = await complete(spans, seen.rid)
        counts.append((len(trace.spans), sum(len(span.events) for span in trace.spans)))
    assert counts == [(6, 1), (6, 1)]


async def test_a_clients_trace_goes_on_and_its_request_id_is_found(http: httpx.AsyncClient, spans: Path) -> None:
    headers = {"traceparent": PARENT, "tracestate": "vendor=1", "baggage": "a=b", "X-Request-Id": "my-own-id"}
    answer = await http.post(CHAT, json=ASK, headers=headers)
    trace = await complete(spans, answer.headers["x-penstock-request"])
    server = trace.one(f"POST {CHAT}")
    assert (server.trace_id, server.parent_span_id) == tuple(PARENT.split("-")[1:3])
    assert server.attributes[genai.HTTP_REQUEST_ID] == ["my-own-id"]
    assert len(trace.spans) == 6, "all of them are in the client's trace"


async def test_a_client_that_does_not_sample_gets_no_spans(http: httpx.AsyncClient, spans: Path) -> None:
    answer = await http.post(CHAT, json=ASK, headers={"traceparent": PARENT[:-2] + "00"})
    await complete(spans, (await http.post(CHAT, json=ASK)).headers["x-penstock-request"])
    assert not trace_of(spans, answer.headers["x-penstock-request"]).spans


async def test_a_request_that_nobody_waits_for_is_traced_to_its_end(http: httpx.AsyncClient, spans: Path) -> None:
    answer = await http.post(CHAT, json=ASK, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    trace = await complete(spans, answer.headers["x-penstock-request"])
    assert trace.names == [f"POST {CHAT}", "admit", "process standard", "queue", "send standard"]
    assert trace.one(f"POST {CHAT}").attributes[genai.HTTP_STATUS] == 202
    background = await http.post("/v1/responses", json={"input": PROMPT, "background": True, "max_output_tokens": 5})
    rid = background.json()["id"].replace("resp_", "req_")
    trace = await complete(spans, rid, ended="POST /v1/responses")
    assert trace.one("process standard").attributes[genai.OUTCOME] == "succeeded"


def linked(spans: Path, span: Span) -> set[str]:
    """Names of the spans that a span points to."""
    ids = {link["span_id"] for link in span.links}
    return {other.name for other in spans_in(spans) if other.span_id in ids}


async def test_who_joins_a_request_points_to_it(http: httpx.AsyncClient, spans: Path) -> None:
    headers = {"Idempotency-Key": "the-same"}
    first = await http.post(CHAT, json=ASK, headers=headers)
    second = await http.post(CHAT, json=ASK, headers=headers)
    rid = first.headers["x-penstock-request"]
    assert second.headers["x-penstock-request"] == rid
    joins: list[Span] = []

    def there() -> bool:
        joins[:] = [one for one in spans_in(spans) if one.attributes.get(genai.IDEMPOTENCY) == "replayed"]
        return bool(joins)

    await eventually(there, 30, "the span of the one that joins")
    (join,) = joins
    assert join.attributes[genai.REQUEST] == rid
    assert join.trace_id != trace_of(spans, rid).spans[0].trace_id
    assert linked(spans, join) == {"send standard"}


async def test_who_resumes_a_stream_points_to_the_request(http: httpx.AsyncClient, spans: Path) -> None:
    seen = await stream_chat(http, str(http.base_url).rstrip("/"), 5, stream_options={"include_usage": True})
    rest = Seen()
    async with http.stream(
        "GET", f"/v1/requests/{seen.rid}/events", headers={"Last-Event-ID": seen.ids[1]}
    ) as response:
        async for line in response.aiter_lines():
            read_line(rest, line)
    assert rest.done == 1
    name = "GET /v1/requests/{rid}/events"
    await eventually(lambda: any(span.name == name for span in spans_in(spans)), 30, "the span of the resume")
    (resume,) = [span for span in spans_in(spans) if span.name == name]
    assert resume.attributes[genai.REQUEST] == seen.rid
    assert linked(spans, resume) == {"send standard"}


async def test_a_refusal_has_one_code_in_body_log_span_and_metric(
    stack: Stack, http: httpx.AsyncClient, spans: Path
) -> None:
    api = stack.apis[0]
    before = len(access_lines(api, code="model_not_found"))
    answer = await http.post(CHAT, json={**ASK, "model": "nobody-serves-it"})
    assert answer.json()["error"]["code"] == "model_not_found"
    await eventually(lambda: len(access_lines(api, code="model_not_found")) > before, 30, "the line")
    told = access_lines(api, code="model_not_found")
    assert len(told) == before + 1
    assert (told[-1]["status"], told[-1]["event"]) == (404, f"POST {CHAT} 404")
    assert api.metric("penstock_requests_rejected_total", code="model_not_found") == before + 1

    def refused() -> bool:
        return any(
            span.attributes.get(genai.ERROR_TYPE) == "model_not_found" and span.trace_id == told[-1]["trace_id"]
            for span in spans_in(spans)
        )

    await eventually(refused, 30, "the span of the refusal")


async def test_the_access_log_has_a_line_for_each_request(stack: Stack, http: httpx.AsyncClient) -> None:
    api = stack.apis[0]
    answer = await http.post(CHAT, json={**ASK, "service_tier": "priority", "stream": True})
    rid = answer.headers["x-penstock-request"]
    await eventually(lambda: access_lines(api, request_id=rid), 30, "the line")
    (line,) = access_lines(api, request_id=rid)
    assert (line["lane"], line["model"], line["outcome"], line["status"]) == ("interactive", "sim", "succeeded", 200)
    assert (line["prompt_tokens"] > 0, line["completion_tokens"]) == (True, 5)
    assert line["tenant"].startswith("key-")
    assert 0 < line["ttft_ms"] <= line["duration_ms"]
    assert "code" not in line


async def _everything(client: httpx.AsyncClient, wrong: dict[str, str]) -> None:
    """A session: answers of each kind, and refusals at the door, by validators and by the engine."""
    await client.post(CHAT, json={**ASK, "stream": True})
    await client.post(CHAT, json=ASK, headers=wrong)
    await client.post(CHAT, json={"messages": PROMPT})
    await client.post(CHAT, json={**ASK, "temperature": PROMPT})
    await client.post(CHAT, json={**ASK, "max_tokens": -1, "stop": [PROMPT]})
    await client.post(CHAT, content=f'{{"messages": "{PROMPT}')
    await client.post(CHAT, json={**ASK, "messages": [{"role": PROMPT, "content": PROMPT}]})
    await client.post("/v1/messages", json={**ASK, "model": "sim"})
    await client.post("/v1/messages", json={"max_tokens": PROMPT, "messages": [PROMPT]})
    await client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 3})
    await client.post("/v1/completions", json={"prompt": {"not": PROMPT}})
    await client.post("/generate", json={"prompt": PROMPT})
    await client.post("/tokenize", json={"prompt": PROMPT})
    await client.post("/v1/embeddings", json={"input": PROMPT})
    await client.post("/v1/responses", json={"input": PROMPT, "instructions": PROMPT, "max_output_tokens": 4})
    image = {"type": "image_url", "image_url": {"url": f"https://example.com/a.png?signature={PROMPT}"}}
    await client.post(CHAT, json={"messages": [{"role": "user", "content": [image]}]})
    later = await client.post(CHAT, json=ASK, headers={"Prefer": "respond-async"})
    await client.get(later.headers["location"])
    await client.get("/v1/requests")
    await client.get(f"/v1/models?token={KEY}")
    await client.get("/v1/admin/lanes", headers={"Authorization": f"Bearer {ADMIN}"})
    await client.get("/v1/admin/lanes", headers=wrong)
    await client.get(f"/nowhere?api_key={KEY}", headers=wrong)


async def test_no_prompt_and_no_key_stands_in_a_log_or_a_trace(
    stack: Stack, http: httpx.AsyncClient, spans: Path
) -> None:
    await _everything(http, {"Authorization": f"Bearer {WRONG}"})
    last = await http.post(CHAT, json=ASK)
    await complete(spans, last.headers["x-penstock-request"])
    written = {process.name: process.log.read_text() for process in stack.processes}
    written["spans"] = spans.read_text()
    assert last.headers["x-penstock-request"] in written["spans"]
    assert "invalid_api_key" in written["api-0"], "there is something to look at"
    for where, text in written.items():
        for marker in (PROMPT, KEY, ADMIN, WRONG):
            assert marker not in text, (where, [line for line in text.splitlines() if marker in line])
    for process in (*stack.apis, *stack.workers):
        for line in process.log.read_text().splitlines():
            assert {"timestamp", "level", "logger", "event", "service"} <= set(json.loads(line)), line


async def test_spans_go_to_a_collector_that_the_environment_names() -> None:
    with collecting() as collector, running_stack() as exporting:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        exporting.worker(env={**env, "OTEL_SERVICE_NAME": "my-workers"})
        api = exporting.api(env=env)
        async with httpx.AsyncClient(timeout=30) as client:
            seen = await stream_chat(client, api.url, 5)
        await eventually(lambda: len(collector.trace_of(seen.rid).spans) == 6, 30, "the whole trace")
        assert collector.paths == {"/v1/traces"}
        assert {span.service for span in collector.trace_of(seen.rid).spans} == {"penstock-api", "my-workers"}


async def test_a_collector_that_is_away_holds_nothing_up() -> None:
    with running_stack() as exporting:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_BSP_SCHEDULE_DELAY": "200"}
        worker, api = exporting.worker(env=env), exporting.api(env=env)
        async with httpx.AsyncClient(timeout=30) as client:
            for _ in range(20):
                (await stream_chat(client, api.url, 5)).check(5)
        began_s = time.monotonic()
        assert (api.stop(), worker.stop()) == (0, 0)
        assert time.monotonic() - began_s < 25, "OpenTelemetry by itself waits 30 s"


async def test_without_settings_nothing_is_traced_and_no_request_is_logged() -> None:
    with running_stack() as plain:
        worker: Worker = plain.worker()
        api = plain.api()
        async with httpx.AsyncClient(timeout=30) as client:
            seen = await asyncio.wait_for(stream_chat(client, api.url, 5), 30)
        seen.check(5)
        assert not access_lines(api)
        for process in (worker, api):
            loaded = Path(f"/proc/{process.pid}/maps").read_text()
            assert "opentelemetry" not in loaded
