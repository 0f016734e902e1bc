"""vllm_tokenizer: what a chat template adds, found out by asking what conversations come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from shared.tokenizer import tools_text
from worker.engines.vllm_tokenizer import describe, fast_tokenizer

DEMO = Backend.from_file(str(Path(__file__).parents[2] / "models" / "demo" / "tokenizer.json"))


def size(text: str) -> int:
    return len(DEMO.encode(text, add_special_tokens=False))


class Template:
    """What `/tokenize` says of a model with this template."""

    def __init__(self, *, front: str = "", tools: str = "", refuses: tuple[int, ...] = ()) -> None:
        """`front`: before all messages. `tools`: before the tools, which are left out when empty."""
        self.front = front
        self.tools = tools
        self.refuses = refuses

    async def ask(self, body: dict[str, Any]) -> int | None:
        messages = body["messages"]
        if len(messages) in self.refuses or (self.tools == "none" and "tools" in body):
            return None
        text = self.front
        if self.tools and "tools" in body:
            text += self.tools + json.dumps(body["tools"])
        text += "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        return size(text + "<|im_start|>assistant\n")


async def test_the_overhead_of_a_conversation_and_of_its_messages_is_found_out() -> None:
    for front in ("", "<|im_start|>system\nYou are a lease.<|im_end|>\n"):
        template = Template(front=front)
        found = await describe(DEMO, template.ask)
        for number in (1, 3, 5):
            texts = ["What is a queue?", "A stream."] * (number // 2) + ["Why?"]
            messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
            counted = found.chat + found.message * number + sum(map(size, texts))
            assert abs(counted - (await template.ask({"messages": messages}) or 0)) <= number
        assert found.tools == -1
        assert found.text == DEMO.to_str()


async def test_tools_count_where_the_template_renders_them() -> None:
    template = Template(tools="These are your tools: ")
    found = await describe(DEMO, template.ask)
    assert found.tools == pytest.approx(size("These are your tools: "), abs=2)
    tools = [{"type": "function", "function": {"name": "leases"}}] * 3
    body = {"messages": [{"role": "user", "content": "Hello"}], "tools": tools}
    counted = found.chat + found.message + size("Hello") + found.tools + size(tools_text(tools))
    assert counted == pytest.approx(await template.ask(body), abs=2)
    assert (await describe(DEMO, Template(tools="none").ask)).tools == -1


async def test_a_template_that_refuses_some_conversations_is_described_by_the_others() -> None:
    found = await describe(DEMO, Template(refuses=(3,)).ask)
    around = size("<|im_start|>user\n") + size("<|im_end|>\n<|im_start|>assistant\n")
    assert (found.chat, found.message) == (around, 0)
    found = await describe(DEMO, Template(refuses=(1, 3)).ask)
    assert (found.chat, found.message, found.tools) == (0, 0, -1)


def test_only_a_fast_tokenizer_can_be_given_away() -> None:
    class Fast:
        backend_tokenizer = DEMO

    assert fast_tokenizer(Fast()) is DEMO
    assert fast_tokenizer(object()) is None
    assert fast_tokenizer(None) is None
