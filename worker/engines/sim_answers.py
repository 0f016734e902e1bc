"""What the simulated engine says: the text of every token, and the JSON around it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


TEXTS: dict[str, Callable[[str, int], str]] = {"seeded": token_text, "clock": clock_text}


@dataclass(frozen=True, slots=True)
class Job:
    """A request, understood. `response`: the body of one for a response."""

    rid: str
    chat: bool
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
    prefix = "chatcmpl" if job.chat else "cmpl"
    return {"id": f"{prefix}-{job.rid}", "object": kind, "created": job.created, "model": model}


def completion(job: Job, model: str, text: str) -> dict[str, Any]:
    """The body of an answer that is not a stream."""
    end = {"index": 0, "logprobs": None, "finish_reason": "length"}
    if job.chat:
        choice = {**end, "message": {"role": "assistant", "content": text}}
        return {**_outline(job, model, "chat.completion"), "choices": [choice], "usage": _usage(job)}
    return {**_outline(job, model, "text_completion"), "choices": [{**end, "text": text}], "usage": _usage(job)}


def chunk_template(job: Job, model: str) -> tuple[bytes, bytes]:
    """What stands before and behind a token's text in its event: JSON per token would cost more than relaying it."""
    mark = "\x00"
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None}
    if job.chat:
        chunk = {**_outline(job, model, "chat.completion.chunk"), "choices": [{**choice, "delta": {"content": mark}}]}
    else:
        chunk = {**_outline(job, model, "text_completion"), "choices": [{**choice, "text": mark}]}
    front, back = msgspec.json.encode(chunk).split(msgspec.json.encode(mark)[1:-1])
    return b"data: " + front, back + b"\n\n"


def tail_events(job: Job, model: str) -> list[bytes]:
    """The events behind the last token: finish reason, usage if asked for, [DONE]."""
    kind = "chat.completion.chunk" if job.chat else "text_completion"
    end: dict[str, Any] = {"index": 0, "finish_reason": "length", **({"delta": {}} if job.chat else {"text": ""})}
    chunks = [{**_outline(job, model, kind), "choices": [end]}]
    if job.usage:
        chunks.append({**_outline(job, model, kind), "choices": [], "usage": _usage(job)})
    return [*(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"]
