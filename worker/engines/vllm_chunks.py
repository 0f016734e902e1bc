"""Chunks of a stream for a quarter of their price: plain ones are written as text, without pydantic.

For each token vLLM's serving layer builds up to three pydantic models, only to write them as JSON at once: 16 µs of the
85 to 90 that a token costs in front of the engine. Nearly all chunks are alike but for their text. So `install` puts
functions in the place of those models' names in vLLM's two serving modules. A chunk with nothing but a text becomes a
light object that writes the very same JSON, in 3 to 4 µs; everything else (roles, tools, log probabilities, the end,
usage) is built by vLLM's own models as before.

Before it changes anything, `install` compares what both write. Where that differs, as it may with another vLLM, all
stays as it was.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import msgspec
from vllm.entrypoints.openai.chat_completion import serving as chat_serving
from vllm.entrypoints.openai.completion import serving as completion_serving

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_CHUNK_FIELDS = {"id", "object", "created", "model", "choices"}
_CHAT_FIELDS = {"index", "delta", "logprobs", "finish_reason", "token_ids"}
_NO_TEXT_FIELDS = ("logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids")
_SAMPLES = ("", " hello", 'quote " and \\', "\x00\x1f\x7f\b\f\n\r\t", "naïve 日本 🙂\u2028", "</script>")


class PlainDelta:
    """A delta with nothing but a text."""

    __slots__ = ("content",)
    role = None
    reasoning = None
    tool_calls = ()

    def __init__(self, content: str) -> None:
        self.content = content


class PlainChoice:
    """A choice with nothing but a text. `fields` are those of vLLM's model, `written` is its JSON."""

    __slots__ = ("fields", "written")
    finish_reason = None
    tool_calls = ()

    def __init__(self, fields: dict[str, Any], written: str) -> None:
        self.fields = fields
        self.written = written


class PlainChunk:
    """A chunk with one plain choice. Once something is set on it, it is written by vLLM's models."""

    def __init__(self, chunks: Chunks, fields: dict[str, Any], choice: PlainChoice) -> None:
        self._made = (chunks, fields, choice)

    def model_dump_json(self, **options: Any) -> str:
        """See pydantic.BaseModel. Fields that were never set are left out; the others stand in the model's order."""
        _, fields, choice = self._made
        if len(self.__dict__) > 1 or options != {"exclude_unset": True}:
            return self._ordinary(options)
        rid, model = _encode(fields["id"]).decode(), _encode(fields["model"]).decode()
        head = f'{{"id":{rid},"object":"{fields["object"]}","created":{fields["created"]},"model":{model}'
        return f'{head},"choices":[{choice.written}]}}'

    def _ordinary(self, options: dict[str, Any]) -> str:
        chunks, fields, choice = self._made
        chunk = chunks.chunk_model(**{**fields, "choices": [chunks.ordinary(choice.fields)]})
        for name, value in self.__dict__.items():
            if name != "_made":
                setattr(chunk, name, value)
        written: str = chunk.model_dump_json(**options)
        return written


class Chunks:
    """Makes the chunks and choices of one serving module."""

    def __init__(self, chunk_model: Any, choice_model: Any) -> None:
        self.chunk_model = chunk_model
        self.choice_model = choice_model

    def chunk(self, **fields: Any) -> Any:
        """In the place of the chunk's model."""
        choices = fields["choices"]
        if len(choices) != 1 or type(choices[0]) is not PlainChoice:
            return self.chunk_model(**fields)
        if fields.keys() == _CHUNK_FIELDS:
            return PlainChunk(self, fields, choices[0])
        return self.chunk_model(**{**fields, "choices": [self.ordinary(choices[0].fields)]})

    def ordinary(self, fields: dict[str, Any]) -> Any:
        """A choice as vLLM makes it."""
        return self.choice_model(**fields)


class CompletionChunks(Chunks):
    """Those of /v1/completions."""

    def choice(self, **fields: Any) -> Any:
        """In the place of the choice's model."""
        if len(fields) == 2 + len(_NO_TEXT_FIELDS) and all(fields.get(name, 0) is None for name in _NO_TEXT_FIELDS):
            index, text = fields["index"], _encode(fields["text"]).decode()
            nothing = '"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null'
            return PlainChoice(fields, f'{{"index":{index},"text":{text},{nothing}}}')
        return self.choice_model(**fields)

    def samples(self, text: str) -> list[Any]:
        """The same chunk by these functions and by vLLM's models."""
        choice = {"index": 0, "text": text, **dict.fromkeys(_NO_TEXT_FIELDS)}
        chunk = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
        made = [self.choice(**choice), self.choice_model(**choice)]
        return [self.chunk(**chunk, choices=[made[0]]), self.chunk_model(**chunk, choices=[made[1]])]


