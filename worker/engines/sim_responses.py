"""The simulated engine's answers on /v1/responses: vLLM's events, in vLLM's order and with vLLM's fields.

Like vLLM 0.32 it draws the ids of things at random, says `response.completed` also of an answer that was cut off, and
tells nothing of `metadata`. A message is the answer's tokens; a request that must call a tool gets one call of it, with
the tokens as its argument.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from worker.engines.sim_answers import Job

PATH = "/v1/responses"
DEFAULT_TOKENS = 32
_encode = msgspec.json.encode
Event = dict[str, Any]


class Events:
    """The events of one answer, numbered."""

    def __init__(self, job: Job, model: str, fields: dict[str, Any]) -> None:
        self._job = job
        self._model = model
        self._fields = fields
        self._id = "resp_" + os.urandom(8).hex()
        self._number = 0
        self._said: list[str] = []
        self._tool = _tool(fields)
        self._call = {"id": "fc_" + os.urandom(8).hex(), "call_id": "call_" + os.urandom(8).hex()}
        self._message_id = "msg_" + os.urandom(8).hex()

    def begun(self) -> Iterator[bytes]:
        """What comes before the prompt has been read."""
        response = self._response("in_progress", [], None)
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def opening(self) -> Iterator[bytes]:
        """What comes before the first token."""
        if self._tool is not None:
            yield self._event("response.output_item.added", output_index=0, item=self._call_item("", "in_progress"))
            yield self._delta('{"text":"')
            return
        item = {"id": self._message_id, "content": [], "role": "assistant", "status": "in_progress", "type": "message"}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place, part=_part(""))

    def token(self, text: str) -> bytes:
        """The event of one token."""
        self._said.append(text)
        return self._delta(text)

    def _delta(self, text: str) -> bytes:
        if self._tool is not None:
            kind = "response.function_call_arguments.delta"
            return self._event(kind, delta=text, item_id=self._call["id"], output_index=0)
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def tail(self) -> Iterator[bytes]:
        """What comes after the last token."""
        text = "".join(self._said)
        cut = self._fields.get("max_output_tokens") is not None
        if self._tool is not None:
            yield self._delta('"}')
            item = self._call_item('{"text":"%s"}' % text, "completed")  # noqa: UP031 - braces
            arguments = {"arguments": item["arguments"], "name": self._tool, "item_id": self._call["id"]}
            yield self._event("response.function_call_arguments.done", **arguments, output_index=0)
        else:
            item = _message(self._message_id, text)
            yield self._event("response.output_text.done", **self._place, text=text, logprobs=[])
            yield self._event("response.content_part.done", **self._place, part=_part(text))
        yield self._event("response.output_item.done", output_index=0, item=item)
        job = self._job
        usage = {
            "input_tokens": job.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": job.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": job.prompt_tokens + job.tokens,
        }
        response = self._response("incomplete" if cut else "completed", [item], usage)
        if cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        yield self._event("response.completed", response=response)

    @property
    def _place(self) -> Event:
        return {"content_index": 0, "item_id": self._message_id, "output_index": 0}

    def _call_item(self, arguments: str, status: str) -> Event:
        return {**self._call, "arguments": arguments, "name": self._tool, "type": "function_call", "status": status}

    def _event(self, kind: str, **event: Any) -> bytes:
        body = _encode({**event, "sequence_number": self._number, "type": kind})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    def _response(self, status: str, output: list[Any], usage: Event | None) -> Event:
        fields = self._fields
        return {
            "id": self._id,
            "created_at": self._job.created,
            "incomplete_details": None,
            "instructions": fields.get("instructions"),
            "metadata": None,
            "model": self._model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": True,
            "temperature": fields.get("temperature", 1.0),
            "tool_choice": fields.get("tool_choice") or "auto",
            "tools": fields.get("tools") or [],
            "top_p": fields.get("top_p", 1.0),
            "background": False,
            "max_output_tokens": self._job.tokens,
            "previous_response_id": None,
            "service_tier": "auto",
            "status": status,
            "text": fields.get("text"),
            "truncation": "disabled",
            "usage": usage,
        }


def whole(job: Job, model: str, fields: dict[str, Any], text: Callable[[int], str]) -> bytes:
    """The body of an answer that is not a stream."""
    events = Events(job, model, fields)
    for index in range(job.tokens):
        events.token(text(index))
    *_, last = events.tail()
    return _encode(msgspec.json.decode(last.partition(b"\ndata: ")[2])["response"])


def _part(text: str) -> Event:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


def _message(name: str, text: str) -> Event:
    return {"id": name, "content": [_part(text)], "role": "assistant", "status": "completed", "type": "message"}


def _tool(fields: dict[str, Any]) -> str | None:
    """The tool that must be called, if any."""
    choice, tools = fields.get("tool_choice"), fields.get("tools")
    if isinstance(choice, dict):
        return str(choice.get("name"))
    return str(tools[0]["name"]) if choice == "required" and tools else None
