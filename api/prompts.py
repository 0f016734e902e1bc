"""What of a request the model will read: texts, token ids, other media. Counted by `tokens.py`.

What has no place in a request is left to the engine to refuse.

Left out, because vLLM puts it into no prompt or only a few templates do: `response_format`, `documents`, the reasoning
of earlier turns, names of speakers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shared.tokenizer import tools_text

_MOST_TEXTS = 1024


@dataclass(frozen=True, slots=True)
class Prompt:
    """The model's input.

    Attributes:
        texts: of the messages, or the prompts themselves.
        tools: the text of the tools that the model may call.
        ids: how many tokens came as ids.
        media: images, sounds and other parts that are no text.
        messages: of the conversation; 0 for a completion.
        parts: whether there is anything but plain texts and token ids: then `media.py` has to look at it.
        prompts: of a completion, which come as texts; 0 for a conversation.
    """

    texts: tuple[str, ...] = ()
    tools: str = ""
    ids: int = 0
    media: int = 0
    messages: int = 0
    prompts: int = 0
    parts: bool = False


NOTHING = Prompt()


def of_chat(fields: dict[str, Any]) -> Prompt:
    """The prompt of a conversation."""
    texts: list[str] = []
    media = 0
    parts = False
    for message in fields["messages"]:
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            parts = True
            found = [text_of(part) for part in content]
            texts += [text for text in found if text is not None]
            media += found.count(None)
        if message.get("tool_calls"):
            texts += _calls(message["tool_calls"])
    tools = fields.get("tools")
    return Prompt(
        few(texts),
        tools_text(tools) if tools and isinstance(tools, list) else "",
        media=media,
        messages=len(fields["messages"]),
        parts=parts,
    )


def of_completion(fields: dict[str, Any]) -> Prompt:
    """The prompts of a completion: one text or several, token ids or several lists of them, embeddings."""
    prompt, embedded = fields.get("prompt"), fields.get("prompt_embeds")
    media = len(embedded) if isinstance(embedded, list) else int(embedded is not None)
    if isinstance(prompt, str):
        return Prompt((prompt,), media=media, prompts=1)
    if not isinstance(prompt, list):
        return Prompt(media=media)
    if prompt and isinstance(prompt[0], int):
        return Prompt(ids=len(prompt), media=media)
    texts = [one for one in prompt if isinstance(one, str)]
    ids = sum(len(one) for one in prompt if isinstance(one, list))
    return Prompt(few(texts), ids=ids, media=media, prompts=len(texts))


def of_messages(fields: dict[str, Any]) -> Prompt:
    """The prompt of a conversation in Anthropic's form."""
    texts: list[str] = []
    media = 0
    turns = [message.get("content") for message in fields["messages"] if isinstance(message, dict)]
    for content in (fields.get("system"), *turns):
        found = list(_blocks(content))
        texts += [text for text in found if text is not None]
        media += found.count(None)
    tools = fields.get("tools")
    return Prompt(
        few(texts),
        tools_text(tools) if tools and isinstance(tools, list) else "",
        media=media,
        messages=len(fields["messages"]) + bool(fields.get("system")),
        parts=any(isinstance(content, list | dict) for content in (fields.get("system"), *turns)),
    )


def of_inputs(*inputs: object) -> Prompt:
    """Texts, token ids or lists of either that are read one by one and continued by nothing."""
    texts: list[str] = []
    ids = media = 0
    for one in inputs:
        items = one if isinstance(one, list) and not (one and isinstance(one[0], int)) else [one]
        for item in items:
            if isinstance(item, str):
                texts.append(item)
            elif isinstance(item, list):
                ids += len(item)
            else:
                media += item is not None
    parts = any(isinstance(one, dict) for item in inputs for one in (item if isinstance(item, list) else [item]))
    return Prompt(few(texts), ids=ids, media=media, prompts=len(texts), parts=parts)


def _blocks(content: object) -> Iterator[str | None]:
    """The texts of Anthropic's content blocks; None for what is another medium."""
    if isinstance(content, str):
        yield content
        return
    for block in content if isinstance(content, list) else ():
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            yield from _blocks(block.get("content"))
        elif kind == "tool_use":
            yield f"{block.get('name')} {json.dumps(block.get('input'), ensure_ascii=False)}"
        elif kind != "thinking":  # earlier thoughts: few templates show them
            yield text_of(block)


def text_of(part: object) -> str | None:
    """The text of a message's part; None when it is another medium."""
    text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
    return text if isinstance(text, str) else None


def _calls(calls: object) -> Iterator[str]:
    """The texts of an answer's tool calls."""
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield from (text for text in (function.get("name"), function.get("arguments")) if isinstance(text, str))


def few(texts: list[str]) -> tuple[str, ...]:
    """The texts; very many, which no conversation has, as one, so that they cost what one costs."""
    return tuple(texts) if len(texts) <= _MOST_TEXTS else ("\n".join(texts),)
