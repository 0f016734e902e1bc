"""A stream's chunks → the whole answer, and a whole answer → chunks, in OpenAI's shapes.

For readers that want an answer in the other form than the one in which it was first asked for. What both forms know is
kept, also fields that only vLLM has; the order of fields is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from shared.wire import Usage

DONE = b"data: [DONE]\n\n"
_CHAT, _CHAT_CHUNK, _TEXT = "chat.completion", "chat.completion.chunk", "text_completion"
_ONCE = frozenset({"role", "id", "type", "index"})
_decode = msgspec.json.decode


def events_of(stream: bytes) -> Iterator[bytes]:
    """The data of each event, without the `data: `."""
    for block in stream.split(b"\n\n"):
        data = b""
        for line in block.split(b"\n"):
            if line.startswith(b"data: "):
                data = line[6:]
        if data:
            yield data


def usage_object(usage: Usage) -> dict[str, int]:
    """OpenAI's `usage`."""
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": total,
        "completion_tokens": usage.completion_tokens,
    }


def is_usage_chunk(data: bytes) -> bool:
    """Whether an event is the one that carries the usage and no choice."""
    return b'"choices":[]' in data.replace(b": ", b":") and b'"usage"' in data


def usage_chunk(last: dict[str, Any], usage: Usage) -> bytes:
    """The event that carries the usage, after the chunk `last`."""
    return _event({**_outline(last), "choices": [], "usage": usage_object(usage)})


def timing_chunk(last: dict[str, Any], timing: dict[str, Any]) -> bytes:
    """The event that says how long what took, after the chunk `last`."""
    return _event({**_outline(last), "choices": [], "timing": timing})


def _outline(chunk: dict[str, Any]) -> dict[str, Any]:
    return {name: chunk[name] for name in ("id", "object", "created", "model") if name in chunk}


# ---- chunks to a whole


def to_whole(stream: bytes, usage: Usage | None) -> bytes:
    """The body of a whole answer from all events of its stream; `usage` stands in for a stream that has none."""
    chunks = [_decode(data) for data in events_of(stream) if data != b"[DONE]"]
    first: dict[str, Any] = chunks[0] if chunks else {}
    chat = first.get("object") != _TEXT
    choices: dict[int, dict[str, Any]] = {}
    counted = usage_object(usage) if usage else None
    for chunk in chunks:
        counted = chunk.get("usage") or counted
        for choice in chunk.get("choices", ()):
            _add_choice(choices.setdefault(choice.get("index", 0), {}), choice, chat=chat)
    whole = {name: value for name, value in first.items() if name not in {"choices", "usage"}}
    ordered = [_finished(choices[index], index, chat=chat) for index in sorted(choices)]
    whole |= {"object": _CHAT if chat else _TEXT, "choices": ordered, "usage": counted}
    return msgspec.json.encode(whole)


def to_plain(body: bytes) -> bytes:
    """What /generate answers, from the body of a whole completion."""
    completion = _decode(body)
    choice = completion["choices"][0]
    return msgspec.json.encode(
        {
            "text": choice["text"],
            "model": completion["model"],
            "finish_reason": choice["finish_reason"],
            "usage": completion["usage"],
        }
    )


def _add_choice(into: dict[str, Any], choice: dict[str, Any], *, chat: bool) -> None:
    part = {name: value for name, value in choice.items() if name not in {"delta", "index"}}
    if chat:
        part["message"] = choice.get("delta") or {}
    elif "text" not in part:
        part["text"] = ""
    for name in ("finish_reason", "stop_reason"):  # words, not text that grows
        if (value := part.pop(name, None)) is not None:
            into[name] = value
    _merge(into, part)


def _merge(into: dict[str, Any], part: dict[str, Any]) -> None:
    """Adds a delta to what there is: texts and lists grow, items with an `index` find their like."""
    for name, value in part.items():
        known = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif isinstance(value, dict):
            if known is None:
                into[name] = {}
            _merge(into[name], value)
        elif isinstance(value, list):
            into[name] = _merged_list(known or [], value)
        elif isinstance(value, str) and isinstance(known, str) and name not in _ONCE:
            into[name] = known + value
        else:
            into[name] = value


def _merged_list(known: list[Any], more: list[Any]) -> list[Any]:
    merged = list(known)
    for item in more:
        index = item.get("index") if isinstance(item, dict) else None
        if not isinstance(index, int):  # token texts are keys in some lists, and one of them may be "index"
            index = None
        like = next(
            (old for old in merged if index is not None and isinstance(old, dict) and old.get("index") == index), None
        )
        if like is not None:
            _merge(like, item)
        elif index is not None:
            fresh: dict[str, Any] = {}
            _merge(fresh, item)
            merged.append(fresh)
        else:
            merged.append(item)
    return merged


def _finished(choice: dict[str, Any], index: int, *, chat: bool) -> dict[str, Any]:
    done = {"index": index, "logprobs": None, "finish_reason": None, **choice}
    if chat:
        message = {"role": "assistant", "content": None, **choice.get("message", {})}
        calls = message.get("tool_calls")
        if calls:
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
        if message["content"] == "" and calls:
            message["content"] = None
        done["message"] = message
    return done


# ---- a whole to chunks


def to_chunks(body: bytes, *, usage: bool) -> list[bytes]:
    """The events of a stream that says what the whole answer in `body` says; `usage`: also how many tokens.

    What is no completion, such as embeddings, is one event.
    """
    whole = _decode(body)
    if whole.get("object") not in {_CHAT, _TEXT}:
        return [_event(whole), DONE]
    chat = whole.get("object") == _CHAT
    outline = {name: value for name, value in whole.items() if name not in {"choices", "usage"}}
    outline["object"] = _CHAT_CHUNK if chat else _TEXT
    events = []
    for choice in whole.get("choices", ()):
        parts = _chat_parts(choice) if chat else [choice]
        events += [_event({**outline, "choices": [part]}) for part in parts]
    if usage and whole.get("usage"):
        events.append(_event({**outline, "choices": [], "usage": whole["usage"]}))
    return [*events, DONE]


def _chat_parts(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    message = dict(choice.get("message") or {})
    index = choice.get("index", 0)
    yield {"index": index, "delta": {"role": message.pop("role", "assistant"), "content": ""}, "finish_reason": None}
    delta = {name: value for name, value in message.items() if value not in (None, [], "")}
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(delta["tool_calls"])]
    if delta:
        middle = {"index": index, "delta": delta, "finish_reason": None}
        if choice.get("logprobs"):
            middle["logprobs"] = choice["logprobs"]
        yield middle
    rest = {name: value for name, value in choice.items() if name not in {"message", "logprobs"}}
    yield {**rest, "delta": {}}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(value)
