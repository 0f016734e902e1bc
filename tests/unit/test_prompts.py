"""prompts: what of a request the model will read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.prompts import Prompt, of_chat, of_completion, of_inputs, of_messages
from api.schemas import validate_chat, validate_completion, validate_generate

CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Das Wetter für heute."}}


def chat(*contents: Any, **more: Any) -> Prompt:
    return of_chat({"messages": [{"role": "user", "content": content} for content in contents], **more})


def test_a_conversations_texts_are_those_of_its_messages() -> None:
    assert chat("one", "two") == Prompt(("one", "two"), messages=2)


def test_parts_of_a_message_are_texts_or_media() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:"}},
        "bare",
        {"type": "refusal", "refusal": "no"},
        {"type": "input_audio", "input_audio": {}},
    ]
    assert chat(parts) == Prompt(("look", "bare", "no"), media=2, messages=1, parts=True)


def test_tool_calls_are_texts_and_tools_are_kept_apart() -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    prompt = of_chat({"messages": messages, "tools": [TOOL]})
    assert prompt.texts == ("weather", '{"city": "Bern"}')
    assert json.loads(prompt.tools) == [TOOL]
    assert "für" in prompt.tools, "text as templates render it, not escaped"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", Prompt(("text",), prompts=1)),
        (["a", "b"], Prompt(("a", "b"), prompts=2)),
        ([1, 2, 3], Prompt(ids=3)),
        ([[1, 2], [3]], Prompt(ids=3)),
        (["a", [1, 2]], Prompt(("a",), ids=2, prompts=1)),
        ([], Prompt()),
        (7, Prompt()),
        (None, Prompt()),
    ],
)
def test_a_completions_prompts_are_texts_or_token_ids(prompt: Any, expected: Prompt) -> None:
    assert of_completion({"prompt": prompt}) == expected


def test_embeddings_are_media() -> None:
    assert of_completion({"prompt_embeds": "AAAA"}) == Prompt(media=1)
    assert of_completion({"prompt_embeds": ["AAAA", "BBBB"], "prompt": "x"}) == Prompt(("x",), media=2, prompts=1)


@pytest.mark.parametrize(
    "messages",
    [
        [None],
        ["text"],
        [{}],
        [{"content": 7}],
        [{"content": [None, {"text": 7}]}],
        [{"tool_calls": "x"}],
        [{"tool_calls": [None, {"function": 3}, {"function": {"name": 1}}]}],
    ],
)
def test_what_the_engine_will_refuse_is_no_error_here(messages: list[Any]) -> None:
    assert of_chat({"messages": messages, "tools": "none"}).texts == ()


def test_very_many_texts_cost_what_one_costs() -> None:
    prompt = chat(*["word"] * 5000)
    assert prompt.messages == 5000
    assert len(prompt.texts) == 1
    assert prompt.texts[0].split() == ["word"] * 5000


def test_requests_know_their_prompt_and_their_limit() -> None:
    asked = validate_chat(b'{"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 5}', None)
    assert (asked.prompt, asked.output_limit) == (Prompt(("hi",), messages=1), 5)
    asked = validate_completion(b'{"prompt": ["a", "b"], "n": 3}', None)
    assert (asked.prompt, asked.output_limit, asked.width) == (Prompt(("a", "b"), prompts=2), 0, 6)
    asked = validate_generate(b'{"prompt": "a", "max_new_tokens": 9}', None)
    assert (asked.prompt, asked.output_limit) == (Prompt(("a",), prompts=1), 9)


def test_a_conversation_in_anthropics_form() -> None:
    blocks = [
        {"type": "text", "text": "look"},
        {"type": "image", "source": {"type": "base64", "data": "aaaa"}},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "ä"}},
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "found"}]},
        {"type": "thinking", "thinking": "hm"},
    ]
    prompt = of_messages(
        {
            "system": [{"type": "text", "text": "be brief"}],
            "messages": [{"role": "user", "content": blocks}, {"role": "user", "content": "and"}, 7],
            "tools": [TOOL],
        }
    )
    assert prompt.texts == ("be brief", "look", 'f {"a": "ä"}', "found", "and")
    assert (prompt.media, prompt.messages) == (1, 4)
    assert json.loads(prompt.tools) == [TOOL]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (("text",), Prompt(("text",), prompts=1)),
        ((["a", "b"],), Prompt(("a", "b"), prompts=2)),
        (([1, 2],), Prompt(ids=2)),
        (([[1, 2], [3]],), Prompt(ids=3)),
        (("query", ["a", {"type": "image"}]), Prompt(("query", "a"), media=1, prompts=2, parts=True)),
        (([],), Prompt()),
    ],
)
def test_inputs_of_a_pooling_model(inputs: tuple[Any, ...], expected: Prompt) -> None:
    assert of_inputs(*inputs) == expected
