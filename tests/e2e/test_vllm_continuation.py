"""Real vLLM workers, one of them killed amid its streams, or short of slots: clients read what they would have read.

The model says its script again and again, and its best token leads by far: greedy text is then the same in any batch.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.cursors import cursor_of
from shared import genai
from tests.support.amid import amid, cut_short
from tests.support.collector import Collector, collecting
from tests.support.resuming import said
from tests.support.stack import Stack, eventually, running_stack
from tests.support.traces import Trace

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

POOL = "scripted"
START_S = 400.0
SLOTS = 8
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
FLAGS = ("--served-model-name", "scripted", "--enforce-eager", "--max-num-seqs", str(SLOTS))
_TRIES = 8
"""A small model on a busy machine may have said everything before its front gets a turn to pass it on."""
_LONG = {"model": "scripted", "temperature": 0, "max_tokens": 1_500, "ignore_eos": True}
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}
_CHAT = {"messages": [{"role": "user", "content": "What happens when a worker dies?"}]}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**_LONG, **_STREAM, **_CHAT}),
    ("/v1/chat/completions", {**_LONG, **_STREAM, **_CHAT, "stop": ["never said by anybody"]}),
    ("/v1/chat/completions", {**_LONG, **_STREAM, **_CHAT, "presence_penalty": 0.5}),
    ("/v1/completions", {**_LONG, **_STREAM, "prompt": "A queue is"}),
]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def command(scripted_model: Path, collector: Collector) -> tuple[str, ...]:
    """A worker's flags: all of them export their spans, and so does their vLLM."""
    return ("--model", str(scripted_model), "--otlp-endpoint", collector.endpoint, "--", *FLAGS)


@pytest.fixture(scope="module")
def stack(command: tuple[str, ...], collector: Collector) -> Iterator[Stack]:
    with running_stack() as started:
        started.worker(*command, engine="vllm", ready_s=START_S, env=SOON)
        started.api("--otlp-endpoint", collector.endpoint, env=SOON)
        yield started


class Reader:
    """A client of one stream."""

    def __init__(self) -> None:
        self.body = b""

    async def read(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any], *, lane: str = "standard"
    ) -> bytes:
        """The stream without comments and cursors; those must grow."""
        async with client.stream("POST", path, json=body, headers={"X-Priority-Lane": lane}) as response:
            assert response.status_code == 200
            async for piece in response.aiter_bytes():
                self.body += piece
        lines = self.body.split(b"\n")
        cursors = [cursor_of(line[4:].decode()).offset for line in lines if line.startswith(b"id: ")]
        assert cursors == sorted(set(cursors))
        return b"".join(line + b"\n\n" for line in lines if line.startswith(b"data: "))


async def test_vllms_own_span_stands_in_the_trace_below_the_attempt(stack: Stack, collector: Collector) -> None:
    body = {"model": "scripted", "max_tokens": 20, "ignore_eos": True, **_STREAM, **_CHAT}
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=START_S) as client:
        answer = await client.post("/v1/chat/completions", json=body, headers={"traceparent": parent})
    rid = answer.headers["x-penstock-request"]
    await eventually(lambda: len(collector.trace_of(rid).spans) >= 7, 30, "the whole trace")
    trace = collector.trace_of(rid)
    assert {span.trace_id for span in trace.spans} == {parent[3:35]}
    assert {span.name: trace.parent_of(span) for span in trace.spans} == {
        "POST /v1/chat/completions": "",
        "admit": "POST /v1/chat/completions",
        "send standard": "admit",
        "queue": "send standard",
        "process standard": "send standard",
        "llm_request": "process standard",
        "stream": "POST /v1/chat/completions",
    }
    engine, attempt = trace.one("llm_request"), trace.one("process standard")
    assert (engine.service, attempt.service) == ("vllm", "penstock-worker")
    assert engine.attributes["gen_ai.usage.completion_tokens"] == attempt.attributes[genai.OUTPUT_TOKENS] == 20
    assert engine.attributes["gen_ai.usage.prompt_tokens"] == attempt.attributes[genai.INPUT_TOKENS]
    assert not any("What happens" in str(span) for span in collector.spans)
    log = stack.workers[0].log.read_text()
    told = [json.loads(line) for line in log.splitlines() if line.startswith("{")]  # libraries also print
    assert "penstock-worker" in {line["service"] for line in told} <= {"vllm", "penstock-worker"}
    assert "What happens" not in log


