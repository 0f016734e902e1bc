"""Responses: ids, items, and the engine's events as clients get them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.assembly import events_of
from api.responses import items
from api.responses.asked import asked_of
from api.responses.events import Events
from api.responses.ids import created_at, request_id, response_id
from api.responses.objects import base_of
from shared import errors
from shared.errors import RequestError
from shared.ids import new_request_id
from shared.wire import Meta
from tests.support.resuming import said
from worker.engines import sim_responses
from worker.engines.sim_answers import Job, token_text

RID = new_request_id()
SUCCEEDED, FAILED, CANCELLED = (Meta(state=state) for state in ("succeeded", "failed", "cancelled"))


def engine_events(tokens: int = 4, **fields: Any) -> list[bytes]:
    """What an engine sends, event by event. Each call draws other ids, like another worker."""
    answer = sim_responses.Events(Job(RID, "response", tokens, 5, True, True, 1), "m", fields)
    out = [*answer.begun(), *answer.opening()]
    out += [answer.token(token_text(RID, index)) for index in range(tokens)]
    return [*out, *answer.tail()]


def translator(*, after: int = -1, **fields: Any) -> Events:
    asked = asked_of(json.dumps({"input": "x", **fields}).encode())
    return Events(base_of(asked, RID, "m", "standard"), after=after)


def seen(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(event) for event in events_of(data)]


def test_a_response_and_its_request_have_one_id() -> None:
    assert request_id(response_id(RID)) == RID
    assert response_id(RID).startswith("resp_")
    for wrong in (RID, "resp_", response_id(RID)[:-1], "resp_!" + RID[5:], ""):
        with pytest.raises(RequestError, match="not found"):
            request_id(wrong)


def test_the_time_of_a_response_stands_in_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_123_456_789)
    assert created_at(new_request_id(31)) == 1_700_000_000


@given(st.integers(0, 12), st.booleans())
def test_whatever_piece_the_events_come_in_they_are_the_same(cut: int, background: bool) -> None:  # noqa: FBT001
    whole = engine_events()
    one, two = translator(background=background), translator(background=background)
    together = one.take(b"".join(whole))
    apart = two.take(b"".join(whole[:cut])) + two.take(b"".join(whole[cut:]))
    assert together == apart
    events = seen(together)
    assert [event["sequence_number"] for event in events] == list(range(len(whole) + background))
    assert one.final == events[-1]["response"]


@pytest.mark.parametrize("cut", range(1, 13))
def test_where_another_worker_goes_on_its_ids_are_those_of_the_first(cut: int) -> None:
    first, second = engine_events(), engine_events()
    events = translator()
    got = seen(events.take(b"".join(first[:cut])) + events.take(b"".join(second[cut:])))
    unbroken = translator()
    expected = seen(unbroken.take(b"".join(first)))
    assert len(got) == len(expected)
    renamed = json.dumps(got)
    if cut > 2:
        mine = expected[-1]["response"]["output"][0]["id"]
        assert {item["id"] for item in got[-1]["response"]["output"]} == {mine}
        assert json.loads(renamed) == expected
    assert said(b"".join(first)) == said(b"".join(second))


def test_a_readers_events_are_those_behind_its_number() -> None:
    whole = b"".join(engine_events())
    every = seen(translator(background=True).take(whole))
    for after in (-1, 0, 1, 5, len(every) - 1, 99):
        assert seen(translator(background=True, after=after).take(whole)) == every[after + 1 :]


def test_what_the_engine_was_not_told_is_put_right() -> None:
    events = translator(metadata={"a": "b"}, background=True, previous_response_id="resp_p", user="u")
    *_, last = seen(events.take(b"".join(engine_events(max_output_tokens=4))))
    response = last["response"]
    assert last["type"] == "response.incomplete"
    assert (response["id"], response["created_at"]) == (response_id(RID), created_at(RID))
    assert (response["metadata"], response["background"], response["store"]) == ({"a": "b"}, True, True)
    assert (response["previous_response_id"], response["user"], response["max_output_tokens"]) == ("resp_p", "u", None)
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"]["output_tokens"] == 4


def test_an_end_without_an_answer_is_an_error_and_a_failed_response() -> None:
    events = translator()
    begun = events.take(b"".join(engine_events()[:6]))
    *_, error, failed = seen(begun + events.end(FAILED, errors.worker_lost(), None))
    assert (error["type"], error["code"], error["sequence_number"]) == ("error", "worker_lost", 6)
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "server_error"
    assert "worker_lost" in failed["response"]["error"]["message"]
    cancelled = translator()
    (only,) = seen(cancelled.end(CANCELLED, errors.cancelled(), None))
    assert (only["type"], only["code"]) == ("error", "cancelled")


@pytest.mark.parametrize(("taken", "after", "last"), [(0, -1, -1), (7, -1, 6), (3, 9, 9), (12, 9, 11)])
def test_who_goes_on_behind_a_fault_of_its_connection_misses_nothing(taken: int, after: int, last: int) -> None:
    """The fault takes no number: what has it is still to come."""
    events = translator(after=after)
    events.take(b"".join(engine_events(8)[:taken]))
    (fault,) = seen(events.fault(errors.broker_unavailable()))
    assert (fault["type"], fault["code"], fault["sequence_number"]) == ("error", "broker_unavailable", last)


def test_nothing_follows_the_end_of_an_answer() -> None:
    events = translator()
    events.take(b"".join(engine_events()))
    assert events.end(SUCCEEDED, None, None) == b""
    assert events.end(FAILED, errors.worker_lost(), None) == b""


def test_a_fault_that_an_engine_sends_as_an_event_is_the_reason() -> None:
    events = translator()
    data = b'data: {"error":{"message":"no","type":"x","param":null,"code":400}}\n\n'
    error, failed = seen(events.take(data) + events.end(SUCCEEDED, None, None))
    assert (error["message"], failed["response"]["error"]["code"]) == ("no", "invalid_prompt")


# ---- what is asked


def test_the_engine_gets_a_stream_and_nothing_that_is_ours_or_nobodys() -> None:
    asked = asked_of(
        json.dumps(
            {
                "input": "x",
                "background": True,
                "metadata": {},
                "previous_response_id": "resp_1",
                "priority": -9,
                "request_id": "mine",
                "kv_transfer_params": {},
                "temperature": 0.5,
            }
        ).encode()
    )
    assert json.loads(asked.valid(items.NONE, None, 1_000).body) == {
        "input": "x",
        "temperature": 0.5,
        "stream": True,
        "store": False,
    }


def test_how_it_is_delivered_is_no_part_of_what_is_asked() -> None:
    def content(**fields: Any) -> bytes:
        asked = asked_of(json.dumps({"input": "x", **fields}).encode())
        return asked.valid(items.NONE, None, 1_000).content

    assert content() == content(stream=True)
    assert content() != content(background=True)
    assert content() != content(previous_response_id="resp_1")


def test_a_conversation_over_the_limit_is_refused() -> None:
    asked = asked_of(b'{"input": "x"}')
    with pytest.raises(RequestError, match="over the limit"):
        asked.valid(items.named([{"role": "user", "content": "y" * 1_000}], RID), None, 1_000)


def test_prompts_are_the_texts_of_items_instructions_and_tools() -> None:
    sent: list[Any] = [
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "input_text", "text": "two"}, {"type": "input_image", "image_url": "x"}]},
        {"type": "reasoning", "content": [{"text": "not again"}]},
        {"type": "function_call", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "output": "seen"},
        7,
    ]
    tools = [{"type": "function", "name": "look"}]
    prompt = items.prompt_of(sent, "be brief", tools)
    assert prompt.texts == ("be brief", "one", "two", "look", "{}", "seen")
    assert (prompt.media, prompt.messages) == (1, 5)
    assert json.loads(prompt.tools) == [{"type": "function", "function": {"name": "look"}}]


# ---- pages


@given(st.integers(0, 30), st.integers(1, 7), st.sampled_from(["asc", "desc"]))
def test_pages_together_are_the_list(count: int, limit: int, order: str) -> None:
    kept = items.named([{"role": "user", "content": str(number)} for number in range(count)], RID)
    found: list[str] = []
    after = None
    while True:
        page = items.page(kept, order=order, limit=limit, after=after)
        found += [item["content"][0]["text"] for item in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    expected = [str(number) for number in range(count)]
    assert found == (expected if order == "asc" else expected[::-1])


def test_messages_that_say_nothing_are_no_part_of_a_conversation() -> None:
    output = [{"type": "message", "id": "a", "content": []}, {"type": "function_call", "id": "b"}]
    assert items.of_output(output).ids == ["b"]
