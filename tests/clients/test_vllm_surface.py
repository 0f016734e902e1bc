"""Real vLLM behind the routes beside OpenAI's generations, by the SDKs: vectors, scores, tokens, Anthropic's messages.

Two pools: a model that says a script (a thought, words, a call of a tool), and a tiny one that vLLM loads for pooling.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.hostile.for_engines import BORNE, ENGINE, POOLED, forms
from tests.hostile.sending import code_of
from tests.support.scripted_models import SIGNS, THOUGHT, WORDS
from tests.support.stack import Stack

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

SAY: Any = [{"role": "user", "content": "What is a queue?"}]
LOOK: Any = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
FUNCTION: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
GREEDY = {"temperature": 0}
"""Anthropic's SDK does not know the temperature any more."""
SAID = ("".join(WORDS) + SIGNS).strip()


@pytest.fixture
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.apis[0].url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=stack.apis[0].url, api_key="none", max_retries=0) as client:
        yield client


def test_the_openai_sdk_gets_vectors(sdk: openai.OpenAI) -> None:
    texts = ["a queue", "a gate", "a queue"]
    answer = sdk.embeddings.create(model="vectors", input=texts)
    first, second, third = (one.embedding for one in answer.data)
    assert len(first) == 128
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-2)
    assert first == pytest.approx(third, abs=1e-3)
    assert first != pytest.approx(second, abs=1e-2)
    plain = sdk.embeddings.create(model="vectors", input=texts[0], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(first, abs=1e-3)
    ids = sdk.embeddings.create(model="vectors", input=[5, 6, 7])
    assert (len(ids.data), ids.usage.prompt_tokens) == (1, 3)


def test_texts_are_scored_and_ranked(http: httpx.Client) -> None:
    documents = ["a gate", "a queue"]
    for path in ("/v1/score", "/score"):
        answer = http.post(path, json={"model": "vectors", "queries": "a queue", "documents": documents})
        scores = [one["score"] for one in answer.json()["data"]]
        assert scores[1] == pytest.approx(1, abs=1e-2)
        assert scores[0] < scores[1]
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        answer = http.post(path, json={"model": "vectors", "query": "a queue", "documents": documents})
        assert [one["index"] for one in answer.json()["results"]] == [1, 0], answer.text
    pooled = http.post("/pooling", json={"model": "vectors", "input": "a queue", "task": "embed"})
    assert len(pooled.json()["data"][0]["data"]) == 128, pooled.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "scripted", "input": "x"}),
        ("/v1/chat/completions", {"model": "vectors", "messages": SAY}),
        ("/v1/completions", {"model": "vectors", "prompt": "x", "stream": True}),
        ("/v1/messages", {"model": "vectors", "messages": SAY, "max_tokens": 3, "stream": True}),
        ("/classify", {"model": "scripted", "input": "x"}),
    ],
)
def test_a_model_that_cannot_do_what_is_asked_says_so(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    answer = http.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "endpoint_not_supported"), answer.text
    assert body["model"] in error["message"]


@pytest.mark.parametrize("model", ["scripted", "vectors"])
def test_tokens_of_either_model(http: httpx.Client, model: str) -> None:
    tokens = http.post("/tokenize", json={"model": model, "prompt": "A queue is a gate."}).json()
    assert tokens["count"] == len(tokens["tokens"])
    text = http.post("/detokenize", json={"model": model, "tokens": tokens["tokens"]}).json()["prompt"]
    assert text == "A queue is a gate."
    chat = http.post("/tokenize", json={"model": model, "messages": SAY}).json()
    assert chat["count"] > tokens["count"]


def test_a_message_with_a_thought_and_a_tool(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model="scripted", max_tokens=60, messages=SAY, tools=[LOOK], extra_body=GREEDY)
    thought, text, call = message.content
    assert thought.type == "thinking"
    assert thought.thinking.split() == [word.strip() for word in THOUGHT]
    assert text.type == "text"
    assert text.text.strip() == SAID
    assert call.type == "tool_use"
    assert (call.name, call.input, message.stop_reason) == ("look", {"at": "the queue"}, "tool_use")
    counted = claude.messages.count_tokens(model="scripted", messages=SAY, tools=[LOOK])
    assert counted.input_tokens == message.usage.input_tokens