class ChatChunks(Chunks):
    """Those of /v1/chat/completions, and their deltas."""

    def __init__(self, chunk_model: Any, choice_model: Any, delta_model: Any) -> None:
        super().__init__(chunk_model, choice_model)
        self.delta_model = delta_model

    def delta(self, **fields: Any) -> Any:
        """In the place of the delta's model."""
        content = fields.get("content")
        return PlainDelta(content) if len(fields) == 1 and type(content) is str else self.delta_model(**fields)

    def choice(self, **fields: Any) -> Any:
        """In the place of the choice's model."""
        bare = fields["finish_reason"] is None and fields["logprobs"] is None and fields.get("token_ids") is None
        if bare and fields.keys() == _CHAT_FIELDS and (text := self._only_text(fields["delta"])) is not None:
            delta = f'{{"content":{_encode(text).decode()}}}'
            nothing = '"logprobs":null,"finish_reason":null,"token_ids":null'
            return PlainChoice(fields, f'{{"index":{fields["index"]},"delta":{delta},{nothing}}}')
        return self.ordinary(fields)

    def _only_text(self, delta: Any) -> str | None:
        """The delta's text, if it has nothing else. A parser's delta is vLLM's own."""
        if type(delta) is PlainDelta:
            return delta.content
        if type(delta) is self.delta_model and delta.model_fields_set == {"content"}:
            text: str | None = delta.content
            return text
        return None

    def ordinary(self, fields: dict[str, Any]) -> Any:
        """A choice as vLLM makes it."""
        delta = fields["delta"]
        if type(delta) is PlainDelta:
            fields = {**fields, "delta": self.delta_model(content=delta.content)}
        return self.choice_model(**fields)

    def samples(self, text: str) -> list[Any]:
        """The same chunk by these functions and by vLLM's models."""
        choice = {"index": 0, "logprobs": None, "finish_reason": None, "token_ids": None}
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        made = self.choice(delta=self.delta(content=text), **choice)
        ordinary = self.choice_model(delta=self.delta_model(content=text), **choice)
        return [self.chunk(**chunk, choices=[made]), self.chunk_model(**chunk, choices=[ordinary])]


def install() -> bool:
    """Makes vLLM's streams write plain chunks the short way. Safe to call twice. False when they would differ."""
    if isinstance(getattr(chat_serving.ChatCompletionStreamResponse, "__self__", None), Chunks):
        return True
    chat = ChatChunks(
        chat_serving.ChatCompletionStreamResponse,
        chat_serving.ChatCompletionResponseStreamChoice,
        chat_serving.DeltaMessage,
    )
    completion = CompletionChunks(
        completion_serving.CompletionStreamResponse, completion_serving.CompletionResponseStreamChoice
    )
    if not (alike(chat) and alike(completion)):
        log.warning("vLLM writes its chunks in another way than expected: they are left to it, at 16 µs a token")
        return False
    _put(chat_serving, ChatCompletionStreamResponse=chat.chunk, ChatCompletionResponseStreamChoice=chat.choice)
    _put(chat_serving, DeltaMessage=chat.delta)
    _put(completion_serving, CompletionStreamResponse=completion.chunk)
    _put(completion_serving, CompletionResponseStreamChoice=completion.choice)
    return True


def alike(chunks: ChatChunks | CompletionChunks) -> bool:
    """Whether both ways write the same."""
    try:
        pairs = [chunks.samples(text) for text in _SAMPLES]
        written = [[chunk.model_dump_json(exclude_unset=True) for chunk in pair] for pair in pairs]
    except Exception:
        log.exception("vLLM's chunks cannot be made in the expected way")
        return False
    return all(type(short) is PlainChunk for short, _ in pairs) and all(short == long for short, long in written)


def _put(module: ModuleType, **functions: Any) -> None:
    for name, function in functions.items():
        setattr(module, name, function)
