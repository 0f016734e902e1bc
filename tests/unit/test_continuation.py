"""continuation: what can be continued, and that nothing passes but what follows the delivered text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.outcomes import Claimed
from shared.wire import DELTA, HEAD, RESUME, Frame, Meta, Request, encode
from worker.continuation import History, Resumption, policy_for
from worker.engines.base import Capabilities, Policy
from worker.outgoing import Outgoing

SSE = Meta(status=200, headers=[("content-type", "text/event-stream; charset=utf-8")])
JOURNALS = Capabilities(journals=True, priorities=False)
CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "stream": True}


def event(text: str = "", *, created: int = 100, **choice: Any) -> bytes:
    """A chunk of a chat."""
    delta = {"content": text, **choice.pop("delta", {})}
    chunk = {"id": "c", "created": created, "choices": [{"index": 0, "delta": delta, **choice}]}
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def usage(tokens: int) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode() + b"\n\n"


def frame(attempt: str, data: bytes, *, kind: int = DELTA, index: int = 0, ids: list[int] | None = None) -> bytes:
    meta = SSE if kind & HEAD else Meta(after="?") if kind & RESUME else None
    return encode(Frame(kind, attempt, index, ids or [], index, meta, data))


def request(path: str = CHAT, *, width: int = 1, **body: Any) -> Request:
    return Request("POST", path, [], json.dumps(body).encode(), "standard", width)


def visible(data: bytes = b"data: x\n\n", ids: list[int] | None = None) -> History:
    return History("a1", SSE, data, ids or [], 0)


# ---- the history


def test_an_empty_log_and_one_with_a_head_alone_have_nothing_visible() -> None:
    assert History.of(b"") is None
    assert History.of(frame("a1", b"", kind=HEAD, ids=[4])) is None


def test_a_history_is_all_frames_together_under_the_last_ones_attempt() -> None:
    log = frame("a1", b"A", kind=HEAD, ids=[1, 2]) + frame("a1", b"B", index=2, ids=[3])
    assert History.of(log) == History("a1", SSE, b"AB", [1, 2, 3], 2)
    log += frame("a2", b"C", kind=RESUME, index=3, ids=[4]) + frame("a2", b"", index=4)
    assert History.of(log) == History("a2", SSE, b"ABC", [1, 2, 3, 4], 4)


def test_tokens_that_a_later_attempt_made_anew_replace_the_earlier_ones() -> None:
    log = frame("a1", b"A", kind=HEAD, ids=[1, 2, 3]) + frame("a2", b"B", kind=RESUME, index=2, ids=[9, 8])
    history = History.of(log)
    assert history is not None
    assert history.token_ids == [1, 2, 9, 8]


def test_an_attempt_that_started_anew_behind_a_head_forgets_what_was_before() -> None:
    history = History.of(frame("a1", b"", kind=HEAD, ids=[1]) + frame("a2", b"A", kind=HEAD, ids=[5]))
    assert history == History("a2", SSE, b"A", [5], 0)


# ---- the policy


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"temperature": 0},
        {"temperature": 1, "top_p": 0.9, "stop": ["x"], "min_tokens": 4, "logit_bias": {"3": 1}},
        {"tools": [{}], "tool_choice": "auto", "repetition_penalty": 1.2, "n": 1, "logprobs": False},
        {"response_format": {"type": "text"}, "presence_penalty": 0, "seed": None},
    ],
)
def test_what_depends_on_its_tokens_alone_is_continued(body: dict[str, Any]) -> None:
    assert policy_for(request(**MESSAGES, **body), visible(), JOURNALS) is Policy.CONTINUE


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a"}},
        {"guided_json": {}, "guided_choice": ["a"]},
        {"tools": [{}], "tool_choice": "required"},
        {"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"seed": 0},
        {"logprobs": True},
        {"bad_words": ["a"]},
        {"thinking_token_budget": 5},
    ],
)
def test_what_depends_on_more_is_verified(body: dict[str, Any]) -> None:
    assert policy_for(request(**MESSAGES, **body), visible(), JOURNALS) is Policy.VERIFY


@pytest.mark.parametrize(
    ("body", "policy"),
    [
        ({"max_tokens": 9, "stop_sequences": ["x"], "top_k": 4}, Policy.CONTINUE),
        ({"tools": [{}], "tool_choice": {"type": "auto"}}, Policy.CONTINUE),
        ({"tools": [{}], "tool_choice": {"type": "none"}}, Policy.CONTINUE),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, Policy.CONTINUE),
        ({"tools": [{}], "tool_choice": {"type": "any"}}, Policy.VERIFY),
        ({"tools": [{}], "tool_choice": {"type": "tool", "name": "f"}}, Policy.VERIFY),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, Policy.VERIFY),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, Policy.VERIFY),
    ],
)
def test_a_message_in_anthropics_form_is_continued_or_verified(body: dict[str, Any], policy: Policy) -> None:
    assert policy_for(request("/v1/messages", **MESSAGES, **body), visible(), JOURNALS) is policy


@pytest.mark.parametrize("body", [{"logprobs": 0}, {"echo": True}, {"prompt_logprobs": 0}])
def test_a_completion_that_shows_more_than_its_tokens_is_verified(body: dict[str, Any]) -> None:
    assert policy_for(request("/v1/completions", prompt="a", **body), visible(), JOURNALS) is Policy.VERIFY


@pytest.mark.parametrize(
    ("body", "policy"),
    [
        ({}, Policy.CONTINUE),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}, "tools": [{}]}, Policy.CONTINUE),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, Policy.VERIFY),
        ({"text": {"format": {"type": "json_object"}}}, Policy.VERIFY),
        ({"tool_choice": {"type": "function", "name": "f"}}, Policy.VERIFY),
        ({"include": ["message.output_text.logprobs"]}, Policy.VERIFY),
        ({"seed": 3}, Policy.VERIFY),
    ],
)
def test_a_response_is_continued_like_a_chat(body: dict[str, Any], policy: Policy) -> None:
    assert policy_for(request("/v1/responses", input="x", **body), visible(), JOURNALS) is policy


@pytest.mark.parametrize("prompt", ["a", ["a"], [1, 2, 3], [[1, 2]]])
def test_one_prompt_in_any_form_is_continued(prompt: Any) -> None:
    assert policy_for(request("/v1/completions", prompt=prompt), visible(), JOURNALS) is Policy.CONTINUE


@pytest.mark.parametrize(
    "asked",
    [
        request(n=2, **MESSAGES),
        request(width=2, **MESSAGES),
        request(use_beam_search=True, **MESSAGES),
        request("/v1/completions", prompt=["a", "b"]),
        request("/v1/completions", prompt=[[1], [2]]),
        request("/v1/embeddings", input="x"),
        Request("POST", CHAT, [], b"[1", "standard"),
        Request("POST", CHAT, [], b"[1]", "standard"),
    ],
)
def test_what_runs_as_several_sequences_or_is_no_completion_cannot_be_continued(asked: Request) -> None:
    assert policy_for(asked, visible(), JOURNALS) is None


def test_without_a_journal_or_without_events_nothing_can_be_continued() -> None:
    asked = request(**MESSAGES)
    assert policy_for(asked, visible(), Capabilities(journals=False, priorities=False)) is None
    other = Meta(status=200, headers=[("content-type", "audio/wav")])
    assert policy_for(asked, History("a1", other, b"RIFF", [], 0), JOURNALS) is None


# ---- the way out


class Published:
    """A publisher without a server: what it was given is taken from the Outgoing."""

    def mark(self, out: Outgoing) -> None:
        """Something waits."""


class Resumed:
    """A resumption of `data`, of tokens 1, 2, 3, and everything that came of it."""

    def __init__(self, data: bytes, ids: list[int] | None = None) -> None:
        self.lost = 0
        history = History("a1", SSE, data, [1, 2, 3] if ids is None else ids, 3)
        claimed = Claimed(b"", b"x" * 50, 1, 0, 0)
        self.out = Outgoing(Published(), "r1", "a2", claimed, keep_bytes=0, priority=0)
        self.answer = Resumption(self.out, history, Policy.CONTINUE, self._on_lost)

    def _on_lost(self) -> None:
        self.lost += 1

    def replay(self, *pieces: bytes) -> None:
        """The engine renders these pieces for the old tokens."""
        self.answer.head(200, [], streaming=True)
        self.answer.tokens([1, 2, 3], 3)
        for piece in pieces:
            self.answer.body(piece)
        self.answer.replayed()

    @property
    def sent(self) -> bytes:
        return b"".join(self.out._pieces)


ROLE = event(delta={"role": "assistant"})


def test_what_was_delivered_is_dropped_and_the_rest_passes_as_it_is() -> None:
    resumed = Resumed(ROLE + event("abc"))
    resumed.replay(ROLE, event("a"), event("bc"))
    assert resumed.sent == b""
    resumed.answer.tokens([4], 1)
    for piece in (event("d"), usage(4) + DONE):
        resumed.answer.body(piece)
    resumed.answer.ended()
    assert resumed.sent == event("d") + usage(4) + DONE
    assert not resumed.lost


def test_the_first_frame_says_behind_whom_it_stands_and_which_tokens_are_new() -> None:
    resumed = Resumed(event("abc"))
    resumed.replay(event("abc"))
    resumed.answer.tokens([4], 1)
    resumed.answer.body(event("d"))
    assert resumed.out.frame() == encode(Frame(RESUME, "a2", 3, [4], 4, Meta(after="a1"), event("d")))
    resumed.answer.tokens([5], 1)
    resumed.answer.body(event("e"))
    assert resumed.out.frame() == encode(Frame(DELTA, "a2", 4, [5], 5, None, event("e")))


def test_usage_counts_the_delivered_tokens_once() -> None:
    resumed = Resumed(event("abc"))
    assert resumed.out.used.completion_tokens == 3
    resumed.answer.usage(7, 3)
    resumed.replay(event("abc"))
    resumed.answer.usage(0, 1)
    assert (resumed.out.used.prompt_tokens, resumed.out.used.completion_tokens) == (7, 4)


def test_the_time_of_creation_is_the_first_attempts() -> None:
    resumed = Resumed(event("a", created=100))
    resumed.replay(event("a", created=222))
    resumed.answer.body(event('"created":222', created=222))
    assert resumed.sent == event('"created":222', created=100)


def test_an_end_that_was_delivered_in_part_is_completed() -> None:
    end = event(finish_reason="stop", stop_reason=7)
    for delivered in (event("abc"), event("abc") + end, event("abc") + end + usage(3)):
        whole = event("abc") + end + usage(3) + DONE
        resumed = Resumed(delivered)
        resumed.replay(event("abc"))
        for piece in (end, usage(3), DONE):
            resumed.answer.body(piece)
        resumed.answer.ended()
        assert delivered + resumed.sent == whole
        assert not resumed.lost


def test_an_answer_of_which_all_was_delivered_adds_nothing() -> None:
    whole = event("abc") + event(finish_reason="stop") + DONE
    resumed = Resumed(whole)
    resumed.replay(whole)
    resumed.answer.ended()
    assert resumed.sent == b""
    assert not resumed.lost


def test_tokens_that_were_logged_before_their_text_was_delivered_are_delivered_now() -> None:
    resumed = Resumed(event("a"))
    resumed.replay(event("a"), event("bc"))
    assert resumed.sent == event("bc")
    assert not resumed.lost


def test_only_the_first_frame_resumes_also_when_it_was_due_before_the_replay_was_over() -> None:
    resumed = Resumed(event("a"))
    resumed.answer.tokens([1, 2], 2)
    resumed.answer.body(event("a"))
    resumed.answer.body(event("b"))
    assert resumed.out.frame() == encode(Frame(RESUME, "a2", 3, [], 3, Meta(after="a1"), event("b")))
    resumed.answer.tokens([3], 1)
    resumed.answer.body(event("c"))
    resumed.answer.replayed()
    resumed.answer.tokens([4], 1)
    resumed.answer.body(event("d"))
    assert resumed.out.frame() == encode(Frame(DELTA, "a2", 3, [4], 4, None, event("c") + event("d")))


def test_a_tool_calls_id_may_differ_and_its_arguments_may_not() -> None:
    def call(**fields: Any) -> bytes:
        return event(delta={"tool_calls": [{"index": 0, **fields}]})

    delivered = call(id="x1", function={"name": "f", "arguments": ""}) + call(function={"arguments": '{"a":'})
    resumed = Resumed(delivered)
    resumed.replay(call(id="y2", function={"name": "f"}), call(function={"arguments": '{"a":'}))
    resumed.answer.body(call(function={"arguments": "1}"}))
    assert resumed.sent == call(function={"arguments": "1}"})
    other = Resumed(delivered)
    other.replay(call(id="y2", function={"name": "f"}), call(function={"arguments": '{"b":'}))
    assert other.lost == 1


@pytest.mark.parametrize(
    "pieces",
    [
        [event("abX")],
        [event("ab"), event("cd")],
        [event("abc", delta={"reasoning": "hm"})],
        [event("abc", token_ids=[7])],
        [event("ab", finish_reason="stop")],
        [b'data: {"error":{"message":"no"}}\n\n'],
        [b"event: response.created\ndata: {}\n\n"],
        [b"data: {\n\n"],
        [b"data: [1]\n\n"],
    ],
)
def test_what_differs_is_lost_and_nothing_is_published(pieces: list[bytes]) -> None:
    resumed = Resumed(ROLE + event("abc"))
    resumed.replay(ROLE, *pieces)
    resumed.answer.body(event("d"))
    assert resumed.lost == 1
    assert resumed.sent == b""


def test_other_tokens_than_the_logged_ones_are_lost() -> None:
    resumed = Resumed(event("abc"))
    resumed.answer.tokens([1], 1)
    assert not resumed.lost
    resumed.answer.tokens([2, 4], 2)
    assert resumed.lost == 1


def test_an_answer_that_stops_short_of_what_was_delivered_is_lost() -> None:
    resumed = Resumed(event("abc"))
    resumed.replay(event("ab"))
    resumed.answer.ended()
    assert resumed.lost == 1


@pytest.mark.parametrize(("status", "streaming"), [(503, False), (400, True), (200, False)])
def test_a_request_that_is_refused_now_is_lost(status: int, *, streaming: bool) -> None:
    resumed = Resumed(event("abc"))
    resumed.answer.head(status, [], streaming=streaming)
    assert resumed.lost == 1


@pytest.mark.parametrize("data", [b"data: {", b"RIFF\n\n", b"data: [1]\n\n", b'data: {"choices":[1]}\n\n'])
def test_what_cannot_be_compared_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Resumed(data)


def test_an_explicit_error_of_the_engine_passes_behind_what_was_delivered() -> None:
    error = b'data: {"error":{"message":"no"}}\n\n'
    resumed = Resumed(event("abc"))
    resumed.replay(event("abc"), error)
    assert resumed.sent == error


# ---- Anthropic's events


def named(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def delta(index: int, **fields: Any) -> bytes:
    return named("content_block_delta", index=index, delta=fields)


def start(tokens: int = 5) -> bytes:
    return named("message_start", message={"id": "m", "usage": {"input_tokens": tokens, "output_tokens": 1}})


def opened(index: int, kind: str, **fields: Any) -> bytes:
    return named("content_block_start", index=index, content_block={"type": kind, **fields})


def closed(index: int) -> bytes:
    return named("content_block_stop", index=index)


TOOL_USE = (
    start()
    + opened(0, "thinking", thinking="")
    + delta(0, type="thinking_delta", thinking="hm")
    + delta(0, type="signature_delta", signature="x1")
    + closed(0)
    + opened(1, "tool_use", id="t1", name="f", input={})
    + delta(1, type="input_json_delta", partial_json='{"a":')
)


def test_a_messages_ids_and_signatures_may_differ_and_what_it_says_may_not() -> None:
    again = TOOL_USE.replace(b"x1", b"y2").replace(b"t1", b"u2")
    rest = delta(1, type="input_json_delta", partial_json="1}") + closed(1)
    resumed = Resumed(TOOL_USE)
    resumed.replay(again)
    resumed.answer.body(rest)
    assert resumed.sent == rest
    assert not resumed.lost


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        (b'"f"', b'"g"'),
        (b'"hm"', b'"ho"'),
        (b'\\"a\\"', b'\\"b\\"'),
        (b'"input_tokens": 5', b'"input_tokens": 6'),
        (b'"tool_use"', b'"text"'),
        (b"content_block_stop", b"content_block_gone"),
        (b"signature_delta", b"text_delta"),
        (b'"index": 1', b'"index": 2'),
    ],
)
def test_a_message_that_says_something_else_is_lost(said: bytes, instead: bytes) -> None:
    assert said in TOOL_USE
    resumed = Resumed(TOOL_USE)
    resumed.replay(TOOL_USE.replace(said, instead))
    resumed.answer.body(closed(1))
    assert resumed.lost == 1
    assert resumed.sent == b""


def test_a_pieces_borders_are_nothing_that_a_message_says() -> None:
    resumed = Resumed(start() + opened(0, "text", text="") + delta(0, type="text_delta", text="abc"))
    resumed.replay(start(), opened(0, "text", text=""), *(delta(0, type="text_delta", text=one) for one in "abc"))
    resumed.answer.body(closed(0))
    assert resumed.sent == closed(0)
