"""The routes beside chat and completions, by the SDKs and by plain HTTP, on real processes with the sim engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from jsonschema import Draft202012Validator

from api.surface import BY_PATH
from tests.support.stack import Stack, eventually, running_stack
from worker.engines.sim_answers import answer_text
from worker.engines.sim_looks import similarity, vector

SAY: Any = [{"role": "user", "content": "count"}]
FLAGS = ("--model", "sim-model", "--", "--ttft-ms", "5", "--itl-ms", "2", "--slots", "64", "--max-model-len", "2000")
TEXTS = ["a queue", "a gate", "a queue"]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A worker and two replicas, the second with keys."""
    with running_stack() as started:
        started.worker(*FLAGS)
        started.api()
        started.api(ready=False, env={"PENSTOCK_API_KEYS": "alpha"})
        yield started


@pytest.fixture
async def claude(stack: Stack) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=stack.apis[0].url, api_key="none", max_retries=0) as client:
        yield client


def rid_of(body_id: str) -> str:
    return body_id.partition("-")[2]


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_the_openai_sdk_gets_a_vector_for_each_text(sdk: openai.AsyncOpenAI, encoding: Any) -> None:
    answer = await sdk.embeddings.create(model="sim-model", input=TEXTS, encoding_format=encoding)
    assert [one.index for one in answer.data] == [0, 1, 2]
    if encoding == "float":
        assert [one.embedding for one in answer.data] == [pytest.approx(vector(text)) for text in TEXTS]
    assert answer.data[0].embedding == answer.data[2].embedding != answer.data[1].embedding
    assert answer.usage.prompt_tokens == 6
    small = await sdk.embeddings.create(model="sim-model", input="a queue", dimensions=4)
    assert len(small.data[0].embedding) == 4
    of_ids = await sdk.embeddings.create(model="sim-model", input=[[17, 18], [19]])
    assert len(of_ids.data) == 2


async def test_an_embedding_takes_the_same_way_as_a_generation(http: httpx.AsyncClient) -> None:
    body = {"model": "sim-model", "input": TEXTS}
    headers = {"X-Priority-Lane": "batch", "Idempotency-Key": "vectors", "X-Request-Id": "mine"}
    first = await http.post("/v1/embeddings", json=body, headers=headers)
    again = await http.post("/v1/embeddings", json=body, headers=headers)
    other = await http.post("/v1/embeddings", json={**body, "input": "other"}, headers=headers)
    assert (first.headers["x-penstock-lane"], first.headers["x-request-id"]) == ("batch", "mine")
    assert (again.headers["idempotency-status"], again.content) == ("replayed", first.content)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_mismatch")
    rid = first.headers["x-penstock-request"]
    facts = (await http.get(f"/v1/requests/{rid}")).json()
    assert (facts["state"], facts["usage"]["prompt_tokens"]) == ("succeeded", 6)
    events = (await http.get(f"/v1/requests/{rid}/events")).text.split("\n\n")
    assert json.loads(events[0].partition("data: ")[2])["data"] == first.json()["data"]
    assert events[1].endswith("data: [DONE]")


async def test_scores_ranks_and_classes(http: httpx.AsyncClient) -> None:
    expected = [similarity("a queue", text) for text in TEXTS]
    for path in ("/v1/score", "/score"):
        scored = await http.post(path, json={"model": "sim-model", "queries": "a queue", "documents": TEXTS})
        assert [one["score"] for one in scored.json()["data"]] == pytest.approx(expected)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        ranked = await http.post(path, json={"query": "a queue", "documents": TEXTS, "top_n": 2})
        assert [one["index"] for one in ranked.json()["results"]] == [0, 2]
    classes = (await http.post("/classify", json={"input": TEXTS})).json()["data"]
    assert classes[0]["probs"] == classes[2]["probs"]
    pooled = (await http.post("/pooling", json={"input": TEXTS})).json()["data"]
    assert pooled[1]["data"] == pytest.approx(vector("a gate"))


async def test_what_an_answer_says_can_be_cut_into_tokens_and_put_together_again(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 9})).json()
    tokens = (await http.post("/tokenize", json={"prompt": answer["choices"][0]["text"]})).json()
    assert (tokens["count"], tokens["max_model_len"]) == (9, 2000)
    text = (await http.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
    assert text == {"prompt": answer["choices"][0]["text"]}
    chat = (await http.post("/tokenize", json={"messages": SAY})).json()
    asked = (await http.post("/v1/chat/completions", json={"messages": SAY, "max_tokens": 1})).json()
    assert chat["count"] == asked["usage"]["prompt_tokens"]


@pytest.mark.parametrize("path", list(BY_PATH))
async def test_the_documents_example_of_each_route_works_as_it_says(http: httpx.AsyncClient, path: str) -> None:
    document = (await http.get("/openapi.json")).json()
    operation = document["paths"][path]["post"]
    body = operation["requestBody"]["content"]["application/json"]["example"]
    answer = await http.post(path, json={**body, "model": "sim-model"})
    assert answer.status_code == 200, answer.text
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
    gone = (await http.post(path, json={**body, "model": "gone"})).json()
    schema = operation["responses"]["404"]["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(gone)


async def test_the_version_names_the_engines(http: httpx.AsyncClient) -> None:
    said = (await http.get("/version")).json()
    assert set(said) == {"version", "engines"}
    assert said["engines"] == [{"name": "sim", "version": "1"}]


@pytest.mark.parametrize("usage", [True, False])
async def test_a_stream_can_end_with_how_long_what_took(sdk: openai.AsyncOpenAI, *, usage: bool) -> None:
    options: Any = {"include_timing": True, "include_usage": usage}
    stream = await sdk.chat.completions.create(
        model="sim-model", messages=SAY, max_tokens=40, stream=True, stream_options=options
    )
    chunks: list[Any] = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer_text(rid_of(chunks[0].id), 40)
    assert [hasattr(chunk, "timing") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert any(chunk.usage for chunk in chunks) is usage
    last = chunks[-1]
    assert (last.id, last.choices) == (chunks[0].id, [])
    assert 0 <= last.timing["queue_ms"] <= last.timing["first_token_ms"] < last.timing["total_ms"]
    assert last.timing["first_token_ms"] >= 5, "what the engine takes to its first token"
    assert 10 < last.timing["tokens_per_second"] < 600, "a token each 2 ms"


async def test_who_joins_a_request_is_told_no_times(http: httpx.AsyncClient) -> None:
    body = {"messages": SAY, "max_tokens": 3, "stream": True, "stream_options": {"include_timing": True}}
    told = [await http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "t"}) for _ in range(2)]
    assert ['"timing"' in answer.text for answer in told] == [True, False]
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in told)


