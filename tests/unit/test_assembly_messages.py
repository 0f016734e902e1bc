"""Anthropic's events → the whole message."""

from __future__ import annotations

import json
from typing import Any

from api.assembly_messages import to_message


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(f"id: 7-aa\nevent: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events)


def start(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **more}}


def test_texts_thoughts_and_tool_calls_become_blocks_in_their_order() -> None:
    begun = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m"}
    events = [
        {"type": "message_start", "message": {**begun, "stop_reason": None, "usage": {"input_tokens": 3}}},
        {"type": "ping"},
        start(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="Let "),
        delta(0, "thinking_delta", thinking="me"),
        delta(0, "signature_delta", signature="s"),
        {"type": "content_block_stop", "index": 0},
        start(1, type="text", text=""),
        delta(1, "text_delta", text="Hal"),
        delta(1, "text_delta", text="lo"),
        start(2, type="tool_use", id="t", name="look", input={}),
        delta(2, "input_json_delta", partial_json='{"at": '),
        delta(2, "input_json_delta", partial_json="7}"),
        start(3, type="tool_use", id="u", name="wait", input={}),
        delta(3, "input_json_delta", partial_json=""),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    whole = json.loads(to_message(stream(*events)))
    assert whole == {
        **begun,
        "content": [
            {"type": "thinking", "thinking": "Let me", "signature": "s"},
            {"type": "text", "text": "Hallo"},
            {"type": "tool_use", "id": "t", "name": "look", "input": {"at": 7}},
            {"type": "tool_use", "id": "u", "name": "wait", "input": {}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 9},
    }
