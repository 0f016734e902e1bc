"""assembly: an answer in the other form says the same."""

from __future__ import annotations

from typing import Any

import msgspec

from api.assembly import DONE, events_of, to_chunks, to_whole
from shared.wire import Usage

OUTLINE = {"id": "chatcmpl-1", "created": 1, "model": "m"}
USAGE = {"prompt_tokens": 3, "total_tokens": 10, "completion_tokens": 7}


def chunk(*choices: dict[str, Any], kind: str = "chat.completion.chunk", **more: Any) -> bytes:
    body = {**OUTLINE, "object": kind, "choices": list(choices), **more}
    return b"id: 7\ndata: " + msgspec.json.encode(body) + b"\n\n"


def delta(index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": fields, "logprobs": None, "finish_reason": None}


def whole(stream: bytes) -> dict[str, Any]:
    value = msgspec.json.decode(to_whole(stream, Usage(3, 7)))
    assert isinstance(value, dict)
    return value


def test_texts_of_several_choices_grow_each_for_itself() -> None:
    stream = b"".join(
        [
            chunk(delta(0, role="assistant", content="")),
            chunk(delta(1, role="assistant", content="")),
            chunk(delta(0, content="Hel")),
            chunk(delta(1, content="Sal")),
            chunk(delta(0, content="lo"), delta(1, content="ut")),
            chunk({"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": 2}),
            chunk({"index": 1, "delta": {"content": ""}, "finish_reason": "length"}),
            DONE,
        ]
    )
    answer = whole(stream)
    assert answer["object"] == "chat.completion"
    assert [choice["message"] for choice in answer["choices"]] == [
        {"role": "assistant", "content": "Hello"},
        {"role": "assistant", "content": "Salut"},
    ]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]
    assert answer["choices"][0]["stop_reason"] == 2
    assert answer["usage"] == USAGE


def test_tool_calls_and_reasoning_are_put_together() -> None:
    calls = [
        {"index": 0, "id": "call-1", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"at":'}},
        {"index": 0, "function": {"arguments": '"x"}'}},
        {"index": 1, "id": "call-2", "type": "function", "function": {"name": "go", "arguments": "{}"}},
    ]
    stream = (
        chunk(delta(role="assistant", content=""))
        + chunk(delta(reasoning_content="Hm"))
        + chunk(delta(reasoning_content="m."))
    )
    stream += b"".join(chunk(delta(tool_calls=[call])) for call in calls)
    stream += chunk({"index": 0, "delta": {}, "finish_reason": "tool_calls"}) + DONE
    message = whole(stream)["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "Hmm."
    assert message["tool_calls"] == [
        {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": '{"at":"x"}'}},
        {"id": "call-2", "type": "function", "function": {"name": "go", "arguments": "{}"}},
    ]


def test_logprobs_of_chats_and_completions_grow() -> None:
    first, second = ({"content": [{"token": token, "logprob": -1.0}]} for token in "ab")
    chat = chunk({"index": 0, "delta": {"content": "a"}, "logprobs": first}) + chunk(
        {"index": 0, "delta": {"content": "b"}, "logprobs": second}
    )
    assert [item["token"] for item in whole(chat)["choices"][0]["logprobs"]["content"]] == ["a", "b"]
    parts = [
        {"index": 0, "text": text, "logprobs": {"tokens": [text], "text_offset": [at]}} for at, text in enumerate("ab")
    ]
    text = b"".join(chunk(part, kind="text_completion") for part in parts)
    choice = whole(text)["choices"][0]
    assert (choice["text"], choice["logprobs"]) == ("ab", {"tokens": ["a", "b"], "text_offset": [0, 1]})


def test_logprobs_of_tokens_that_are_named_index_and_of_none_stay_as_they_are() -> None:
    said = [None, {"index": -0.5, " the": -1.0}, {"index": -0.5, " of": -2.0}, {"index": None}, {"index": 0}]
    parts = [
        {"index": 0, "text": "x", "logprobs": {"tokens": ["x"], "token_logprobs": [None], "top_logprobs": [one]}}
        for one in said
    ]
    choice = whole(b"".join(chunk(part, kind="text_completion") for part in parts))["choices"][0]
    assert choice["logprobs"] == {"tokens": ["x"] * 5, "token_logprobs": [None] * 5, "top_logprobs": said}


def test_the_usage_of_the_stream_counts_before_the_records() -> None:
    stream = chunk(delta(content="x")) + chunk(usage={"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 1})
    assert whole(stream)["usage"]["total_tokens"] == 2


def test_a_whole_answer_survives_being_streamed() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    choices = [
        {"index": 0, "logprobs": None, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}},
        {
            "index": 1,
            "logprobs": None,
            "finish_reason": "tool_calls",
            "message": {"role": "assistant", "content": None, "tool_calls": calls},
        },
    ]
    answer = {**OUTLINE, "object": "chat.completion", "choices": choices, "usage": USAGE}
    events = to_chunks(msgspec.json.encode(answer), usage=True)
    assert events[-1] == DONE
    assert whole(b"".join(events)) == answer
    without = to_chunks(msgspec.json.encode(answer), usage=False)
    assert not any(b'"usage"' in event for event in without)
    assert whole(b"".join(without)) == answer, "the record's usage stands in"


def test_a_completion_survives_being_streamed() -> None:
    choice = {"index": 0, "text": "Hi", "logprobs": None, "finish_reason": "length"}
    answer = {**OUTLINE, "object": "text_completion", "choices": [choice], "usage": USAGE}
    assert whole(b"".join(to_chunks(msgspec.json.encode(answer), usage=False))) == answer


def test_events_are_read_whatever_stands_around_their_data() -> None:
    assert list(events_of(b": queued\n\nid: 5-a1b2c3\ndata: a\n\ndata: b\n\n")) == [b"a", b"b"]