async def test_the_anthropic_sdk_gets_a_message(claude: anthropic.AsyncAnthropic) -> None:
    message = await claude.messages.create(model="sim-model", max_tokens=7, messages=SAY, system="Be brief.")
    assert message.content[0].type == "text"
    assert message.content[0].text == answer_text(rid_of(message.id), 7)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 7)
    counted = await claude.messages.count_tokens(model="sim-model", messages=SAY, system="Be brief.")
    assert counted.input_tokens == message.usage.input_tokens
    assert message._request_id == rid_of(message.id)


async def test_the_anthropic_sdk_streams_a_message(claude: anthropic.AsyncAnthropic) -> None:
    async with claude.messages.stream(model="sim-model", max_tokens=30, messages=SAY) as stream:
        pieces = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert "".join(pieces) == answer_text(rid_of(message.id), 30)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 30)


async def test_the_anthropic_sdk_raises_its_own_errors(stack: Stack, claude: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await claude.messages.create(model="gpt-9", max_tokens=7, messages=SAY)
    assert unknown.value.body == {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": unknown.value.body["error"]["message"],
            "code": "model_not_found",
        },  # type: ignore[index]
    }
    with pytest.raises(anthropic.BadRequestError) as long:
        await claude.messages.create(model="sim-model", max_tokens=9999, messages=SAY)
    assert "maximum context length" in long.value.message
    async with anthropic.AsyncAnthropic(base_url=stack.apis[1].url, api_key="beta", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(model="sim-model", max_tokens=7, messages=SAY)
    async with anthropic.AsyncAnthropic(base_url=stack.apis[1].url, api_key="alpha", max_retries=0) as known:
        assert (await known.messages.create(model="sim-model", max_tokens=7, messages=SAY)).usage.output_tokens == 7


async def test_a_message_in_the_other_form_is_another_request(http: httpx.AsyncClient) -> None:
    """A stream of Anthropic's events is not made into a message, nor the other way: the key says so."""
    body = {"model": "sim-model", "max_tokens": 5, "messages": SAY}
    first = await http.post("/v1/messages", json=body, headers={"Idempotency-Key": "m"})
    streamed = await http.post("/v1/messages", json={**body, "stream": True}, headers={"Idempotency-Key": "m"})
    assert first.status_code == 200
    assert (streamed.status_code, streamed.json()["error"]["code"]) == (422, "idempotency_key_mismatch")


async def test_a_message_stream_is_gone_on_with_behind_a_cursor(http: httpx.AsyncClient) -> None:
    body = {"model": "sim-model", "max_tokens": 20, "messages": SAY, "stream": True}
    answer = await http.post("/v1/messages", json=body)
    events = answer.text.split("\n\n")
    cursor = events[7].partition("\n")[0].removeprefix("id: ")
    rest = await http.get(
        f"/v1/requests/{answer.headers['x-penstock-request']}/events", headers={"Last-Event-ID": cursor}
    )
    assert rest.text.split("\n\n") == events[8:]


async def test_a_killed_workers_messages_go_on_elsewhere_where_they_were() -> None:
    flags = ("--model", "sim-model", "--", "--ttft-ms", "5", "--itl-ms", "20", "--slots", "16")
    tokens, streams = 150, 8
    with running_stack() as small:
        victim = small.worker(*flags)
        api = small.api()
        texts: list[list[str]] = [[] for _ in range(streams)]

        async def read(client: anthropic.AsyncAnthropic, into: list[str]) -> anthropic.types.Message:
            async with client.messages.stream(model="sim-model", max_tokens=tokens, messages=SAY) as stream:
                async for text in stream.text_stream:
                    into.append(text)  # noqa: PERF401 - it is looked at meanwhile
                return await stream.get_final_message()

        async with anthropic.AsyncAnthropic(base_url=api.url, api_key="none", max_retries=0) as client:
            reading = [asyncio.create_task(read(client, into)) for into in texts]
            await eventually(lambda: all(len(into) > 5 for into in texts), 30, "every stream has begun")
            victim.kill()
            shown = [len(into) for into in texts]
            heir = small.worker(*flags)
            messages = await asyncio.gather(*reading)
        assert all(0 < count < tokens for count in shown), "the kill was in the middle"
        assert heir.metric("penstock_resumes_total", policy="continue") == streams
        for into, message in zip(texts, messages, strict=True):
            assert "".join(into) == answer_text(rid_of(message.id), tokens)
            assert message.content[0].text == "".join(into)  # type: ignore[union-attr]
            assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", tokens)
