"""Errors as clients see them."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest
from openai._models import FinalRequestOptions

from api import dialects, problems
from shared import errors
from shared.errors import RequestError
from shared.wire import Meta

openai_options = FinalRequestOptions.construct(method="post", url="/chat/completions")


def error_of(body: bytes) -> dict[str, object]:
    error = json.loads(body)["error"]
    assert isinstance(error, dict)
    return error


def test_the_envelope_is_openais() -> None:
    error = error_of(dialects.envelope(errors.model_not_found("m"), "/v1/models"))
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "/v1/models" in str(error["message"])


def test_on_anthropics_routes_the_envelope_is_anthropics_and_the_code_is_the_same() -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/messages/nothing"):
        told = json.loads(dialects.envelope(errors.model_not_found("m"), path))
        assert (told["type"], told["error"]["type"], told["error"]["code"]) == (
            "error",
            "not_found_error",
            "model_not_found",
        )
    assert "type" not in json.loads(dialects.envelope(errors.model_not_found("m"), "/v1/messagesome"))
    assert dialects.event(errors.worker_lost(), "/v1/messages").startswith(b'event: error\ndata: {"type":"error"')


@pytest.mark.parametrize("status", range(400, 600))
def test_every_status_has_a_word_of_anthropics(status: int) -> None:
    told = json.loads(dialects.envelope(RequestError(status, "x", "y"), "/v1/messages"))
    assert told["error"]["type"].endswith(("_error", "too_large"))


def test_a_route_that_the_engine_does_not_have_is_told_by_its_name() -> None:
    refusal = problems.of_refusal(404, b'{"detail":"Not Found"}', "chatty", "/v1/embeddings")
    assert (refusal.status, refusal.code) == (404, "endpoint_not_supported")
    assert "chatty" in refusal.message
    assert "/v1/embeddings" in refusal.message


def retry_headers(after_s: float, *, own_turn: bool = False) -> list[tuple[int, int]]:
    """`Retry-After` and `retry-after-ms` as 300 clients get them."""
    error = errors.queue_full(9, after_s, own_turn=own_turn)
    told = [problems.headers(error) for _ in range(300)]
    return [(int(one["Retry-After"]), int(one["retry-after-ms"])) for one in told]


def test_retry_after_is_jittered_whole_seconds_rounded_up() -> None:
    seen = {seconds for seconds, _ in retry_headers(20)}
    assert (min(seen), max(seen)) >= (17, 22)
    assert max(seen) <= 24
    assert len(seen) > 3


@pytest.mark.parametrize("after_s", [26, 30, 500])
@pytest.mark.parametrize("own_turn", [True, False])
def test_nobody_is_told_more_than_30_s_nor_do_all_come_at_once_then(after_s: float, *, own_turn: bool) -> None:
    told = retry_headers(after_s, own_turn=own_turn)
    assert all(20 <= seconds <= 30 and 20_000 <= ms <= 30_000 for seconds, ms in told)
    assert len({ms for _, ms in told}) > 200


@pytest.mark.parametrize("after_s", [0, 0.0001, 0.3, 1])
def test_a_second_or_less_is_1_and_never_a_time_that_the_sdk_would_not_wait(after_s: float) -> None:
    told = retry_headers(after_s, own_turn=True)
    assert {seconds for seconds, _ in told} == {1}
    assert {ms for _, ms in told} == {max(1, round(after_s * 1000)) if after_s >= 0.001 else 1}


def test_a_turn_of_its_own_is_told_to_the_millisecond_and_a_guess_is_spread() -> None:
    assert {ms for _, ms in retry_headers(2.345, own_turn=True)} == {2345}
    guesses = {ms for _, ms in retry_headers(2.345)}
    assert len(guesses) > 100
    assert min(guesses) >= 1876
    assert max(guesses) <= 2815


def test_the_openai_sdk_reads_what_we_send_and_would_try_again() -> None:
    client = openai.OpenAI(api_key="none")
    for error in (errors.queue_full(1, 2.5, own_turn=True), errors.no_capacity("m", 500), errors.broker_unavailable()):
        told = httpx2.Headers(problems.headers(error))
        delay_s = client._parse_retry_after_header(told)
        assert delay_s == int(told["retry-after-ms"]) / 1000
        assert client._should_retry(httpx2.Response(error.status, headers=told))
        assert client._calculate_retry_timeout(2, openai_options, told) == delay_s


def test_the_openai_sdk_does_not_repeat_what_cannot_succeed() -> None:
    client = openai.OpenAI(api_key="none")
    for error in (errors.invalid_request("x"), errors.deadline_exceeded(), errors.idempotency_key_mismatch()):
        assert not client._should_retry(httpx2.Response(error.status, headers=problems.headers(error)))


def test_should_retry_is_sent_only_where_it_was_decided() -> None:
    assert problems.headers(errors.invalid_request("x")) == {"x-should-retry": "false"}
    assert problems.headers(errors.broker_unavailable())["x-should-retry"] == "true"
    assert "x-should-retry" not in problems.headers(errors.queue_full(1, 1))


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (
            400,
            b'{"error": {"message": "m", "type": "BadRequestError", "param": "n", "code": 400}}',
            "invalid_request_error",
            "m",
        ),
        (
            400,
            b'{"error": {"message": "This model\'s maximum context length is 9 tokens.", "code": 400}}',
            "context_length_exceeded",
            "This model's maximum context length is 9 tokens.",
        ),
        (404, b'{"detail": "Not Found"}', "not_found", "Not Found"),
        (422, b'{"error": {"message": "no such image"}}', "unprocessable_entity", "no such image"),
        (500, b'{"error": {"message": "boom", "code": 500}}', "engine_error", "boom"),
        (501, b'{"error": {"message": "not here"}}', "not_implemented", "not here"),
        (400, b"<html>", "invalid_request_error", "The engine refused the request."),
        (400, b"[]", "invalid_request_error", "The engine refused the request."),
        (401, b'{"error": "Unauthorized"}', "invalid_request_error", "Unauthorized"),
    ],
)
def test_an_engines_refusal_keeps_its_words_and_gets_openais_code(
    status: int, body: bytes, code: str, message: str
) -> None:
    refusal = problems.of_refusal(status, body)
    assert (refusal.status, refusal.code, refusal.message) == (status, code, message)
    assert refusal.should_retry is (status >= 500)


def test_an_error_as_the_first_event_of_a_stream_is_recognised_and_an_answer_is_not() -> None:
    first = b'id: 10\ndata: {"error": {"message": "logprobs out of range", "code": 400}}\n\ndata: [DONE]\n\n'
    refusal = problems.of_first_event(first)
    assert refusal is not None
    assert (refusal.status, refusal.message) == (400, "logprobs out of range")
    assert (
        problems.of_first_event(b'id: 1\ndata: {"id":"x","choices":[{"delta":{"content":"{\\"error\\":1}"}}]}\n\n')
        is None
    )
    assert problems.of_first_event(b"") is None
    odd = problems.of_first_event(b'data: {"error":{"message":"x","code":"weird"}}\n\n')
    assert odd is not None
    assert odd.status == 500


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (Meta(state="expired", reason="queue_timeout"), 503, "queue_timeout"),
        (Meta(state="expired", reason="deadline_exceeded"), 504, "deadline_exceeded"),
        (Meta(state="failed", reason="worker_lost"), 500, "worker_lost"),
        (Meta(state="failed", reason="too_many_attempts"), 500, "too_many_attempts"),
        (Meta(state="cancelled", reason="client_gone"), 499, "cancelled"),
        (Meta(state="failed", reason="engine_error", message="why"), 500, "engine_error"),
        (Meta(state="failed", reason="something new"), 500, "engine_error"),
    ],
)
def test_every_end_without_an_answer_is_an_explicit_error(end: Meta, status: int, code: str) -> None:
    problem = problems.of_end(end)
    assert (problem.status, problem.code) == (status, code)
    assert problem.message


def test_the_last_event_of_a_broken_stream_is_one_event() -> None:
    event = dialects.event(errors.worker_lost(), "/v1/chat/completions")
    assert event.startswith(b"data: {")
    assert event.count(b"\n\n") == 1
    assert event.endswith(b"\n\n")


def test_what_an_engine_says_about_a_request_is_for_its_client_and_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    refusal = problems.of_refusal(400, b'{"error": {"message": "1 validation error: \'a secret prompt\' is no list"}}')
    assert "a secret prompt" in refusal.message
    problems.note(refusal, "/v1/chat/completions")
    problems.note(errors.model_not_found("nobody"), "/v1/chat/completions")
    engines, ours = caplog.messages
    assert engines == "refused /v1/chat/completions: 400 invalid_request_error: (the engine's words)"
    assert "nobody" in ours
