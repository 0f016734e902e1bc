"""What the simulated engine says: the text of every token, and the JSON around it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec


def token_id(rid: str, index: int) -> int:
    """The token at `index` (from 0) of the answer to request `rid`: 0..999999."""
    return zlib.crc32(f"{rid}:{index}".encode()) % 1_000_000


def token_text(rid: str, index: int) -> str:
    """The text of that token: a blank and six digits."""
    return f" {token_id(rid, index):06d}"


def answer_text(rid: str, tokens: int) -> str:
    """The whole answer to request `rid`, `tokens` long."""
    return "".join(token_text(rid, index) for index in range(tokens))


def clock_text(rid: str, index: int) -> str:
    """The moment at which the token is made: `~` and 13 hexadecimal digits of the monotonic clock, in microseconds."""
    del rid, index
    return f"~{time.monotonic_ns() // 1000:013x}"


_SIGNS = str.maketrans("0123456789", "äßçéκЖ漢字🔢🚀")


def sign_text(rid: str, index: int) -> str:
    """The token with a character of two to four bytes for each digit."""
    return token_text(rid, index).translate(_SIGNS)


TEXTS: dict[str, Callable[[str, int], str]] = {"seeded": token_text, "clock": clock_text, "signs": sign_text}


Form = Literal["chat", "text", "message", "response"]
"""The shape of an answer: OpenAI's chat completion or completion, or Anthropic's message."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request, understood. `response`: the body of one for a response."""

    rid: str
    form: Form
    tokens: int
    prompt_tokens: int
    stream: bool
    usage: bool
    created: int
    response: dict[str, Any] | None = None


def _usage(job: Job) -> dict[str, int]:
    return {
        "prompt_tokens": job.prompt_tokens,
        "total_tokens": job.prompt_tokens + job.tokens,
        "completion_tokens": job.tokens,
    }


def _outline(job: Job, model: str, kind: str) -> dict[str, Any]:
    prefix = "chatcmpl" if job.form == "chat" else "cmpl"
    return {"id": f"{prefix}-{job.rid}", "object": kind, "created": job.created, "model": model}


def _message(job: Job, model: str) -> dict[str, Any]:
    fixed = {"id": f"chatcmpl-{job.rid}", "type": "message", "role": "assistant", "model": model}
    return {**fixed, "content": [], "stop_reason": None, "stop_sequence": None}


def _message_usage(job: Job, tokens: int) -> dict[str, int]:
    return {"input_tokens": job.prompt_tokens, "output_tokens": tokens}


def completion(job: Job, model: str, text: str) -> dict[str, Any]:
    """The body of an answer that is not a stream."""
    if job.form == "message":
        content = [{"type": "text", "text": text}]
        usage = _message_usage(job, job.tokens)
        return {**_message(job, model), "content": content, "stop_reason": "max_tokens", "usage": usage}
    end = {"index": 0, "logprobs": None, "finish_reason": "length"}
    if job.form == "chat":
        choice = {**end, "message": {"role": "assistant", "content": text}}
        return {**_outline(job, model, "chat.completion"), "choices": [choice], "usage": _usage(job)}
    return {**_outline(job, model, "text_completion"), "choices": [{**end, "text": text}], "usage": _usage(job)}


def head_events(job: Job, model: str) -> list[bytes]:
    """The events before the first token."""
    if job.form != "message":
        return []
    start = {"type": "message_start", "message": {**_message(job, model), "usage": _message_usage(job, 0)}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    return [_named(start), _named(block)]


def chunk_template(job: Job, model: str) -> tuple[bytes, bytes]:
    """What stands before and behind a token's text in its event: JSON per token would cost more than relaying it."""
    mark = "\x00"
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None}
    if job.form == "message":
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": mark}}
        front, back = _named(delta).split(msgspec.json.encode(mark)[1:-1])
        return front, back
    if job.form == "chat":
        chunk = {**_outline(job, model, "chat.completion.chunk"), "choices": [{**choice, "delta": {"content": mark}}]}
    else:
        chunk = {**_outline(job, model, "text_completion"), "choices": [{**choice, "text": mark}]}
    front, back = msgspec.json.encode(chunk).split(msgspec.json.encode(mark)[1:-1])
    return b"data: " + front, back + b"\n\n"


def tail_events(job: Job, model: str) -> list[bytes]:
    """The events behind the last token: finish reason, usage if asked for, [DONE]."""
    if job.form == "message":
        end = {"stop_reason": "max_tokens", "stop_sequence": None}
        usage = _message_usage(job, job.tokens)
        last = {"type": "message_delta", "delta": end, "usage": usage}
        return [_named({"type": "content_block_stop", "index": 0}), _named(last), _named({"type": "message_stop"})]
    chat = job.form == "chat"
    kind = "chat.completion.chunk" if chat else "text_completion"
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length", **({"delta": {}} if chat else {"text": ""})}
    chunks = [{**_outline(job, model, kind), "choices": [choice]}]
    if job.usage:
        chunks.append({**_outline(job, model, kind), "choices": [], "usage": _usage(job)})
    return [*(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"]


def _named(event: dict[str, Any]) -> bytes:
    """An event in Anthropic's form, which says its type twice."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
