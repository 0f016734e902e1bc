"""Idempotency keys and retries of SDKs, on three replicas and two workers with the sim engine."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.client import Seen, read_line
from tests.support.stack import Stack, eventually, running_stack
from worker.engines.sim_answers import answer_text

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
STREAM = {**CHAT, "stream": True}
COUNTED = {**STREAM, "stream_options": {"include_usage": True}}
LONG = {**CHAT, "max_tokens": 250}
"""Five seconds: it still runs when a second client comes, on a busy machine too."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        for _ in range(2):
            started.worker("--", "--ttft-ms", "50", "--itl-ms", "20", "--slots", "128")
        for _ in range(3):
            started.api(env={"GATEWAY_API_KEYS": "alpha,beta"})
        yield started


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30, headers={"X-API-Key": "alpha"}) as client:
        yield client


def key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def chat(stack: Stack, replica: int = 0) -> str:
    return f"{stack.apis[replica].url}/v1/chat/completions"


def claims(stack: Stack) -> float:
    return sum(worker.metric("penstock_claims_total", outcome="ok") for worker in stack.workers)


def status(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.headers.get("idempotency-status")


def seen_in(answer: httpx.Response) -> Seen:
    seen = Seen(status=answer.status_code, rid=answer.headers["x-penstock-request"])
    for line in answer.text.splitlines():
        read_line(seen, line)
    return seen


async def test_fifty_posts_with_one_key_over_three_replicas_run_once_and_get_equal_answers(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    before, one = claims(stack), key()
    answers = await asyncio.gather(*(http.post(chat(stack, n % 3), json=LONG, headers=one) for n in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sorted(answer.headers["idempotency-status"] for answer in answers) == ["attached"] * 49 + ["created"]
    assert claims(stack) - before == 1
    other = await http.post(chat(stack, 1), json={**LONG, "max_tokens": 3}, headers=one)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_mismatch")
    assert other.headers["x-should-retry"] == "false"


async def test_streams_with_one_key_are_equal_byte_for_byte_while_it_runs_and_later(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    one = key()
    answers = await asyncio.gather(*(http.post(chat(stack, n % 3), json=STREAM, headers=one) for n in range(9)))
    later = await http.post(chat(stack, 1), json=STREAM, headers=one)
    assert len({answer.text.removeprefix(": queued\n\n") for answer in (*answers, later)}) == 1
    assert status(later) == (200, "replayed")
    seen = seen_in(later)
    seen.check(20)
    assert seen.whole


@pytest.mark.parametrize("while_it_runs", [True, False])
@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (STREAM, CHAT, "whole"),
        (COUNTED, CHAT, "whole"),
        (CHAT, STREAM, "stream"),
        (CHAT, COUNTED, "counted"),
        (STREAM, COUNTED, "counted"),
        (COUNTED, STREAM, "stream"),
    ],
)
async def test_an_answer_comes_in_the_form_that_each_client_asks_for(
    stack: Stack,
    http: httpx.AsyncClient,
    first: dict[str, Any],
    second: dict[str, Any],
    joined: str,
    while_it_runs: bool,  # noqa: FBT001
) -> None:
    one, before, tokens = key(), claims(stack), LONG["max_tokens"] if while_it_runs else 20
    first, second = {**first, "max_tokens": tokens}, {**second, "max_tokens": tokens}
    running = asyncio.create_task(http.post(chat(stack), json=first, headers=one))
    if not while_it_runs:
        await running
    else:
        await eventually(lambda: claims(stack) == before + 1, 30, "it runs")
    answer = await http.post(chat(stack, 1), json=second, headers=one)
    assert status(answer) == (200, "attached" if while_it_runs else "replayed")
    text = answer_text(answer.headers["x-penstock-request"], tokens)
    assert (await running).status_code == 200
    if joined == "whole":
        whole = answer.json()
        assert whole["object"] == "chat.completion"
        assert whole["choices"][0]["message"] == {"role": "assistant", "content": text}
        assert whole["choices"][0]["finish_reason"] == "length"
        assert whole["usage"] == {"prompt_tokens": 6, "total_tokens": 6 + tokens, "completion_tokens": tokens}
        return
    seen = seen_in(answer)
    assert (seen.text, seen.done, seen.finish_reasons) == (text, 1, ["length"])
    counted = [line for line in answer.text.splitlines() if '"usage":{' in line]
    assert len(counted) == (1 if joined == "counted" else 0)
    if counted:
        assert f'"total_tokens":{6 + tokens}' in counted[0]
        assert answer.text.index(counted[0]) < answer.text.index("data: [DONE]")


async def test_completions_and_generate_are_replayed_and_are_other_endpoints(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    one, url = key(), stack.apis[0].url
    first = await http.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 5}, headers=one)
    streamed = await http.post(
        f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 5, "stream": True}, headers=one
    )
    assert status(streamed) == (200, "replayed")
    assert first.json()["choices"][0]["text"] in streamed.text
    plain = await http.post(f"{url}/generate", json={"prompt": "x", "max_tokens": 5}, headers=one)
    assert status(plain) == (200, "created")
    again = await http.post(f"{url}/generate", json={"prompt": "x", "max_tokens": 5}, headers=one)
    assert status(again) == (200, "replayed")
    assert again.json() == plain.json()


async def test_a_key_is_its_tenants_own(stack: Stack, http: httpx.AsyncClient) -> None:
    one = key()
    mine = await http.post(chat(stack), json=CHAT, headers=one)
    theirs = await http.post(chat(stack), json={**CHAT, "max_tokens": 2}, headers={**one, "X-API-Key": "beta"})
    assert status(mine) == status(theirs) == (200, "created")


async def test_strict_mode_refuses_to_join_what_runs_and_replays_what_has_ended(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    strict = {**key(), "Idempotency-Mode": "strict"}
    before = claims(stack)
    running = asyncio.create_task(http.post(chat(stack), json=LONG, headers=strict))
    await eventually(lambda: claims(stack) == before + 1, 30, "it runs")
    refused = await http.post(chat(stack, 1), json=LONG, headers=strict)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_in_progress")
    assert (refused.headers["x-should-retry"], int(refused.headers["Retry-After"]) >= 1) == ("true", True)
    assert status(await running) == (200, "created")
    assert status(await http.post(chat(stack, 1), json=LONG, headers=strict)) == (200, "replayed")


async def test_an_engines_refusal_is_replayed_as_it_was(stack: Stack, http: httpx.AsyncClient) -> None:
    one = key()
    answers = [
        await http.post(chat(stack), json={**body, "max_tokens": 99_999}, headers=one) for body in (CHAT, STREAM)
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_cancelled_request_sets_its_key_free(stack: Stack, http: httpx.AsyncClient) -> None:
    one, before = key(), claims(stack)
    running = asyncio.create_task(http.post(chat(stack), json={**CHAT, "max_tokens": 500}, headers=one))
    await eventually(lambda: claims(stack) == before + 1, 30, "it runs")
    refused = await http.post(
        chat(stack, 1), json={**CHAT, "max_tokens": 500}, headers={**one, "Idempotency-Mode": "strict"}
    )
    rid = refused.json()["error"]["message"].rpartition("as ")[2].partition(".")[0]
    assert (await http.post(f"{stack.apis[2].url}/v1/requests/{rid}/cancel")).status_code == 200
    again = asyncio.create_task(http.post(chat(stack, 1), json={**CHAT, "max_tokens": 500}, headers=one))
    assert (await running).json()["error"]["code"] == "cancelled"
    answer = await again
    assert status(answer) == (200, "created")
    assert answer.headers["x-penstock-request"] != rid


async def test_an_answer_that_is_gone_is_410_and_never_a_second_run(stack: Stack, http: httpx.AsyncClient) -> None:
    one, before = key(), claims(stack)
    first = await http.post(chat(stack), json=CHAT, headers=one)
    rid = first.headers["x-penstock-request"]
    assert (await http.delete(f"{stack.apis[1].url}/v1/requests/{rid}")).json()["deleted"] is True
    gone = await http.post(chat(stack, 2), json=CHAT, headers=one)
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "result_expired")
    assert claims(stack) - before == 1


@pytest.mark.parametrize("sent", ["", '""', "with blank", "x" * 256, "umlaut-\u00fc"])
async def test_a_key_that_is_none_is_refused(stack: Stack, http: httpx.AsyncClient, sent: str) -> None:
    answer = await http.post(chat(stack), json=CHAT, headers={"Idempotency-Key": sent.encode()})  # type: ignore[dict-item]
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


async def test_headers_with_unknown_words_are_refused(stack: Stack, http: httpx.AsyncClient) -> None:
    for name in ("Idempotency-Mode", "X-On-Disconnect"):
        answer = await http.post(chat(stack), json=CHAT, headers={name: "perhaps"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name.lower())


@pytest.mark.parametrize("sent", [b"\xb2", b"9" * 5000], ids=["superscript", "long"])
async def test_a_retry_count_that_is_no_plain_number_costs_no_answer(
    stack: Stack, http: httpx.AsyncClient, sent: bytes
) -> None:
    headers = {"x-stainless-retry-count": sent}
    answer = await http.post(chat(stack), json={**CHAT, "user": uuid.uuid4().hex}, headers=headers)  # type: ignore[arg-type]
    assert status(answer) == (200, None)


async def test_the_retry_of_an_sdk_joins_the_request_whose_answer_it_has_missed(stack: Stack) -> None:
    before, content = claims(stack), uuid.uuid4().hex
    sent: list[httpx.Request] = []

    class Flaky(httpx.AsyncHTTPTransport):
        """Loses the connection of the first try, a moment after the request was sent."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            sent.append(request)
            answering = asyncio.create_task(super().handle_async_request(request))
            if len(sent) == 1:
                await eventually(lambda: claims(stack) == before + 1, 30, "it runs")
                answering.cancel()
                msg = "lost"
                raise httpx.ReadError(msg)
            return await answering

    async with openai.AsyncOpenAI(
        base_url=f"{stack.apis[0].url}/v1", api_key="alpha", http_client=httpx.AsyncClient(transport=Flaky())
    ) as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(
            model="sim", messages=[{"role": "user", "content": content}], max_tokens=120
        )
    assert [request.headers["x-stainless-retry-count"] for request in sent] == ["0", "1"]
    assert raw.headers["idempotency-status"] == "coalesced"
    answer = raw.parse()
    assert answer.choices[0].message.content == answer_text(raw.headers["x-penstock-request"], 120)
    assert claims(stack) - before == 1


async def test_without_a_key_equal_requests_run_each_for_itself_and_a_delivered_answer_is_not_given_again(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    before = claims(stack)
    body = {**CHAT, "user": uuid.uuid4().hex}
    answers = await asyncio.gather(*(http.post(chat(stack, n % 3), json=body) for n in range(4)))
    assert len({answer.content for answer in answers}) == 4
    retried = await http.post(chat(stack), json=body, headers={"x-stainless-retry-count": "1"})
    assert status(retried) == (200, None)
    assert claims(stack) - before == 5
