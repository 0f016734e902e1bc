"""Requests with every parameter that vLLM knows, good and bad, and their answers in a form that two servers can share.

A server's answer differs from another's in ids, times and the fingerprint of its configuration, and in where a stream
is cut into events. Everything else has to be the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SAY = [{"role": "user", "content": "What is a queue?"}]
_DRAWN = {"id", "created", "system_fingerprint", "tool_call_id"}
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
_LOOK = {"type": "function", "function": {"name": "look", "strict": True, "parameters": _SCHEMA}}
_NOTE = {"type": "function", "function": {"name": "note", "strict": True, "parameters": _SCHEMA}}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": _SCHEMA, "strict": True}}
_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
_NAMED = {"type": "function", "function": {"name": "look"}}

SAMPLING: list[dict[str, Any]] = [
    {},
    {"seed": 3, "temperature": 0.8},
    {"seed": 5, "temperature": 0.9, "n": 2},
    {"seed": 2, "temperature": 0.7, "top_p": 0.5},
    {"seed": 1, "temperature": 0.5, "min_p": 0.2},
    {"temperature": 1, "top_k": 1},
    {"stop": "e"},
    {"stop": ["u", "."], "include_stop_str_in_output": True},
    {"stop_token_ids": [13, 17, 40, 41, 42]},
    {"logit_bias": {"17": 100}},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 1.5},
    {"repetition_penalty": 1.5},
    {"min_tokens": 12},
    {"ignore_eos": True},
    {"skip_special_tokens": False, "spaces_between_special_tokens": False},
    {"bad_words": ["queue"]},
    {"allowed_token_ids": [11, 12, 13]},
    {"truncate_prompt_tokens": 4},
    {"return_token_ids": True},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"structured_outputs": {"regex": "[ab]{3}"}},
    {"structured_outputs": {"json": _SCHEMA}},
    {"structured_outputs": {"grammar": 'root ::= "a" "b"'}},
    {"user": "somebody", "unknown": 1, "best_of": 4},
]
CHATS: list[dict[str, Any]] = [
    {"max_tokens": None, "max_completion_tokens": 4},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True},
    {"response_format": {"type": "json_object"}, "max_tokens": 40},
    {"response_format": _FORMAT, "max_tokens": 40},
    {"response_format": {"type": "text"}},
    {"tools": [_LOOK], "tool_choice": "none"},
    {"tools": [_LOOK]},
    {"tools": [_LOOK], "tool_choice": "auto", "parallel_tool_calls": False},
    {"tools": [_LOOK, _NOTE], "tool_choice": "required", "max_tokens": 60},
    {"tools": [_LOOK, _NOTE], "tool_choice": _NAMED, "max_tokens": 60},
    {"echo": True},
    {"add_generation_prompt": False, "add_special_tokens": True},
    {
        "messages": [*SAY, {"role": "assistant", "content": "A queue"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "a queue?"}]}
        ]
    },
    {"messages": [{"role": "system", "content": "Be brief."}, *SAY], "chat_template_kwargs": {"x": 1}},
    {"service_tier": "auto", "store": False, "metadata": {"a": "b"}, "reasoning_effort": "low"},
]
TEXTS: list[dict[str, Any]] = [
    {"prompt": ["A queue", "A gate"]},
    {"prompt": [17, 18, 19]},
    {"prompt": [[17, 18], [19]]},
    {"logprobs": 2},
    {"echo": True},
    {"echo": True, "logprobs": 1},
    {"echo": True, "max_tokens": 0, "logprobs": 0},
    {"add_special_tokens": False},
    {"response_format": {"type": "json_object"}, "max_tokens": 40},
]
BAD: list[dict[str, Any]] = [
    {"temperature": 9},
    {"temperature": -1},
    {"temperature": "hot"},
    {"top_p": 2},
    {"top_p": 0},
    {"top_k": -7},
    {"min_p": 2},
    {"max_tokens": -1},
    {"max_tokens": 10**6},
    {"min_tokens": 99},
    {"n": 0},
    {"n": 2},
    {"seed": "x"},
    {"presence_penalty": 5},
    {"frequency_penalty": -5},
    {"repetition_penalty": 0},
    {"logit_bias": {"x": 1}},
    {"logit_bias": {"99999999": 1}},
    {"stop_token_ids": [99999999]},
    {"allowed_token_ids": []},
    {"stop": 7},
    {"stop": ""},
    {"bad_words": "x"},
    {"truncate_prompt_tokens": -9},
    {"prompt_logprobs": -5},
    {"structured_outputs": {"regex": "("}},
    {"structured_outputs": {"json": {"type": "nothing"}}},
    {"structured_outputs": {"choice": []}},
    {"structured_outputs": {"grammar": "root ::="}},
    {"structured_outputs": {"json": _SCHEMA, "regex": "a"}},
]
BAD_CHATS: list[dict[str, Any]] = [
    {"logprobs": False, "top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 99},
    {"logprobs": True, "top_logprobs": -2},
    {"tools": []},
    {"tool_choice": "auto"},
    {"tools": [_LOOK], "tool_choice": "sometimes"},
    {"tools": [_LOOK], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    {"tools": [{"type": "function"}]},
    {"response_format": {"type": "poem"}},
    {"response_format": {"type": "json_schema"}},
    {"messages": [{"content": "x"}]},
    {"messages": [{"role": "user", "content": 7}]},
    {"messages": [{"role": "user", "content": [_IMAGE]}]},
    {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
    {"messages": [{"role": "user", "content": "word " * 3000}]},
    {"add_generation_prompt": True, "continue_final_message": True},
    {"chat_template": "{{ messages }}"},
]
BAD_TEXTS: list[dict[str, Any]] = [
    {"suffix": "end"},
    {"prompt": ["a", 1]},
    {"prompt": []},
    {"prompt": [-1]},
    {"prompt": [99999999]},
    {"prompt": {"a": 1}},
    {"logprobs": 99},
    {"logprobs": -2},
    {"prompt": "word " * 3000},
]
DIFFERENT: list[tuple[str, dict[str, Any], int, str]] = [
    (CHAT, {"messages": SAY, "model": "gpt-9"}, 404, "OpenAI's words, and where to find the models"),
    (CHAT, {}, 400, "found at the door, in the words of a sentence"),
    (CHAT, {"messages": []}, 400, "as above"),
    (COMPLETIONS, {}, 400, "as above"),
    (CHAT, {"messages": SAY, "stream": "yes"}, 400, "as above"),
    (CHAT, {"messages": SAY, "stop": list("abcde")}, 400, "one limit for all engines, a setting"),
    (CHAT, {"messages": SAY, "n": 500, "temperature": 1, "seed": 1, "max_tokens": 1}, 400, "OpenAI's limit, a setting"),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "so long that no engine has to look"),
    (CHAT, {"messages": SAY, "priority": "first", "max_tokens": 1}, 200, "it is not for clients to set"),
    (CHAT, {"messages": SAY, "kv_transfer_params": 7, "max_tokens": 1}, 200, "as above"),
]
"""Where Penstock answers otherwise than vLLM on purpose: path, body, its own status, and why."""
_WHOLE_ONLY: list[dict[str, Any]] = [{"prompt_logprobs": 1}, {"stream_options": {"include_usage": True}}]


def requests(model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and body of each request; most are sent whole and as a stream."""
    fixed = {"model": model, "max_tokens": 16, "temperature": 0}
    kinds: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
        (CHAT, {"messages": SAY}, [*SAMPLING, *CHATS, *BAD, *BAD_CHATS]),
        (COMPLETIONS, {"prompt": "A queue is"}, [*SAMPLING, *TEXTS, *BAD, *BAD_TEXTS]),
    ]
    for path, prompt, all_extra in kinds:
        for extra in all_extra:
            yield path, {**fixed, **prompt, **extra}
            yield path, {**fixed, **prompt, **extra, "stream": True, "stream_options": {"include_usage": True}}
        for extra in _WHOLE_ONLY:
            yield path, {**fixed, **prompt, **extra}
        yield path, {**fixed, **prompt, "prompt_logprobs": 1, "stream": True}
        options = {"include_usage": True, "continuous_usage_stats": True}
        yield path, {**fixed, **prompt, "stream": True, "stream_options": options}


