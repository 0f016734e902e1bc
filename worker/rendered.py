"""What a stream of chunks says, however it is cut into events.

Two renderings of one generation differ in where their events are cut, in the ids that vLLM draws for tool calls, and in
when they were made. So they are compared by what a client accumulates from them: for each choice the text, the
reasoning, the tool calls, the tokens, the finish reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec

from worker.rendered_responses import PREFIX, parts_of_event

Part = tuple[tuple[object, ...], str | list[Any]]
"""What an event adds to one thing that a client accumulates: which thing, and the text or the items."""

SEPARATOR = b"\n\n"
_CREATED = re.compile(rb'"created":(\d+)')
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_TEXTS = ("content", "reasoning", "reasoning_content", "refusal")


class Delivered:
    """What was delivered, and how much of it has been rendered again."""

    def __init__(self, data: bytes) -> None:
        """`data`: whole events. Raises ValueError when they are not chunks of a completion."""
        events = data.split(SEPARATOR)
        if events.pop():
            raise ValueError("an event is cut off")
        pieces: dict[tuple[object, ...], list[Any]] = {}
        for event in events:
            for key, value in parts_of(event):
                pieces.setdefault(key, []).append(value)
        self._whole = {
            key: "".join(values) if isinstance(values[0], str) else list(chain.from_iterable(values))
            for key, values in pieces.items()
        }
        self._at = dict.fromkeys(self._whole, 0)
        self._left = sum(map(len, self._whole.values()))

    @property
    def rendered(self) -> bool:
        """Whether all of it has been rendered again."""
        return not self._left

    def take(self, event: bytes) -> bool:
        """Whether `event` says only what comes next in what was delivered; it then counts as rendered.

        Raises ValueError when it is no chunk of a completion.
        """
        parts = list(parts_of(event))
        for key, value in parts:
            at = self._at.get(key, 0)
            if self._whole.get(key, "")[at : at + len(value)] != value:
                return False
        for key, value in parts:
            self._at[key] += len(value)
            self._left -= len(value)
        return True


def created_of(data: bytes) -> bytes | None:
    """The first time of creation that these events name, as it stands there."""
    found = _CREATED.search(data)
    return found.group(0) if found else None


def parts_of(event: bytes) -> Iterator[Part]:
    """What one event adds; nothing for a comment. Raises ValueError when it is no chunk of a completion.

    An event that has a name is one of a response, or of Anthropic's.
    """
    if not event or event.startswith(b":"):
        return
    named, _, data = (b"", b"", event[6:]) if event.startswith(b"data: ") else event.partition(b"data: ")
    if not data or (named and not named.startswith(b"event: ")):
        raise ValueError("not an event of a completion")
    if data == b"[DONE]":
        yield ("done",), [True]
        return
    try:
        parts = parts_of_event if named.startswith(PREFIX) else _message_parts if named else _parts
        for key, value in parts(_decode(data)):
            if value:
                yield key, value
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("an event of another shape than a completion's") from error


def _parts(chunk: dict[str, Any]) -> Iterator[Part]:
    choices = chunk.get("choices") or []
    if "error" in chunk:
        yield ("error",), [chunk["error"]]
    for name in ("prompt_token_ids", "prompt_text"):
        yield (name,), _scalar(chunk.get(name))
    usage = chunk.get("usage")
    if usage and not choices:
        yield ("usage",), [(usage.get("prompt_tokens"), usage.get("completion_tokens"))]
    for choice in choices:
        yield from _choice_parts(choice.get("index", 0), choice)


def _choice_parts(index: int, choice: dict[str, Any]) -> Iterator[Part]:
    delta = choice.get("delta") or {}
    yield (index, "text"), choice.get("text") or ""
    yield (index, "role"), _scalar(delta.get("role"))
    for name in _TEXTS:
        yield (index, name), delta.get(name) or ""
    for call in delta.get("tool_calls") or ():
        yield from _call_parts(index, call)
    yield (index, "token_ids"), choice.get("token_ids") or []
    yield (index, "logprobs"), _logprob_tokens(choice.get("logprobs"))
    for name in ("finish_reason", "stop_reason", "prompt_token_ids"):
        yield (index, name), _scalar(choice.get(name))


def _call_parts(index: int, call: dict[str, Any]) -> Iterator[Part]:
    """A tool call's id is drawn at random and stands only in its first event: that there is one is compared."""
    number, function = call.get("index", 0), call.get("function") or {}
    yield (index, "call", number, "id"), [True] if call.get("id") else []
    yield (index, "call", number, "name"), function.get("name") or ""
    yield (index, "call", number, "arguments"), function.get("arguments") or ""


def _logprob_tokens(logprobs: dict[str, Any] | None) -> list[Any]:
    """The tokens. Their probabilities differ in the last digits with what else was in the batch."""
    if not logprobs:
        return []
    return logprobs.get("tokens") or [entry.get("token") for entry in logprobs.get("content") or ()]


def _scalar(value: object) -> list[Any]:
    return [] if value is None else [value]


def _message_parts(event: dict[str, Any]) -> Iterator[Part]:
    """Of an event in Anthropic's form. Ids and signatures are drawn at random: that there is one is compared."""
    kind, index = event["type"], event.get("index", 0)
    usage = event.get("usage") or {}
    if kind == "message_start":
        yield (kind,), [event["message"]["usage"]["input_tokens"]]
    elif kind == "content_block_start":
        block = event["content_block"]
        yield (index, kind), [(block["type"], block.get("name"))]
        for name in ("text", "thinking"):
            yield (index, name), block.get(name) or ""
    elif kind == "content_block_delta":
        delta = event["delta"]
        yield (index, "signature"), [True] if delta["type"] == "signature_delta" else []
        for name in ("text", "thinking", "partial_json"):
            yield (index, name), delta.get(name) or ""
    elif kind == "message_delta":
        reason = event["delta"].get("stop_reason"), event["delta"].get("stop_sequence")
        yield (kind,), [(reason, usage.get("input_tokens"), usage.get("output_tokens"))]
    elif kind != "ping":
        yield (index, kind), [event.get("error", True)]
