"""Reasoning under both of its names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import Message

from worker.engines.vllm_reasoning import both_names, sending_both

TEXTS = ["hm", "", 'she said "reasoning":"no"', "a\\b\n\\", '\\"', "schön \u20ac", '"reasoning":"x"\\']


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("text", TEXTS)
def test_reasoning_is_there_twice_and_nothing_else_changes(text: str) -> None:
    delta = {"role": "assistant", "reasoning": text, "content": text, "tool_calls": [{"arguments": text}]}
    assert json.loads(both_names(compact(delta))) == {**delta, "reasoning_content": text}


@pytest.mark.parametrize("text", TEXTS)
def test_what_has_no_reasoning_stays_as_it_is(text: str) -> None:
    for delta in ({"content": text}, {"content": text, "reasoning": None}):
        assert both_names(compact(delta)) == compact(delta)


async def test_heads_and_ends_pass() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    both = sending_both(send)
    messages: list[Message] = [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b'data: {"reasoning":"a"}\n\n', "more_body": True},
        {"type": "http.response.body"},
    ]
    for message in messages:
        await both(message)
    assert sent[0] is messages[0]
    assert sent[1] == {**messages[1], "body": b'data: {"reasoning":"a","reasoning_content":"a"}\n\n'}
    assert sent[2] is messages[2]
