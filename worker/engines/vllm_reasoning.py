"""Reasoning under both of its names.

vLLM says `reasoning`; many clients still look for `reasoning_content`, its older name. Answers of models that reason
get both. Other models' answers do not come through here.
"""

from __future__ import annotations

import re

from starlette.types import Message, Send

PATH = "/v1/chat/completions"
_NAME = b'"reasoning":"'
_FIELD = re.compile(rb'"reasoning":("[^"\\]*(?:\\.[^"\\]*)*")')
"""Inside a string the quotes would be escaped, so this is always a field; vLLM writes JSON without blanks."""


def both_names(body: bytes) -> bytes:
    """JSON in which every `reasoning` that has a text is there as `reasoning_content`, too."""
    return _FIELD.sub(rb'"reasoning":\1,"reasoning_content":\1', body) if _NAME in body else body


def sending_both(send: Send) -> Send:
    """`send`, for an application whose answer is a chat completion. Each event is one message, as vLLM sends them."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body" and _NAME in message.get("body", b""):
            message = {**message, "body": both_names(message["body"])}
        await send(message)

    return sent
