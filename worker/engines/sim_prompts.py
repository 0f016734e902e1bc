"""How the simulated engine reads a prompt: a token is what stands between blanks.

Its tokenizer is a `tokenizer.json` like any other, so that replicas count its prompts as they count a model's.
"""

from __future__ import annotations

import json
import re
from typing import Any

from worker.engines.base import Tokenizer

_WORD = re.compile(r"[^ \t\r\n]+")
_CHAT_TOKENS = 2
_MESSAGE_TOKENS = 3
TOKENIZER = Tokenizer(
    json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "[ \\t\\r\\n]+"},
                "behavior": "Removed",
                "invert": False,
            },
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
        }
    ),
    chat=_CHAT_TOKENS,
    message=_MESSAGE_TOKENS,
)


def _items(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation that a request for a response brings."""
    sent, instructions = fields["input"], fields.get("instructions")
    items = [{"content": sent}] if isinstance(sent, str) else [item for item in sent if isinstance(item, dict)]
    return [{"content": instructions}, *items] if instructions else items


def prompt_tokens(fields: dict[str, Any]) -> int:
    """Tokens of all prompts in a request's body: of its conversation, or of its prompts, be they texts or token ids."""
    messages = _items(fields) if "input" in fields else fields.get("messages")
    if isinstance(messages, list):
        system = fields.get("system")
        turns = [message.get("content") for message in messages if isinstance(message, dict)]
        if system:
            turns.append(system)
        return _CHAT_TOKENS + sum(_MESSAGE_TOKENS + _words(content) for content in turns)
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return len(prompt)
    return sum(map(_tokens, prompt)) if isinstance(prompt, list) else _tokens(prompt)


def words_of(text: str) -> list[str]:
    """A text's tokens, as texts."""
    return _WORD.findall(text)


def texts_of(messages: list[Any]) -> list[str]:
    """The texts of a conversation."""
    found = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        found += [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return found


def _tokens(prompt: object) -> int:
    return len(prompt) if isinstance(prompt, list) else _words(prompt)


def _words(content: object) -> int:
    """Words of a text, or of the parts of a message that are texts."""
    if isinstance(content, list):
        return sum(_words(part.get("text")) for part in content if isinstance(part, dict))
    return len(words_of(content)) if isinstance(content, str) else 0
