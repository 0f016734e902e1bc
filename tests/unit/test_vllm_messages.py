"""An error in the stream of a message is told in Anthropic's form, behind what was said."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

from api.problems import of_first_event
from worker.engines.vllm_messages import tell_errors

ERROR = {"message": "bad grammar", "type": "BadRequestError", "param": None, "code": 400}
FAULT = f"data: {json.dumps({'error': ERROR})}\n\n"


async def chat(*events: str) -> AsyncGenerator[str, None]:
    for event in events:
        yield event


async def convert(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """As vLLM's converter: one event for each, and none for an error."""
    async for event in events:
        assert "error" not in event
        yield event.upper()


async def test_an_error_at_once_is_the_only_event_and_keeps_its_status() -> None:
    (told,) = [event async for event in tell_errors(convert)(chat(FAULT, "data: [DONE]\n\n"))]
    refusal = of_first_event(b"id: 77-abc\n" + told.encode())
    assert refusal is not None
    assert (refusal.status, refusal.message) == (400, "bad grammar")


async def test_an_error_later_stands_behind_what_was_said() -> None:
    told = [event async for event in tell_errors(convert)(chat("data: a\n\n", FAULT, "data: b\n\n"))]
    assert told[0] == "DATA: A\n\n"
    assert told[1].startswith("event: error\ndata: ")
    assert len(told) == 2


async def test_a_stream_without_an_error_passes() -> None:
    told = [event async for event in tell_errors(convert)(chat("data: a\n\n", "data: b\n\n"))]
    assert told == ["DATA: A\n\n", "DATA: B\n\n"]
