"""The events of Anthropic's messages → the whole message, for those who come back for an answer that was a stream."""

from __future__ import annotations

from typing import Any

import msgspec

from api.assembly import events_of

_GROWS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
"""Type of a delta → the field of its block that it makes longer; the delta has it under the same name."""


def to_message(stream: bytes) -> bytes:
    """The body of a whole message from the events of its stream. A call that broke off has no input."""
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    inputs: dict[int, str] = {}
    for event in map(msgspec.json.decode, events_of(stream)):
        kind, index = event.get("type"), event.get("index", 0)
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            blocks[index] = event["content_block"]
        elif kind == "content_block_delta" and event["delta"]["type"] == "input_json_delta":
            inputs[index] = inputs.get(index, "") + event["delta"]["partial_json"]
        elif kind == "content_block_delta":
            _grow(blocks[index], event["delta"])
        elif kind == "message_delta":
            usage = {**(message.get("usage") or {}), **(event.get("usage") or {})}
            message |= {**event["delta"], "usage": usage}
    for index, text in inputs.items():
        blocks[index]["input"] = _input(text)
    return msgspec.json.encode({**message, "content": [blocks[index] for index in sorted(blocks)]})


def _input(text: str) -> Any:
    try:
        return msgspec.json.decode(text) if text else {}
    except msgspec.DecodeError:
        return {}


def _grow(block: dict[str, Any], delta: dict[str, Any]) -> None:
    name = _GROWS.get(delta["type"])
    if name is not None:
        block[name] = (block.get(name) or "") + delta[name]
