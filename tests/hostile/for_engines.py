"""The hostile inputs that a replica lets pass, because only an engine can say what is wrong with them.

They are JSON of the right outline. Whatever engine gets them refuses them with a 4xx in its own words, at once and in a
stream. `model` is for who sends them: `POOLED` paths want a model for pooling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.hostile.rows import CHAT, CLAUDE, RESPONSES, SAY, TEXT

COUNT = "/v1/messages/count_tokens"
POOLED = ("/v1/embeddings", "/pooling", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank")
_PNG = "data:image/png;base64,"
_CYCLE: Any = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
_FUNCTION: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def _user(content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


_SAMPLING: tuple[dict[str, Any], ...] = (
    *({"max_tokens": wrong} for wrong in ("many", 1.5, [], {}, -1, 100_000, 2**70)),
    *({"temperature": wrong} for wrong in ("hot", [], {}, -1)),
    *({"top_p": wrong} for wrong in ("most", -1, 0, 2, [1])),
    *({"top_k": wrong} for wrong in ("few", -5, 1.5, [])),
    *({"min_p": wrong} for wrong in (-1, 2, "x")),
    *({"n": wrong} for wrong in ("many", -1, 0, 1.5, [])),
    *({"seed": wrong} for wrong in ("x", [], 1.5, 2**70, -(2**70))),
    *({"stop": wrong} for wrong in (5, [5], {}, [["a"]], [None])),
    *({"presence_penalty": wrong} for wrong in ("x", 9, -9)),
    *({"frequency_penalty": wrong} for wrong in ("x", 9, -9)),
    *({"repetition_penalty": wrong} for wrong in ("x", 0, -1)),
    *({"logit_bias": wrong} for wrong in ([], "x", {"x": 1}, {"999999999": 1}, {"-1": 1}, {"1": "much"}, {"1.5": 1})),
    *({"stop_token_ids": wrong} for wrong in ("x", ["a"], [10**9], [-1], [2**70])),
    *({"bad_words": wrong} for wrong in ("x", [5])),
    *({"allowed_token_ids": wrong} for wrong in ([], [10**9], ["a"], [-1])),
    *({"stream_options": wrong, "stream": True} for wrong in ("x", 5, [], {"include_usage": "perhaps"})),
    *({"structured_outputs": wrong} for wrong in (
        {"regex": "("}, {"regex": 5}, {"choice": "a"}, {"choice": []}, {"grammar": "root ::= ("},
        {"json": "{"}, {"json": {"type": "nothing"}},
        {"json": {"type": "object"}, "regex": "a"}, {"structural_tag": "{"},
    )),
    {"min_tokens": 9, "max_tokens": 3},
    {"min_tokens": -1},
    {"stream_options": {"include_usage": True}, "stream": False},
    {"truncate_prompt_tokens": -9},
    {"prompt_logprobs": -9},
    {"prompt_logprobs": 1, "stream": True},
    {"vllm_xargs": {"a": {"b": 1}}},
)  # fmt: skip

_MESSAGES: tuple[dict[str, Any], ...] = (
    *({"messages": wrong} for wrong in ([5], ["hi"], [None], [[]], [{}], [{"content": "x"}])),
    {"messages": [{"role": 5, "content": "x"}]},
    *(_user(wrong) for wrong in (5, True, [5], [None], [[]], [{}], [{"type": "nothing"}], [{"type": "text"}])),
    _user([{"type": "text", "text": 5}]),
    *(_user([{"type": "image_url", "image_url": {"url": _PNG + url}}])
      for url in ("", "AAAA", "%%%")),
    *(_user([{"type": "image_url", "image_url": {"url": url}}])
      for url in ("data:", "data:,", "data:text/html;base64,PHA+", "data:image/png,x")),
    _user([{"type": "image_url"}]),
    _user([{"type": "image_url", "image_url": 5}]),
    _user([{"type": "image_url", "image_url": {"url": 5}}]),
    _user([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]),
    {"messages": [{"role": "assistant", "tool_calls": "x"}]},
    {"messages": [{"role": "assistant", "tool_calls": [5]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"type": "function"}]}]},
)  # fmt: skip

_CHAT: tuple[dict[str, Any], ...] = (
    *({"tools": wrong} for wrong in ("x", [5], [{}], [{"type": "function"}], [{"type": "function", "function": {}}])),
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
    {"tools": [_FUNCTION], "tool_choice": "everything"},
    {"tools": [_FUNCTION], "tool_choice": {"type": "function", "function": {"name": "gone"}}},
    {"tools": [_FUNCTION], "tool_choice": {"type": "function"}},
    {"tools": [_FUNCTION], "tool_choice": 5},
    {"tool_choice": "required"},
    *({"response_format": wrong} for wrong in (
        "x", {}, {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": "x"},
        {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nothing"}}},
        {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "string", "pattern": "("}}},
    )),
    {"logprobs": "perhaps"},
    {"logprobs": True, "top_logprobs": -9},
    {"logprobs": True, "top_logprobs": 10**6},
    {"top_logprobs": 5},
    {"chat_template": "{{ ''.__class__.__mro__ }}"},
    {"chat_template_kwargs": {"chat_template": "{{ 7 * 7 }}"}},
    {"chat_template_kwargs": "x"},
    {"add_generation_prompt": True, "continue_final_message": True},
    {"documents": "x"},
    {"reasoning_effort": "endless"},
    {"mm_processor_kwargs": "x"},
)  # fmt: skip

_COMPLETIONS: tuple[dict[str, Any], ...] = (
    *({"prompt": wrong} for wrong in (5, {}, True, [], [5, "a"], ["a", 5], [None], [{}], [-1], [10**9], [[10**9]],
                                      [1.5], [[]], [[], "a"], [2**70], "")),
    *({"echo": wrong} for wrong in ("perhaps", [], 5)),
    *({"logprobs": wrong} for wrong in ("many", -9, 10**6, [])),
    {"suffix": "x"},
)  # fmt: skip

_CLAUDE: tuple[dict[str, Any], ...] = (
    *({"messages": wrong} for wrong in ([5], ["hi"], [None], [{}], [{"role": "user"}])),
    {"messages": [{"role": "robot", "content": "x"}]},
    *(_user(wrong) for wrong in (5, {}, None, [5], [{}], [{"type": "nothing"}])),
    _user([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "%%%"}}]),
    *({"system": wrong} for wrong in (5, {}, [5], [{}])),
    *({"max_tokens": wrong} for wrong in (0, -1, "many", 1.5, None, 100_000)),
    *({"temperature": wrong} for wrong in ("hot", -1, 9)),
    *({"stop_sequences": wrong} for wrong in ("x", [5])),
    *({"tools": wrong} for wrong in ("x", [5], [{}], [{"name": "f", "input_schema": "x"}])),
    *({"tool_choice": wrong} for wrong in ("auto", {"type": "everything"}, {"type": "tool"})),
    {"metadata": 5},
    {"output_config": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}},
)  # fmt: skip

_RESPONSES: tuple[dict[str, Any], ...] = (
    *({"input": wrong} for wrong in ([5], ["hi"], [None], [{}], [{"type": "nothing"}],
                                     [{"role": "user", "content": 5}], [{"type": "function_call_output"}])),
    *({"max_output_tokens": wrong} for wrong in ("many", 1.5, -1, 100_000)),
    *({"temperature": wrong} for wrong in ("hot", -1)),
    *({"top_p": wrong} for wrong in ("most", -1, 2)),
    *({"tools": wrong} for wrong in ("x", [5], [{}], [{"type": "nothing"}], [{"type": "function"}])),
    *({"tool_choice": wrong} for wrong in ("everything", 5, {"type": "nothing"})),
    *({"text": wrong} for wrong in ("x", {"format": {"type": "xml"}}, {"format": {"type": "json_schema"}})),
    {"reasoning": "x"},
    {"truncation": "perhaps"},
    {"include": ["everything"]},
)  # fmt: skip

_BORNE: tuple[dict[str, Any], ...] = (
    *({"structured_outputs": {"json": schema}} for schema in (_CYCLE, {"$ref": "http://127.0.0.1/schema"})),
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": _CYCLE}}], "tool_choice": "required"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": _CYCLE}}},
    {"messages": [{"role": "user", "content": {}}]},
)

_OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("/v1/embeddings", {"input": wrong})
      for wrong in (5, {}, True, [1.5], [None], [{}], ["a", 5], [["a"]], [-1], [10**9])),
    *(("/v1/embeddings", {"input": "x", "dimensions": wrong}) for wrong in (-1, "x", 10**6)),
    ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}),
    ("/v1/embeddings", {"input": "x", "truncate_prompt_tokens": -9}),
    ("/v1/embeddings", {"messages": [5]}),
    *(("/pooling", {"input": wrong}) for wrong in (5, {}, [None], ["a", 5])),
    ("/pooling", {"input": "x", "task": "nothing"}),
    *((path, {"queries": queries, "documents": documents})
      for path in ("/score", "/v1/score")
      for queries, documents in ((5, "x"), ("x", 5), ([None], "x"), (["a", "b"], ["a", "b", "c"]), ("x", [5]))),
    *((path, {"query": "x", "documents": wrong})
      for path in ("/rerank", "/v2/rerank") for wrong in (5, [5], [None], [])),
    ("/rerank", {"query": 5, "documents": ["x"]}),
    ("/rerank", {"query": "x", "documents": ["x"], "top_n": "few"}),
    *(("/tokenize", {"prompt": wrong}) for wrong in (5, {}, [5], True)),
    *(("/tokenize", {"messages": wrong}) for wrong in ([5], [{}], ["x"])),
    *(("/detokenize", {"tokens": wrong}) for wrong in (["a"], [-1], [2**70], [1.5], [None], [[1]])),
    *((COUNT, {"messages": wrong}) for wrong in ([5], [{}], [{"role": "robot", "content": "x"}])),
    (COUNT, {"messages": SAY, "system": 5}),
    (COUNT, {"messages": SAY, "tools": [{}]}),
)  # fmt: skip


def forms(path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The body as it is, and as a stream where the route has streams and the row does not say."""
    yield body
    if path in (CHAT, TEXT, CLAUDE, RESPONSES) and "stream" not in body:
        yield {**body, "stream": True}


def _rows() -> Iterator[tuple[str, dict[str, Any]]]:
    for wrong in _SAMPLING:
        yield CHAT, {"messages": SAY, "max_tokens": 2, **wrong}
        yield TEXT, {"prompt": "x", "max_tokens": 2, **wrong}
    yield from ((CHAT, {"max_tokens": 2, **wrong}) for wrong in _MESSAGES)
    yield from ((CHAT, {"messages": SAY, "max_tokens": 2, **wrong}) for wrong in _CHAT)
    yield from ((TEXT, {"prompt": "x", "max_tokens": 2, **wrong}) for wrong in _COMPLETIONS)
    yield from ((CLAUDE, {"messages": SAY, "max_tokens": 2, **wrong}) for wrong in _CLAUDE)
    yield from ((RESPONSES, {"input": "x", "max_output_tokens": 2, **wrong}) for wrong in _RESPONSES)
    yield from _OTHERS


ENGINE = tuple(_rows())
"""Path and body, without `model`."""
BORNE = tuple((CHAT, {"messages": SAY, "max_tokens": 2, **strange}) for strange in _BORNE)
"""What vLLM takes although it makes little sense: answered, or refused, and nobody is harmed."""
