"""Responses that outlive their request: background, streams that are gone on with, cancelled and stored ones."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
import redis
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent

from shared.keys import Keys
from tests.support.amid import all_amid
from tests.support.faultproxy import proxied
from tests.support.responses import KEYED, SIM, check_events, client_of, polled, rid_of, stack_for_responses
from tests.support.stack import Stack, eventually
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


async def test_in_background_it_is_queued_then_polled_to_its_end(here: AsyncOpenAI, there: AsyncOpenAI) -> None:
    made = await here.responses.create(**SIM, background=True, metadata={"k": "v"})
    assert (made.status, made.output, made.background) == ("queued", [], True)
    done = await polled(there, made.id)
    assert (done.status, done.output_text) == ("completed", answer_text(rid_of(made.id), 32))
    assert (done.id, done.created_at, done.metadata) == (made.id, made.created_at, {"k": "v"})
    assert (await here.responses.retrieve(made.id)).to_dict() == done.to_dict()


async def test_a_background_stream_goes_on_behind_any_event_on_another_replica(
    here: AsyncOpenAI, there: AsyncOpenAI
) -> None:
    events = []
    async with await here.responses.create(**SIM, background=True, stream=True) as stream:
        async for event in stream:
            events.append(event)
            if len(events) == 12:
                break  # the client hangs up; in background it goes on
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    response = events[0].response.id  # type: ignore[union-attr]
    rest = [e async for e in await there.responses.retrieve(response, stream=True, starting_after=11)]
    check_events([*events, *rest], 32)
    whole = [e async for e in await here.responses.retrieve(response, stream=True)]
    assert [e.to_dict() for e in whole] == [e.to_dict() for e in (*events, *rest)]
    for after in (0, 1, len(whole) - 2, len(whole) - 1, 10_000):
        part = [e async for e in await there.responses.retrieve(response, stream=True, starting_after=after)]
        assert [e.to_dict() for e in part] == [e.to_dict() for e in whole[after + 1 :]]


async def test_it_survives_the_death_of_its_replica(stack: Stack, there: AsyncOpenAI) -> None:
    """Created on one replica, which is killed; polled, and streamed to the end, on another one."""
    doomed = stack.api("--disconnect-grace-s", "0.3", env=KEYED)
    stack.apis.remove(doomed)
    tokens = 300
    async with AsyncOpenAI(base_url=f"{doomed.url}/v1", api_key="alpha", max_retries=0) as client:
        quiet = await client.responses.create(**SIM, background=True, max_output_tokens=tokens)
        stream = await client.responses.create(**SIM, background=True, stream=True, max_output_tokens=tokens)
        events: list[ResponseStreamEvent] = []

        async def read() -> None:
            async for event in stream:
                events.append(event)
                if len(events) == 10:
                    doomed.kill()

        with pytest.raises((openai.APIError, httpx.HTTPError)):
            await read()
    assert doomed.popen.returncode == -signal.SIGKILL
    response = events[0].response.id  # type: ignore[union-attr]
    for name in (quiet.id, response):
        assert (await there.responses.retrieve(name)).status == "in_progress", "the replica died in the middle of it"
    after = events[-1].sequence_number
    rest = [e async for e in await there.responses.retrieve(response, stream=True, starting_after=after)]
    check_events([*events, *rest], tokens)
    last: Any = rest[-1]
    for name in (quiet.id, response):
        done = await polled(there, name)
        assert (done.status, done.output_text) == ("incomplete", answer_text(rid_of(name), tokens))
    assert (await there.responses.retrieve(response)).to_dict() == last.response.to_dict()


async def test_it_reads_like_one_answer_although_its_worker_was_killed(here: AsyncOpenAI, stack: Stack) -> None:
    """The heir draws other ids and counts anew: its client sees neither."""
    command = ("--model", "mortal", "--max-active", "8", "--", "--ttft-ms", "20", "--itl-ms", "10")
    victim = stack.worker(*command)
    asked: dict[str, Any] = {**SIM, "model": "mortal", "max_output_tokens": 400}
    tool = {"tools": [{"type": "function", "name": "look"}], "tool_choice": "required"}

    async def read(**more: Any) -> list[ResponseStreamEvent]:
        return [event async for event in await here.responses.create(**asked, stream=True, **more)]

    reading = [
        asyncio.create_task(read()),
        asyncio.create_task(read(background=True)),
        asyncio.create_task(read(**tool)),
    ]
    whole = asyncio.create_task(here.responses.create(**asked))
    await all_amid(stack, "mortal", 4)
    victim.kill()
    heir = stack.worker(*command)
    seen = [await one for one in reading]
    assert heir.metric("penstock_resumes_total") >= 3
    check_events(seen[0], 400)
    check_events(seen[1], 400)
    for events in seen:
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last: Any = events[-1]
        items = {getattr(event, "item_id", None) for event in events} | {
            event.item.id for event in events if hasattr(event, "item")
        }
        assert items - {None} == {last.response.output[0].id}
    call: Any = seen[2][-1].response.output[0]  # type: ignore[union-attr]
    assert json.loads(call.arguments) == {"text": answer_text(rid_of(seen[2][-1].response.id), 400)}  # type: ignore[union-attr]
    assert {event.item.call_id for event in seen[2] if hasattr(event, "item")} == {call.call_id}
    made = await whole
    assert made.output_text == answer_text(rid_of(made.id), 400)


async def test_a_replica_that_loses_redis_says_so_and_another_one_has_the_rest(
    there: AsyncOpenAI, stack: Stack
) -> None:
    with proxied(stack.redis_port) as proxy:
        flags = ("--redis-grace-s", "0.5", "--redis-url", proxy.url)
        cut_off = stack.api(*flags, env=KEYED)
        stack.apis.remove(cut_off)
        async with AsyncOpenAI(base_url=f"{cut_off.url}/v1", api_key="alpha", max_retries=0) as client:
            stream = await client.responses.create(**SIM, max_output_tokens=300, background=True, stream=True)
            events: list[Any] = []
            async for event in stream:
                events.append(event)
                if len(events) == 10:
                    proxy.partition()
        cut_off.kill()
    *seen, fault = events
    assert (fault.type, fault.code, fault.sequence_number) == ("error", "broker_unavailable", len(seen) - 1)
    after = fault.sequence_number
    response = seen[0].response.id
    rest = [e async for e in await there.responses.retrieve(response, stream=True, starting_after=after)]
    check_events([*seen, *rest], 300)


async def test_what_cannot_be_gone_on_with_is_an_error_and_a_failed_response(
    here: AsyncOpenAI, there: AsyncOpenAI, stack: Stack
) -> None:
    """Tokens that say when they were made are other ones the second time."""
    command = ("--model", "clock", "--max-active", "8", "--", "--ttft-ms", "20", "--itl-ms", "10", "--text", "clock")
    victim = stack.worker(*command)
    asked: dict[str, Any] = {**SIM, "model": "clock", "max_output_tokens": 500, "background": True, "stream": True}
    stream = await here.responses.create(**asked)
    events: list[Any] = []
    async for event in stream:
        events.append(event)
        if len(events) == 20:
            victim.kill()
            stack.worker(*command)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    *_, error, failed = events
    assert (error.type, error.code) == ("error", "worker_lost")
    assert (failed.type, failed.response.status, failed.response.error.code) == (
        "response.failed",
        "failed",
        "server_error",
    )
    again = [event async for event in await there.responses.retrieve(failed.response.id, stream=True)]
    assert [event.to_dict() for event in again] == [event.to_dict() for event in events]
    assert (await there.responses.retrieve(failed.response.id)).to_dict() == failed.response.to_dict()


async def test_a_background_response_is_cancelled_wherever_it_is_and_again_without_effect(
    here: AsyncOpenAI, there: AsyncOpenAI
) -> None:
    running = await here.responses.create(**{**SIM, "model": "slow"}, background=True, stream=False)
    for client in (there, here):
        assert (await client.responses.cancel(running.id)).status == "cancelled"
    assert (await here.responses.retrieve(running.id)).status == "cancelled"
    ended = await here.responses.create(**SIM, background=True)
    await polled(here, ended.id)
    assert (await there.responses.cancel(ended.id)).status == "completed"
    whole = await here.responses.create(**SIM)
    with pytest.raises(openai.BadRequestError, match="background"):
        await here.responses.cancel(whole.id)


async def test_a_stream_that_is_cancelled_ends_with_an_error_event(here: AsyncOpenAI, there: AsyncOpenAI) -> None:
    stream = await here.responses.create(**{**SIM, "max_output_tokens": 5_000}, background=True, stream=True)
    events = []
    async for event in stream:
        events.append(event)
        if len(events) == 10:
            cancelled = await there.responses.cancel(events[0].response.id)  # type: ignore[union-attr]
            assert cancelled.status == "cancelled"
    last: Any = events[-1]
    assert (last.type, last.code, last.sequence_number) == ("error", "cancelled", len(events) - 1)


async def test_a_deleted_response_is_gone_everywhere(here: AsyncOpenAI, there: AsyncOpenAI, stack: Stack) -> None:
    made = await here.responses.create(**SIM)
    running = await here.responses.create(**{**SIM, "model": "slow"}, background=True)
    await here.responses.delete(made.id)
    await there.responses.delete(running.id)
    for response in (made.id, running.id):
        for call in (
            there.responses.retrieve(response),
            there.responses.cancel(response),
            there.responses.delete(response),
            there.responses.input_items.list(response),
        ):
            with pytest.raises(openai.NotFoundError):
                await call
    with redis.Redis.from_url(stack.redis_url) as server:
        assert not server.exists(Keys("sim").response(rid_of(made.id)), Keys("sim").response_object(rid_of(made.id)))


async def test_what_the_engine_refuses_is_a_400_at_once_or_a_failed_response_in_background(here: AsyncOpenAI) -> None:
    bad: dict[str, Any] = {**SIM, "max_output_tokens": 100_000}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await here.responses.create(**bad, stream=stream)
        assert refused.value.code == "context_length_exceeded"
    made = await here.responses.create(**bad, background=True)
    failed = await polled(here, made.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "invalid_prompt")
    assert "maximum context length" in failed.error.message
    events: list[Any] = [event async for event in await here.responses.create(**bad, background=True, stream=True)]
    assert [event.type for event in events] == ["response.created", "response.queued", "error", "response.failed"]
    assert [event.sequence_number for event in events] == [0, 1, 2, 3]
    assert events[2].code == "context_length_exceeded"
    again = [event async for event in await here.responses.retrieve(events[0].response.id, stream=True)]
    assert [event.to_dict() for event in again] == [event.to_dict() for event in events]


async def test_only_a_response_that_was_made_as_a_stream_is_streamed_again(here: AsyncOpenAI) -> None:
    whole = await here.responses.create(**SIM)
    with pytest.raises(openai.BadRequestError, match="stream: true"):
        await here.responses.retrieve(whole.id, stream=True)
    streamed = [event async for event in await here.responses.create(**SIM, stream=True)]
    response = streamed[0].response.id  # type: ignore[union-attr]
    again = [event async for event in await here.responses.retrieve(response, stream=True)]
    assert [event.to_dict() for event in again] == [event.to_dict() for event in streamed]


async def test_the_same_key_makes_one_response(here: AsyncOpenAI, there: AsyncOpenAI) -> None:
    key = {"Idempotency-Key": f"k{time.time_ns()}"}
    first = await here.responses.create(**SIM, extra_headers=key)
    again = await there.responses.create(**SIM, extra_headers=key)
    assert again.to_dict() == first.to_dict()
    streamed = [event async for event in await there.responses.create(**SIM, stream=True, extra_headers=key)]
    assert streamed[-1].response.to_dict() == first.to_dict()  # type: ignore[union-attr]
    with pytest.raises(openai.UnprocessableEntityError):
        await there.responses.create(**{**SIM, "input": "another"}, extra_headers=key)
    later = {"Idempotency-Key": f"b{time.time_ns()}"}
    made = await here.responses.create(**SIM, background=True, extra_headers=later)
    done = await polled(here, made.id)
    assert (await there.responses.create(**SIM, background=True, extra_headers=later)).to_dict() == done.to_dict()


async def test_what_is_stored_goes_after_its_time_and_events_sooner(here: AsyncOpenAI, stack: Stack) -> None:
    made = await here.responses.create(**SIM)
    rid, keys = rid_of(made.id), Keys("sim")
    with redis.Redis.from_url(stack.redis_url) as server:
        await eventually(lambda: server.exists(keys.response_object(rid)) == 1, 30, "the final object is kept")
        await eventually(lambda: 0 < server.ttl(keys.log(rid)) <= 600, 30, "events stay for ten minutes")  # type: ignore[operator]
        for key in (keys.response(rid), keys.response_object(rid)):
            assert 86_000 < server.ttl(key) <= 86_400  # type: ignore[operator]
        server.delete(keys.log(rid))
    assert (await here.responses.retrieve(made.id)).to_dict() == made.to_dict()
    await here.responses.create(**SIM, previous_response_id=made.id)