async def test_a_killed_workers_streams_read_like_those_of_an_unbroken_run(
    stack: Stack, command: tuple[str, ...], collector: Collector
) -> None:
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=START_S) as client:
        expected = [said(await Reader().read(client, path, body)) for path, body in ASKED]
        _, streams = await cut_short(
            stack, POOL, 2, lambda: asyncio.gather(*(Reader().read(client, path, body) for path, body in ASKED))
        )
        heir = await asyncio.to_thread(lambda: stack.worker(*command, engine="vllm", ready_s=START_S, env=SOON))
        seen = await streams
    assert heir.metric("penstock_resumes_total") >= 2, "the kill came too late"
    for got, wanted in zip(seen, expected, strict=True):
        assert b'"error"' not in got, got[-500:]
        assert said(got) == wanted
        assert len({event.split(b'"created":')[1][:10] for event in got.split(b"\n\n") if b'"created":' in event}) == 1
    await eventually(lambda: len(continued(collector)) >= 2, 30, "the traces of what went on elsewhere")
    for trace in continued(collector):
        lost, heir_of_it = trace.all("process standard")
        assert (lost.failed, heir_of_it.failed) == (True, False)
        assert [trace.parent_of(span) for span in trace.all("llm_request")[-1:]] == ["process standard"]


def continued(collector: Collector) -> list[Trace]:
    """The traces of requests that had two attempts, the second one of which vLLM has told of."""
    whole = [Trace([span for span in collector.spans if span.trace_id == one]) for one in collector.traces()]
    heirs = [(trace, trace.all("process standard")[1:2]) for trace in whole]
    return [
        trace
        for trace, attempts in heirs
        if attempts and any(span.parent_span_id == attempts[0].span_id for span in trace.all("llm_request"))
    ]


async def test_batch_streams_that_gave_their_slot_read_like_those_of_an_unbroken_run(stack: Stack) -> None:
    (worker,) = (one for one in stack.workers if one.popen.poll() is None)
    assert worker.metric("penstock_worker_slots") == SLOTS, "the engine's own number"
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=START_S) as client:
        expected = [said(await Reader().read(client, path, body)) for path, body in ASKED]
        for _ in range(_TRIES):
            seen = await give_way(stack, client)
            for number, got in enumerate(seen):
                assert b'"error"' not in got, got[-500:]
                assert said(got) == expected[number % len(ASKED)]
            if worker.metric("penstock_preemptions_total"):
                return
    pytest.fail("the streams ended too soon, each time")


async def give_way(stack: Stack, client: httpx.AsyncClient) -> list[bytes]:
    """Batch streams, beside which interactive requests come; what the streams said."""
    over = threading.Event()
    middle = asyncio.create_task(asyncio.to_thread(amid, stack, POOL, SLOTS, SLOTS // 2, over))
    streams = [
        asyncio.create_task(Reader().read(client, *ASKED[number % len(ASKED)], lane="batch"))
        for number in range(3 * SLOTS)  # those that wait keep the slots full
    ]
    await asyncio.wait({middle, asyncio.gather(*streams)}, return_when=asyncio.FIRST_COMPLETED)
    over.set()
    await middle
    short = {**_CHAT, "model": "scripted", "max_tokens": 4}
    lane = {"X-Priority-Lane": "interactive"}
    answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=short, headers=lane) for _ in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4, answers[0].text
    return await asyncio.gather(*streams)
