"""Chunks that are written without pydantic are those of vLLM's own models, byte for byte."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

HEAD: dict[str, Any] = {"id": "r", "object": "chat.completion.chunk", "created": 7, "model": "m"}
CHOICE: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None, "token_ids": None}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
_OPENAI = "vllm.entrypoints.openai"


class Parts:
    """What is compared. vLLM is imported late: this file is collected by processes that never run it."""

    def __init__(self) -> None:
        self.chunks = importlib.import_module("worker.engines.vllm_chunks")
        self.chat = importlib.import_module(f"{_OPENAI}.chat_completion.protocol")
        completion = importlib.import_module(f"{_OPENAI}.completion.protocol")
        self.ours = self.chunks.ChatChunks(
            self.chat.ChatCompletionStreamResponse, self.chat.ChatCompletionResponseStreamChoice, self.chat.DeltaMessage
        )
        self.completion = self.chunks.CompletionChunks(
            completion.CompletionStreamResponse, completion.CompletionResponseStreamChoice
        )

    def both(self, delta: dict[str, Any], choice: dict[str, Any], **head: Any) -> tuple[Any, Any]:
        """A chat chunk by the functions and by the models."""
        choice = CHOICE | choice
        made = self.ours.choice(delta=self.ours.delta(**delta), **choice)
        ordinary = self.chat.ChatCompletionResponseStreamChoice(delta=self.chat.DeltaMessage(**delta), **choice)
        long = self.chat.ChatCompletionStreamResponse(**HEAD | head, choices=[ordinary])
        return self.ours.chunk(**HEAD | head, choices=[made]), long

    def is_plain(self, chunk: Any) -> bool:
        return type(chunk) is self.chunks.PlainChunk


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


def written(chunk: Any) -> str:
    text: str = chunk.model_dump_json(exclude_unset=True)
    return text


@given(text=TEXTS, name=TEXTS, index=st.integers(0, 9))
def test_a_text_is_written_as_the_models_write_it(parts: Parts, text: str, name: str, index: int) -> None:
    short, long = parts.both({"content": text}, {"index": index}, id=name, model=name)
    assert parts.is_plain(short)
    assert written(short) == written(long)


@given(text=TEXTS)
def test_a_completions_text_is_written_as_the_models_write_it(parts: Parts, text: str) -> None:
    short, long = parts.completion.samples(text)
    assert parts.is_plain(short)
    assert written(short) == written(long)


@pytest.mark.parametrize(
    ("delta", "choice"),
    [
        ({"role": "assistant", "content": ""}, {}),
        ({"reasoning": "because"}, {}),
        ({"content": None}, {}),
        ({}, {}),
        ({"content": "end"}, {"finish_reason": "stop", "stop_reason": None}),
        ({"content": "x"}, {"token_ids": [1, 2]}),
        ({"content": "x"}, {"logprobs": {"content": []}}),
    ],
)
def test_whatever_is_more_than_a_text_is_made_by_the_models(
    parts: Parts, delta: dict[str, Any], choice: dict[str, Any]
) -> None:
    short, long = parts.both(delta, choice)
    assert type(short) is type(long)
    assert written(short) == written(long)


def test_what_is_set_on_a_plain_chunk_later_is_written(parts: Parts) -> None:
    short, long = parts.both({"content": "x"}, {})
    for chunk in (short, long):
        chunk.system_fingerprint = "fp"
    assert '"fp"' in written(long)
    assert written(short) == written(long)
    assert short.model_dump_json(exclude_none=True) == long.model_dump_json(exclude_none=True)


def test_a_delta_that_a_parser_has_made_is_written_short_too(parts: Parts) -> None:
    choice = parts.ours.choice(delta=parts.chat.DeltaMessage(content="parsed"), **CHOICE)
    short = parts.ours.chunk(**HEAD, choices=[choice])
    assert parts.is_plain(short)
    assert written(short) == written(parts.both({"content": "parsed"}, {})[1])


def test_the_filter_of_parallel_tool_calls_lets_a_plain_choice_pass(parts: Parts) -> None:
    filtered = importlib.import_module("vllm.entrypoints.serve.utils.tool_calls_utils")
    messages = [{"role": "user", "content": "x"}]
    request = parts.chat.ChatCompletionRequest(messages=messages, parallel_tool_calls=False)
    choice = parts.ours.choice(delta=parts.ours.delta(content="x"), **CHOICE)
    assert filtered.maybe_filter_parallel_tool_calls(choice, request) is choice


@pytest.fixture
def serving(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The serving module of chats, with vLLM's own models; whatever is put there is taken away afterwards."""
    for module in (parts.chunks.chat_serving, parts.chunks.completion_serving):
        protocol = importlib.import_module(module.__name__.replace("serving", "protocol"))
        for name in [
            name for name in vars(module) if name.endswith(("StreamResponse", "StreamChoice", "DeltaMessage"))
        ]:
            monkeypatch.setattr(module, name, getattr(protocol, name))
    return parts.chunks.chat_serving


def test_the_serving_modules_use_the_functions_once_they_are_there(parts: Parts, serving: Any) -> None:
    assert parts.chunks.install()
    assert type(serving.DeltaMessage(content="x")) is parts.chunks.PlainDelta
    there = serving.ChatCompletionStreamResponse
    assert parts.chunks.install(), "a second time"
    assert serving.ChatCompletionStreamResponse == there


def test_models_that_write_something_else_are_left_alone(
    parts: Parts, serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Newer(parts.chat.ChatCompletionStreamResponse):  # type: ignore[misc, name-defined]
        def model_dump_json(self, **options: Any) -> str:
            return str(super().model_dump_json(**options).replace('"created"', '"made"'))

    serving.ChatCompletionStreamResponse = Newer
    assert not parts.chunks.install()
    assert serving.ChatCompletionStreamResponse is Newer
    assert "left to it" in caplog.text
    serving.ChatCompletionStreamResponse = None
    assert not parts.chunks.install(), "they cannot even be made"
