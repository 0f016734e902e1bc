"""What vLLM finds wrong with a message whose stream it has opened.

On `/v1/chat/completions` that is an event with vLLM's error; `/v1/messages` is made of the same events, and its
converter stumbles over that one: the client would be told of a chunk that cannot be parsed, with status 500. So the
error is kept from the converter and told in Anthropic's form, with its words and its status; the replica makes it the
response's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable

Events = AsyncGenerator[str, None]

_ERROR = 'data: {"error":'


def tell_errors(convert: Callable[[Events], Events]) -> Callable[[Events], Events]:
    """VLLM's converter of chat events to Anthropic's, for streams that may break off with an error."""

    async def converted(chat: Events) -> Events:
        found: list[str] = []

        async def before_error() -> Events:
            async for event in chat:
                if event.startswith(_ERROR):
                    found.append(event)
                    return
                yield event

        async for event in convert(before_error()):
            yield event
        if found:
            yield _in_anthropics_form(found[0])

    return converted


def _in_anthropics_form(event: str) -> str:
    told = json.loads(event.removeprefix("data: "))["error"]
    error = {"type": told.get("type"), "message": told.get("message"), "code": told.get("code")}
    return f"event: error\ndata: {json.dumps({'type': 'error', 'error': error}, separators=(',', ':'))}\n\n"
