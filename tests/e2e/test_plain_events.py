"""Streams of `data:` lines alone, for readers that take each block of a stream for one JSON text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.stack import Stack, eventually, running_stack
from worker.engines.sim_answers import answer_text

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
STREAM: dict[str, Any] = {**CHAT, "stream": True}
PLAIN = {"X-Event-Stream": "plain"}
BENCH = {"X-Request-Id": "bench-0a1b2c3d-17"}
"""As `vllm bench serve` names its requests."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A worker with one slot, and a replica that opens a waiting stream soon and comments it often."""
    with running_stack() as started:
        started.worker("--max-active", "1", "--", "--ttft-ms", "5", "--itl-ms", "20")
        started.api("--header-hold-s", "0.2", "--heartbeat-s", "0.25")
        yield started


def said(stream: str) -> str:
    """The text of a stream of nothing but `data:` lines, read as vLLM's load generator does."""
    blocks = [block for block in stream.split("\n\n") if block]
    assert blocks.pop() == "data: [DONE]"
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def rid_of(answer: httpx.Response) -> str:
    return answer.headers["x-penstock-request"]


@pytest.mark.parametrize("headers", [PLAIN, BENCH])
async def test_a_plain_stream_has_no_ids(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await http.post("/v1/chat/completions", json=STREAM, headers=headers)
    assert said(answer.text) == answer_text(rid_of(answer), 20)


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Event-Stream": "full"}, {**BENCH, "X-Event-Stream": "full"}, {"X-Request-Id": "bench-of-mine"}],
)
async def test_any_other_stream_has_them(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await http.post("/v1/chat/completions", json=STREAM, headers=headers)
    blocks = [block for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("id: ") for block in blocks), answer.text


async def test_a_plain_stream_that_waits_says_nothing(stack: Stack, http: httpx.AsyncClient) -> None:
    long = asyncio.create_task(http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 100}))
    await eventually(lambda: stack.workers[0].metric("penstock_attempts_running") == 1, 30, "the slot is taken")
    plain, full = await asyncio.gather(
        http.post("/v1/chat/completions", json=STREAM, headers=PLAIN),
        http.post("/v1/chat/completions", json=STREAM),
    )
    await long
    assert full.text.startswith(": queued position="), "it has waited for long enough"
    assert said(plain.text) == answer_text(rid_of(plain), 20)


async def test_a_replayed_answer_is_plain_as_well(http: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "plain-1"}
    first = await http.post("/v1/chat/completions", json=CHAT, headers=key)
    replayed = await http.post("/v1/chat/completions", json=STREAM, headers={**key, **PLAIN})
    assert replayed.headers["idempotency-status"] == "replayed"
    assert said(replayed.text) == first.json()["choices"][0]["message"]["content"]


async def test_a_plain_stream_can_be_gone_on_with(http: httpx.AsyncClient) -> None:
    plain = await http.post("/v1/chat/completions", json=STREAM, headers=PLAIN)
    events = await http.get(f"/v1/requests/{rid_of(plain)}/events")
    assert events.text.startswith("id: ")
    blocks = [line for line in events.text.splitlines() if line.startswith("data: ")]
    assert blocks == [line for line in plain.text.splitlines() if line]


async def test_an_unknown_kind_of_stream_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=STREAM, headers={"X-Event-Stream": "odd"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-event-stream")
