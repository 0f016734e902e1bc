"""/v1/responses with OpenAI's own SDK, on replicas, a server and workers that simulate an engine."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

from shared.ids import new_request_id
from tests.support.responses import SIM, check_events, client_of, rid_of, stack_for_responses
from tests.support.stack import Stack
from worker.engines.sim_answers import answer_text


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with stack_for_responses() as started:
        yield started


@pytest.fixture
async def here(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(stack, 0) as client:
        yield client


@pytest.fixture
async def there(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(stack, 1) as client:
        yield client


async def test_a_response_is_made_stored_and_retrieved_on_another_replica(
    here: AsyncOpenAI, there: AsyncOpenAI
) -> None:
    before_s = int(time.time()) - 1
    made = await here.responses.create(
        **SIM, instructions="be brief", metadata={"for": "a test"}, service_tier="priority", safety_identifier="me"
    )
    assert made.output_text == answer_text(rid_of(made.id), 32)
    assert (made.status, made.error, made.incomplete_details) == ("completed", None, None)
    assert (made.metadata, made.instructions, made.safety_identifier) == ({"for": "a test"}, "be brief", "me")
    assert (made.service_tier, made.background, made.max_output_tokens) == ("priority", False, None)
    assert before_s <= made.created_at <= time.time() + 1
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (12, 32, 44)
    assert (await there.responses.retrieve(made.id)).to_dict() == made.to_dict()


async def test_an_answer_that_is_cut_off_is_incomplete_whole_and_as_events(here: AsyncOpenAI) -> None:
    made = await here.responses.create(**SIM, max_output_tokens=5)
    assert made.incomplete_details is not None
    assert (made.status, made.incomplete_details.reason, made.max_output_tokens) == (
        "incomplete",
        "max_output_tokens",
        5,
    )
    events = [event async for event in await here.responses.create(**SIM, max_output_tokens=5, stream=True)]
    check_events(events, 5)
    assert events[-1].type == "response.incomplete"


async def test_a_streams_events_come_in_openais_order_and_without_done(stack: Stack, here: AsyncOpenAI) -> None:
    events = [event async for event in await here.responses.create(**SIM, stream=True)]
    check_events(events, 32)
    assert [event.type for event in events if event.type != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    ids = {event.response.id for event in events if hasattr(event, "response")}
    assert len(ids) == 1
    async with httpx.AsyncClient(headers={"X-API-Key": "alpha"}) as http:
        raw = (await http.post(f"{stack.apis[0].url}/v1/responses", json={**SIM, "stream": True})).text
    assert "[DONE]" not in raw
    names = [line[7:] for line in raw.split("\n") if line.startswith("event: ")]
    assert names == [json.loads(line[6:])["type"] for line in raw.split("\n") if line.startswith("data: ")]


async def test_the_sdks_own_stream_helper_accumulates_the_answer(here: AsyncOpenAI) -> None:
    async with here.responses.stream(**SIM) as stream:
        final = await stream.get_final_response()
    assert final.output_text == answer_text(rid_of(final.id), 32)


async def test_prompts_are_counted_as_the_engine_counts_them(here: AsyncOpenAI, stack: Stack) -> None:
    end_s = time.monotonic() + 30
    while not (before := stack.apis[0].metric("penstock_prompt_tokens_counted_total", how="tokenizer")):
        assert time.monotonic() < end_s, "the replica has the tokenizer"
        await here.responses.create(**SIM)
    made = await here.responses.create(
        model="sim",
        instructions="be very brief",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "one two three"}]},
            {"role": "assistant", "content": "four"},
            {"role": "user", "content": "five six"},
        ],
    )
    assert made.usage is not None
    after = stack.apis[0].metric("penstock_prompt_tokens_counted_total", how="tokenizer")
    assert after - before == made.usage.input_tokens == 2 + 4 * 3 + 3 + 3 + 1 + 2


async def test_one_that_is_not_stored_or_not_ours_is_not_found(here: AsyncOpenAI, stack: Stack) -> None:
    unstored = await here.responses.create(**SIM, store=False)
    assert unstored.store is False
    stored = await here.responses.create(**SIM)
    async with client_of(stack, 1, "beta") as other:
        for client, response in (
            (here, unstored.id),
            (other, stored.id),
            (here, rid_of(stored.id)),
            (here, "resp_nonsense"),
            (here, new_request_id().replace("req_", "resp_")),
        ):
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(response)
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(**SIM, previous_response_id=response)
            assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_a_conversation_goes_on_with_everything_that_was_said(here: AsyncOpenAI, there: AsyncOpenAI) -> None:
    first = await here.responses.create(**{**SIM, "input": "one two"}, instructions="a b c", max_output_tokens=2)
    second = await there.responses.create(
        **{**SIM, "input": [{"role": "user", "content": "three"}]}, previous_response_id=first.id, max_output_tokens=3
    )
    assert second.previous_response_id == first.id
    third = await here.responses.create(**{**SIM, "input": "four"}, previous_response_id=second.id, stream=True)
    last: Any = [event async for event in third][-1]
    # 2 for a conversation, 3 for a message, 1 for a word; instructions are not carried over
    assert [one.usage.input_tokens for one in (first, second)] == [2 + 3 + 3 + 3 + 2, 2 + 3 + 2 + 3 + 2 + 3 + 1]  # type: ignore[union-attr]
    assert last.response.usage.input_tokens == 2 + 5 * 3 + 2 + 2 + 1 + 3 + 1
    found = [item async for item in there.responses.input_items.list(last.response.id, order="asc", limit=2)]
    said = [item.content[0].text for item in found]  # type: ignore[union-attr]
    assert said == ["one two", first.output_text, "three", second.output_text, "four"]
    assert [item.id for item in found][1] == first.output[0].id
    assert len({item.id for item in found}) == 5
    newest = await here.responses.input_items.list(last.response.id)
    assert [item.id for item in newest.data] == [item.id for item in reversed(found)]
    with pytest.raises(openai.BadRequestError):
        await here.responses.input_items.list(last.response.id, after="msg_nobody")
    running = await here.responses.create(**{**SIM, "model": "slow"}, background=True)
    with pytest.raises(openai.BadRequestError, match="no answer to go on with"):
        await here.responses.create(**SIM, previous_response_id=running.id)
    await here.responses.cancel(running.id)


async def test_a_tool_call_and_its_output_go_round(here: AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}]
    made = await here.responses.create(**SIM, tools=tools, tool_choice="required", max_output_tokens=3)
    (call,) = made.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"text": answer_text(rid_of(made.id), 3)}
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "seen"}]
    again = await here.responses.create(model="sim", input=output, previous_response_id=made.id, tools=tools)
    assert again.status == "completed"
    found = [item.type async for item in here.responses.input_items.list(again.id, order="asc")]
    assert found == ["message", "function_call", "function_call_output"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"background": True, "store": False}, "background"),
        ({"store": "yes"}, "store"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"previous_response_id": 7}, "previous_response_id"),
        ({"model": 7}, "model"),
        ({"service_tier": "gold"}, None),
    ],
)
async def test_what_is_wrong_with_a_request_is_said(here: AsyncOpenAI, more: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await here.post("/responses", cast_to=Response, body={**SIM, **more})
    assert refused.value.param == param or param is None


async def test_an_unknown_model_is_a_404(here: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await here.responses.create(model="nobody", input="x")


async def test_the_lane_of_the_header_counts(here: AsyncOpenAI) -> None:
    raw = await here.responses.with_raw_response.create(**SIM, extra_headers={"X-Priority-Lane": "batch"})
    assert raw.headers["x-penstock-lane"] == "batch"
    assert raw.headers["x-penstock-request"] == rid_of(raw.parse().id)
    assert raw.parse().service_tier == "flex"


async def test_what_is_huge_or_deep_is_stored_or_refused(here: AsyncOpenAI) -> None:
    big: Any = [{"role": "user", "content": "x", "number": 10**40}]
    made = await here.responses.create(model="sim", input=big)
    assert (await here.responses.input_items.list(made.id)).data[0].to_dict()["number"] == 10**40
    for depth in (100, 300, 600, 900, 980, 1_000, 2_000, 100_000):
        deep = "[" * depth + "]" * depth
        for field in ("input", "tools"):
            answer = await _raw(here, f'{{"model": "sim", "input": "x", "{field}": {deep}}}')
            assert answer.status_code in {200, 400}, (depth, field, answer.text)


async def _raw(client: AsyncOpenAI, body: str) -> httpx.Response:
    headers = {"Authorization": "Bearer alpha", "Content-Type": "application/json"}
    async with httpx.AsyncClient(headers=headers, timeout=30) as http:
        return await http.post(f"{client.base_url}responses", content=body)