def test_a_message_stream_says_what_the_whole_message_does(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": "scripted", "max_tokens": 60, "messages": SAY, "tools": [LOOK], "extra_body": GREEDY}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    drawn = {"id", "signature"}
    for one, other in zip(streamed.content, whole.content, strict=True):
        assert one.model_dump(exclude=drawn, exclude_none=True) == other.model_dump(exclude=drawn, exclude_none=True)
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_model_len"),
        ({"temperature": 9}, "temperature"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "maximum context length"),
        ({"tool_choice": {"type": "tool"}}, "name"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}}, "nothing"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_vllm_refuses_is_told_in_anthropics_envelope(
    http: httpx.Client, wrong: dict[str, Any], words: str, *, stream: bool
) -> None:
    plain = {"model": "scripted", "messages": SAY, "max_tokens": 4, "stream": stream}
    answer = http.post("/v1/messages", json={**plain, **wrong})
    told = answer.json()
    assert (answer.status_code, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")
    assert words in told["error"]["message"], told


def test_reasoning_has_both_of_its_names(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": "scripted", "messages": SAY, "max_tokens": 60, "temperature": 0}
    message: Any = sdk.chat.completions.create(**asked).choices[0].message
    assert message.reasoning.split() == [word.strip() for word in THOUGHT]
    assert message.reasoning_content == message.reasoning
    deltas: list[Any] = [chunk.choices[0].delta for chunk in sdk.chat.completions.create(**asked, stream=True)]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(getattr(delta, name, None) or "" for delta in deltas) == message.reasoning


def test_what_a_client_must_not_set_changes_nothing(http: httpx.Client) -> None:
    asked = {"model": "scripted", "messages": SAY, "max_tokens": 9, "temperature": 0}
    meddling = {
        "priority": -99,
        "request_id": "somebody-elses",
        "session_id": "s",
        "kv_transfer_params": {"prompt_token_ids": [1, 2, 3]},
        "ec_transfer_params": {"x": 1},
    }
    headers = {"X-Vllm-Priority": "-99", "X-Session-ID": "s", "X-data-parallel-rank": "7"}
    plain = http.post("/v1/chat/completions", json=asked).json()
    answer = http.post("/v1/chat/completions", json={**asked, **meddling}, headers=headers)
    said = answer.json()
    assert answer.status_code == 200, answer.text
    assert said["id"] == f"chatcmpl-{answer.headers['x-penstock-request']}"
    assert (said["choices"], said["usage"]) == (plain["choices"], plain["usage"])


def test_with_keys_every_route_takes_the_tenants_salt(stack: Stack) -> None:
    """The engine checks the salt of each of them, so a wrong one would be refused."""
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"model": "scripted", "messages": SAY, "max_tokens": 3}),
        ("/v1/chat/completions", {"model": "scripted", "messages": SAY, "max_tokens": 3, "cache_salt": "my/own@salt"}),
        ("/v1/completions", {"model": "scripted", "prompt": "x", "max_tokens": 3}),
        ("/v1/messages", {"model": "scripted", "messages": SAY, "max_tokens": 3}),
        ("/v1/embeddings", {"model": "vectors", "input": "x"}),
        ("/score", {"model": "vectors", "queries": "x", "documents": "y"}),
        ("/tokenize", {"model": "vectors", "prompt": "x"}),
    ]
    with httpx.Client(base_url=stack.apis[1].url, timeout=60, headers={"X-API-Key": "alpha"}) as client:
        for path, body in bodies:
            answer = client.post(path, json=body)
            assert answer.status_code == 200, (path, answer.text)


@pytest.mark.parametrize(
    "wrong", [{"logit_bias": {"999999": 1}}, {"stop_token_ids": [10**6]}, {"logprobs": True, "top_logprobs": 99}]
)
def test_what_the_engine_refuses_late_keeps_its_status_in_a_stream(http: httpx.Client, wrong: dict[str, Any]) -> None:
    asked = {"model": "scripted", "messages": SAY, "max_tokens": 4, "stream": True}
    answer = http.post("/v1/chat/completions", json={**asked, **wrong})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "invalid_request_error"


def test_strange_but_valid_json_is_a_4xx_and_the_engines_go_on(stack: Stack, http: httpx.Client) -> None:
    for path, body in (*ENGINE, *BORNE):
        model = "vectors" if path in POOLED else "scripted"
        for asked in forms(path, body):
            try:
                answer = http.post(path, json={"model": model, **asked})
            except httpx.TimeoutException:
                pytest.fail(f"no answer to {path} {asked}")
            refused = 400 <= answer.status_code < 500 and code_of(answer.content)
            assert refused or ((path, body) in BORNE and answer.status_code == 200), (path, asked, answer.text)
    asked = {"model": "scripted", "messages": SAY, "max_tokens": 60, "temperature": 0}
    assert WORDS[0].strip() in http.post("/v1/chat/completions", json=asked).text
    for worker in stack.workers:
        worker.check()


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "look"}}])
def test_a_tools_arguments_are_streamed(sdk: openai.OpenAI, choice: Any) -> None:
    asked: Any = {"model": "scripted", "messages": SAY, "max_tokens": 80, "temperature": 0, "tools": [FUNCTION]}
    chunks = list(sdk.chat.completions.create(**asked, tool_choice=choice, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.function.name for call in calls if call.function and call.function.name] == ["look"]
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert len(calls) > 1
    if choice == "auto":
        assert json.loads(arguments) == {"at": "the queue"}
    ends = {chunk.choices[0].finish_reason for chunk in chunks} - {None}
    assert len(ends & {"tool_calls", "stop", "length"}) == len(ends) == 1
