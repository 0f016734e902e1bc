"""What the tests of /v1/responses share: a stack, OpenAI's SDK, and what an answer of the simulated engine must be."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent

from tests.support.stack import Stack, running_stack
from worker.engines.sim_answers import answer_text

SIM: dict[str, Any] = {"model": "sim", "input": "say it"}
KEYED = {"GATEWAY_API_KEYS": "alpha,beta"}


@contextlib.contextmanager
def stack_for_responses() -> Iterator[Stack]:
    """Two replicas with API keys, a worker, and one of the model `slow`, which never begins."""
    with running_stack() as started:
        started.worker("--max-active", "64", "--", "--ttft-ms", "20", "--itl-ms", "10")
        started.worker("--model", "slow", "--max-active", "8", "--", "--ttft-ms", "50000")
        for _ in range(2):
            started.api("--disconnect-grace-s", "0.3", env=KEYED)
        yield started


def client_of(stack: Stack, replica: int, key: str = "alpha") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{stack.apis[replica].url}/v1", api_key=key, max_retries=0, timeout=30)


def rid_of(response: str) -> str:
    return response.replace("resp_", "req_")


def check_events(events: list[ResponseStreamEvent], tokens: int, first: int = 0) -> None:
    """The events from number `first` on are the whole rest of an answer of so many tokens."""
    assert [event.sequence_number for event in events] == list(range(first, first + len(events)))
    last: Any = events[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    rid = rid_of(last.response.id)
    if first == 0:
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == answer_text(rid, tokens)
    assert last.response.output_text == answer_text(rid, tokens)


async def polled(client: AsyncOpenAI, response: str) -> Response:
    """The response once it has ended."""
    end_s = time.monotonic() + 20
    while (found := await client.responses.retrieve(response)).status in {"queued", "in_progress"}:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)
    return found
