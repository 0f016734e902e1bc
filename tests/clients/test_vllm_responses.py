"""/v1/responses through Penstock is that of `vllm serve`: the same events in the same order, the same objects.

The reference has the same model and the same flags. What differs on purpose is listed in `RIGHT`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.clients.conftest import CHAT_FLAGS
from tests.support.stack import Stack
from tests.support.vllm_serve import vllm_serve

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

NAME = "scripted"
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
SCHEMA = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
TALK = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "input_text", "text": "What is a queue?"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A line."}]},
    {"role": "user", "content": "And a lane?"},
]
ANSWERED: list[dict[str, Any]] = [
    {"input": "What is a queue?"},
    {"input": TALK, "instructions": "Speak slowly."},
    {"input": "What is a queue?", "tools": [LOOK]},
    {"input": "What is a queue?", "tools": [LOOK], "tool_choice": "none"},
    {"input": "x", "max_output_tokens": 9, "truncation": "auto", "service_tier": "default", "user": "me"},
    {"input": "x", "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}, "max_output_tokens": 60},
    {"input": "x", "include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 12},
    {"input": "x", "stop": ["w3"], "reasoning": {"effort": "low"}},
]
REFUSED: list[dict[str, Any]] = [
    {"input": "x", "temperature": 9},
    {"input": "x", "max_output_tokens": -1},
    {"input": "word " * 900},
    {"input": [{"type": "nonsense"}]},
    {"input": "x", "tool_choice": "required"},
    {"input": "x", "prompt": {"id": "p"}},
    {"input": "x", "logit_bias": {"999999": 1}},
    {"input": "x", "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "nothing"}}}},
]
EARLY = 6
"""So many of them are refused before vLLM begins a stream; of the others it breaks the stream off."""
_OWN = {"id", "item_id", "call_id", "created_at"}
RIGHT = {"metadata", "store", "max_output_tokens", "service_tier", "error"} | {
    *("prompt_cache_key", "safety_identifier", "reasoning", "text", "top_logprobs", "max_tool_calls"),
}
"""Fields of the object that vLLM leaves out, or says otherwise than what was asked."""


def bare(value: Any, *, top: bool = False) -> Any:
    """Without ids and times; of the object, without what is put right, and without what is null.

    A part's probabilities are those of its own tokens: where an engine under load puts the last token of the reasoning
    and the first of the answer into one delta, vLLM counts the former to the answer.
    """
    if isinstance(value, list):
        return [bare(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    left_out = _OWN | (RIGHT if top else set())
    if value.get("logprobs") and "text" in value:
        value = {**value, "logprobs": [entry for entry in value["logprobs"] if entry["token"] in value["text"]]}
    return {
        key: bare(inner, top=key == "response")
        for key, inner in value.items()
        if key not in left_out and not (top and inner is None)
    }


def events_of(text: str) -> list[dict[str, Any]]:
    """The events; deltas of one thing are put together, since an engine under load cuts them anywhere."""
    out: list[dict[str, Any]] = []
    for line in text.split("\n"):
        if not line.startswith("data: "):
            continue
        event = bare(json.loads(line[6:]))
        event.pop("sequence_number")
        # which event a token's probability comes with depends on where an engine under load cuts its deltas
        event["logprobs"] = [entry for entry in event.get("logprobs") or () if entry["token"] in event.get("delta", "")]
        if "delta" in event and out and out[-1]["type"] == event["type"]:
            out[-1]["delta"] += event["delta"]
            out[-1]["logprobs"] += event["logprobs"]
        else:
            out.append(event)
    return out


def without_output(whole: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in whole.items() if name != "output"}


def said(item: dict[str, Any]) -> dict[str, Any]:
    """What an item says. vLLM fills in other fields of the same item for a stream: `status` of reasoning, for one."""
    content = item.get("content") or ()
    said = {name: item[name] for name in ("type", "role", "name", "arguments") if name in item}
    return {**said, "text": "".join(part["text"] for part in content).strip()}


def ended(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With vLLM's last event named as OpenAI's is."""
    last = events[-1]
    status = last["response"]["status"]
    return [*events[:-1], {**last, "type": f"response.{status}"}]


