"""A stream of a response that is cut behind any event and continued reads like that of an unbroken run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.assembly import events_of
from api.responses.asked import asked_of
from api.responses.events import Events
from api.responses.items import NONE
from api.responses.objects import base_of
from shared.ids import new_request_id
from tests.conformance.conftest import SCRIPTED, SIM
from tests.support import scripted_models
from tests.support.resuming import Resumed, Unbroken, said
from worker.engines.base import Engine, Policy

RESPONSES = "/v1/responses"
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
_SCHEMA = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "boolean"}}}

pytestmark = [
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.parametrize("engine", [SIM, SCRIPTED], indirect=True, scope="package"),
]


def as_clients_see(data: bytes, asked: dict[str, Any], rid: str) -> list[dict[str, Any]]:
    """The client's events."""
    wanted = asked_of(json.dumps(asked).encode())
    translated = Events(base_of(wanted, rid, "m", "standard")).take(data)
    return [json.loads(event) for event in events_of(translated)]


def without_ids(events: list[dict[str, Any]]) -> list[Any]:
    """What stays the same in another run; texts are put together, however they were cut."""
    out: list[Any] = []
    for event in events:
        if "delta" in event and out and out[-1]["type"] == event["type"]:
            out[-1]["delta"] += event["delta"]
        else:
            out.append(json.loads(json.dumps(event)))
    names = {"id", "item_id", "call_id", "sequence_number", "created_at"}

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(inner) for key, inner in value.items() if key not in names}
        return [bare(inner) for inner in value] if isinstance(value, list) else value

    return [bare(event) for event in out]


def ids_by_place(events: list[dict[str, Any]]) -> dict[int, set[str]]:
    """The ids of the items, also of their calls, by their place in the output."""
    found: dict[int, set[str]] = {}
    for event in events:
        items = [(event["output_index"], event.get("item", event))] if "output_index" in event else []
        items += enumerate(event.get("response", {}).get("output", []))
        for index, item in items:
            found.setdefault(index, set()).update(item[n] for n in ("id", "item_id", "call_id") if n in item)
    return found


async def check_every_cut(engine: Engine, policy: Policy, **extra: Any) -> list[dict[str, Any]]:
    """Continues behind each event. Returns the events of the unbroken run, as the client sees them."""
    asked = {"input": "What is a queue?", "temperature": 0, "store": False, **extra}
    body = asked_of(json.dumps(asked).encode()).valid(NONE, None, 10**6).body
    sent = json.loads(body)
    rid = new_request_id()
    whole = Unbroken(engine, RESPONSES, sent)
    await whole.run()
    assert whole.status == 200, whole.body
    expected, clients = said(whole.body), as_clients_see(whole.body, asked, rid)
    assert len(whole.cuts) > 6
    for number, cut in enumerate(whole.cuts):
        resumed = await Resumed(engine, RESPONSES, sent, cut).to_end()
        where = f"behind event {number}, {len(cut.token_ids)} tokens: {cut.data[-300:]!r} + {resumed.sent[:500]!r}"
        assert not resumed.lost, where
        assert resumed.policy is policy
        assert said(cut.data + resumed.sent) == expected, where
        assert resumed.token_ids == whole.journal.token_ids, where
        assert resumed.usage == (whole.journal.prompt_tokens, whole.journal.completion_tokens), where
        seen = as_clients_see(cut.data + resumed.sent, asked, rid)
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        assert without_ids(seen) == without_ids(clients), where
        for index, ids in ids_by_place(seen).items():
            assert len(ids) == len(ids_by_place(clients)[index]), where
        assert {event["response"]["id"] for event in seen if "response" in event} == {rid.replace("req_", "resp_")}
    return clients


async def test_up_to_its_token_limit(engine: Engine) -> None:
    events = await check_every_cut(engine, Policy.CONTINUE, max_output_tokens=12)
    assert events[-1]["type"] == "response.incomplete"


async def test_to_its_own_end(engine: Engine) -> None:
    events = await check_every_cut(engine, Policy.CONTINUE)
    assert events[-1]["type"] == "response.completed"


async def test_with_a_call_that_the_simulator_must_make(engine: Engine) -> None:
    if engine.name != "sim":
        pytest.skip("the script calls of its own accord")
    events = await check_every_cut(engine, Policy.VERIFY, tools=[LOOK], tool_choice="required")
    assert events[-1]["response"]["output"][0]["type"] == "function_call"


async def test_with_reasoning_words_and_a_call(vllm: Engine) -> None:
    events = await check_every_cut(vllm, Policy.CONTINUE, tools=[LOOK])
    reasoning, message, call = events[-1]["response"]["output"]
    assert reasoning["content"][0]["text"].split() == [word.strip() for word in scripted_models.THOUGHT]
    assert message["content"][0]["text"].strip() == ("".join(scripted_models.WORDS) + scripted_models.SIGNS).strip()
    assert json.loads(call["arguments"]) == {"at": "the queue"}


@pytest.mark.parametrize(
    "extra",
    [
        {"seed": 7, "temperature": 0.8},
        {"presence_penalty": 1.5},
        {"text": _SCHEMA},
    ],
    # not log probabilities: when vLLM sends several tokens at once, at the turn from reasoning to text, those of the
    # reasoning stand with the text's. How many come at once is the machine's affair, and so is the unbroken run.
    ids=["seed", "penalty", "grammar"],
)
async def test_what_depends_on_more_than_tokens_is_made_again(vllm: Engine, extra: dict[str, Any]) -> None:
    await check_every_cut(vllm, Policy.VERIFY, max_output_tokens=40, **extra)