def outcomes(url: str, model: str) -> list[dict[str, Any]]:
    """What the server at `url` answers to each, one after the other."""
    with httpx.Client(base_url=url, timeout=60) as client:
        return [outcome(client.post(path, json=body)) for path, body in requests(model)]


def differences(url: str, model: str) -> list[dict[str, Any]]:
    """What the server at `url` answers where the two are meant to differ."""
    with httpx.Client(base_url=url, timeout=60) as client:
        return [outcome(client.post(path, json={"model": model, **body})) for path, body, _, _ in DIFFERENT]


def outcome(response: httpx.Response) -> dict[str, Any]:
    """A response, without what every server draws for itself.

    A refusal that a server finds after it has opened a stream is the refusal all the same.
    """
    if response.status_code != httpx.codes.OK:
        return {"status": response.status_code, "message": response.json()["error"]["message"]}
    if not response.headers["content-type"].startswith("text/event-stream"):
        return {"status": 200, "body": _plain(response.json())}
    events = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    if chunks and "error" in chunks[0]:
        return {"status": chunks[0]["error"]["code"], "message": chunks[0]["error"]["message"]}
    assert events[-1] == "[DONE]"
    said: dict[str, Any] = {}
    for chunk in chunks:
        _add(said, "", _plain({key: value for key, value in chunk.items() if key != "usage"}))
    return {"status": 200, "said": said, "usage": chunks[-1].get("usage")}


def _plain(value: Any) -> Any:
    """Without what is drawn at random; numbers to three digits behind the point."""
    if isinstance(value, dict):
        return {key: _plain(field) for key, field in value.items() if key not in _DRAWN}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


def _add(said: dict[str, Any], where: str, value: Any) -> None:
    """Adds up what a stream says: texts and lists of each place, however they are cut into events."""
    if isinstance(value, dict):
        for key, field in value.items():
            _add(said, f"{where}.{key}", field)
    elif isinstance(value, list) and value and isinstance(value[0], dict) and "index" in value[0]:
        for item in value:
            _add(said, f"{where}[{item['index']}]", {key: field for key, field in item.items() if key != "index"})
    elif isinstance(value, (str, list)) and not where.endswith((".object", ".model", ".role", ".type")):
        said[where] = said.get(where, type(value)()) + value
    elif value is not None:
        said[where] = value