def answers(url: str) -> dict[str, Any]:
    """What the server at `url` answers to all requests, one after the other."""
    with httpx.Client(base_url=url, timeout=60) as client:

        def post(body: dict[str, Any], **more: Any) -> httpx.Response:
            return client.post("/v1/responses", json={"model": NAME, "temperature": 0, **body, **more})

        streams = [post(body, stream=True) for body in ANSWERED]
        wholes = [post(body) for body in ANSWERED]
        assert [answer.status_code for answer in (*streams, *wholes)] == [200] * 2 * len(ANSWERED), wholes[-1].text
        refusals = [post(body) for body in REFUSED]
        streamed = [post(body, stream=True) for body in REFUSED[:EARLY]]
    return {
        "streams": [events_of(answer.text) for answer in streams],
        "wholes": [bare(answer.json(), top=True) for answer in wholes],
        "refusals": [(answer.status_code, answer.json()["error"]["message"]) for answer in (*refusals, *streamed)],
    }


@pytest.fixture(scope="module")
def reference(scripted_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers of `vllm serve`."""
    with vllm_serve(scripted_model, CHAT_FLAGS, tmp_path_factory.mktemp("reference")) as ready:
        return answers(ready())


@pytest.fixture(scope="module")
def mine(stack: Stack) -> dict[str, Any]:
    return answers(stack.apis[0].url)


@pytest.fixture
def sdk(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.apis[0].url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_the_events_are_those_of_vllm_serve_and_end_as_openais(mine: dict[str, Any], reference: dict[str, Any]) -> None:
    for body, theirs, ours in zip(ANSWERED, reference["streams"], mine["streams"], strict=True):
        assert ours == ended(theirs), body


def test_the_objects_are_those_of_vllm_serve(mine: dict[str, Any], reference: dict[str, Any]) -> None:
    for body, theirs, ours in zip(ANSWERED, reference["wholes"], mine["wholes"], strict=True):
        assert without_output(ours) == without_output(theirs), body
        assert [said(item) for item in ours["output"]] == [said(item) for item in theirs["output"]], body


def test_what_vllm_refuses_is_refused_with_the_same_status_and_words(
    mine: dict[str, Any], reference: dict[str, Any]
) -> None:
    assert mine["refusals"] == reference["refusals"]
    assert {status for status, _ in mine["refusals"]} == {400}


def test_a_conversation_by_id_is_the_one_that_is_sent_whole(sdk: OpenAI) -> None:
    tools: Any = [LOOK]
    first = sdk.responses.create(model=NAME, input="What is a queue?", tools=tools, temperature=0)
    (call,) = (item for item in first.output if item.type == "function_call")
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "seen"}]
    by_id = sdk.responses.create(
        model=NAME, previous_response_id=first.id, input=output, tools=tools, temperature=0, max_output_tokens=20
    )
    said: Any = [item.to_dict() for item in first.output]
    whole = sdk.responses.create(
        model=NAME,
        input=[{"role": "user", "content": "What is a queue?"}, *said, *output],
        tools=tools,
        temperature=0,
        max_output_tokens=20,
    )
    assert by_id.usage is not None
    assert whole.usage is not None
    assert by_id.usage.input_tokens == whole.usage.input_tokens
    assert first.usage is not None
    assert by_id.usage.input_tokens > first.usage.input_tokens + 20
    assert by_id.output_text == whole.output_text


class Yes(BaseModel):
    yes: bool


def test_the_sdk_parses_a_structured_output(sdk: OpenAI) -> None:
    parsed = sdk.responses.parse(model=NAME, input="x", text_format=Yes, temperature=0, max_output_tokens=200)
    assert parsed.status == "completed", parsed.output_text
    assert isinstance(parsed.output_parsed, Yes)


def test_in_background_a_tool_is_called_and_the_events_are_read_again(sdk: OpenAI) -> None:
    tools: Any = [LOOK]
    stream = sdk.responses.create(model=NAME, input="x", tools=tools, temperature=0, background=True, stream=True)
    events = list(stream)
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    last: Any = events[-1]
    assert [item.type for item in last.response.output] == ["reasoning", "message", "function_call"]
    again = list(sdk.responses.retrieve(last.response.id, stream=True, starting_after=5))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in events[6:]]
    assert sdk.responses.retrieve(last.response.id).to_dict() == last.response.to_dict()


@pytest.mark.parametrize("body", REFUSED[EARLY:])
def test_what_is_found_wrong_when_a_stream_has_begun_is_its_last_event(sdk: OpenAI, body: dict[str, Any]) -> None:
    events: list[Any] = list(sdk.responses.create(model=NAME, stream=True, extra_body=body))
    assert [event.type for event in events] == ["response.created", "response.in_progress", "error", "response.failed"]
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.responses.create(model=NAME, extra_body=body)
    assert events[2].message == refused.value.body["message"]  # type: ignore[index]
    assert events[3].response.error.code == "invalid_prompt"
