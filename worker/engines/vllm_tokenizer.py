"""How others can count the prompts of a vLLM engine: its fast tokenizer, and what its chat template adds.

The template is not given away: vLLM's own `/tokenize` says what a few small conversations come to, whatever renders
them, and the difference to their texts is what the template adds. Prompts that a template treats in another way than
these (a default system prompt that one of the client's replaces, reasoning that is dropped from earlier turns) are
counted by a few tokens more than they have.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from shared.tokenizer import tools_text
from worker.engines.base import Tokenizer

Ask = Callable[[dict[str, Any]], Awaitable[int | None]]
"""What `/tokenize` counts for a body; None when it refuses."""
_WORD = "queue"
_SAY: list[dict[str, Any]] = [{"role": "user", "content": _WORD}]
_ANSWER: list[dict[str, Any]] = [{"role": "assistant", "content": _WORD}]
_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": _CITY}}


def fast_tokenizer(tokenizer: object) -> Any:
    """The `tokenizers.Tokenizer` inside; None when there is none, as in Mistral's own format."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend if hasattr(backend, "to_str") else None


async def describe(backend: Any, ask: Ask) -> Tokenizer:
    """The tokenizer as others need it. A model without a chat template has no overhead: its chats are refused."""
    word = _count(backend, _WORD)
    once = await ask({"messages": _SAY})
    if once is None:
        return Tokenizer(backend.to_str())
    thrice = await ask({"messages": [*_SAY, *_ANSWER, *_SAY]})
    message = max((thrice - once - 2 * word) // 2, 0) if thrice is not None else 0
    chat = max(once - word - message, 0)
    with_tool = await ask({"messages": _SAY, "tools": [_TOOL]})
    tools = -1
    if with_tool is not None and with_tool > once:
        tools = max(with_tool - once - _count(backend, tools_text([_TOOL])), 0)
    return Tokenizer(backend.to_str(), chat, message, tools)


def _count(backend: Any, text: str) -> int:
    return len(backend.encode(text, add_special_tokens=False))
