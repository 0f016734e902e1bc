"""Stored responses on a real server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from api.requests import Facts
from api.responses.asked import asked_of
from api.responses.items import NONE, named
from api.responses.objects import base_of
from api.responses.store import Kept, Store, Stored
from shared.errors import RequestError
from shared.hot import HotClient
from shared.ids import new_request_id
from shared.keys import Keys
from shared.states import State
from shared.wire import DELTA, END, HEAD, Frame, Meta, encode, end_frame
from worker.engines import sim_responses
from worker.engines.sim_answers import Job

RID = new_request_id()
SSE = Meta(status=200, headers=[("content-type", "text/event-stream")])
ASKED = asked_of(b'{"input": "x", "background": true}')
BASE = base_of(ASKED, RID, "m", "standard")


def facts_of(keys: Keys, state: State, **more: Any) -> Facts:
    texts = dict.fromkeys(("reason", "lane", "queue", "owner", "cancel"), "")
    times = dict.fromkeys(("queued_at_ms", "started_at_ms", "finished_at_ms", "prompt_tokens", "completion_tokens"), 0)
    flags = {"kept": True, "stays": True, "discarded": False, "claims": 1, "heard": 0}
    return Facts(rid=RID, keys=keys, state=state, **{**texts, **times, **flags, **more})  # type: ignore[arg-type]


def engine_events() -> list[bytes]:
    answer = sim_responses.Events(Job(RID, "response", 3, 5, True, True, 1), "m", {})
    return [*answer.begun(), *answer.opening(), *(answer.token(text) for text in "abc"), *answer.tail()]


async def write_log(hot: HotClient, keys: Keys, *frames: bytes) -> None:
    await hot.call("SET", keys.log(RID), b"".join(frames), timeout_s=5)


def frame(data: bytes, kind: int = DELTA, meta: Meta | None = None) -> bytes:
    return encode(Frame(kind, "a1", 0, [], 0, meta, data))


@pytest.fixture
def store(hot: HotClient) -> Store:
    return Store(hot, ttl_s=100, log_ttl_s=10)


def stored(facts: Facts) -> Stored:
    return Stored(facts, Kept(BASE, [], [], stream=True), None)


async def test_what_is_kept_is_found_once_and_not_overwritten(store: Store, hot: HotClient, keys: Keys) -> None:
    facts = facts_of(keys, State.QUEUED)
    assert await store.find(facts) is None
    items = named([{"role": "user", "content": "é" * 200_000}], RID) + NONE
    kept = Kept(BASE, items.items, items.ids, stream=True)
    await store.keep(keys, RID, kept, lasts_s=20.5)
    await store.keep(keys, RID, Kept({}, [], [], stream=False), lasts_s=1)
    found = await store.find(facts)
    assert found == Stored(facts, kept, None)
    assert await hot.call("STRLEN", keys.response(RID), timeout_s=5) < 10_000
    assert 100 < await hot.call("TTL", keys.response(RID), timeout_s=5) <= 121
    await store.forget(keys, RID)
    assert await store.find(facts) is None


async def test_a_response_is_what_its_record_and_its_log_say(store: Store, hot: HotClient, keys: Keys) -> None:
    events = engine_events()
    assert (await store.current(stored(facts_of(keys, State.QUEUED, claims=0, kept=False))))["status"] == "queued"
    await write_log(hot, keys, frame(b"".join(events[:5]), HEAD, SSE))
    for state in (State.RUNNING, State.QUEUED):  # also when it waits for another worker
        assert (await store.current(stored(facts_of(keys, state))))["status"] == "in_progress"
    log = [frame(events[0], HEAD, SSE), *(frame(event) for event in events[1:])]
    await write_log(hot, keys, *log)
    seen = await store.current(stored(facts_of(keys, State.RUNNING)))
    assert seen["status"] == "completed", "its readers have seen that"
    await write_log(hot, keys, *log, frame(b"", END, Meta(state="succeeded", reason="completed")))
    facts = facts_of(keys, State.SUCCEEDED)
    await store.keep(keys, RID, stored(facts).kept, lasts_s=1)
    ended = await store.current(stored(facts))
    assert ended == seen
    assert (ended["id"], ended["output"][0]["content"][0]["text"]) == (BASE["id"], "abc")
    found = await store.find(facts)
    assert found is not None
    assert found.final == ended, "kept by the first who asked"
    assert 0 < await hot.call("TTL", keys.log(RID), timeout_s=5) <= 10
    assert await store.current(replace(found, facts=facts_of(keys, State.SUCCEEDED, kept=False))) == ended


async def test_ends_without_an_answer(store: Store, hot: HotClient, keys: Keys) -> None:
    events = engine_events()
    begun = [frame(b"".join(events[:5]), HEAD, SSE)]
    for state, reason, status, code in (
        (State.CANCELLED, "cancelled", "cancelled", None),
        (State.FAILED, "worker_lost", "failed", "server_error"),
        (State.EXPIRED, "queue_timeout", "failed", "server_error"),
    ):
        for before in (begun, []):
            await write_log(hot, keys, *before, end_frame(state, reason))
            ended = await store.current(stored(facts_of(keys, state, reason=reason)))
            assert (ended["status"], (ended["error"] or {}).get("code")) == (status, code)
    refusal = b'{"error":{"message":"too long","code":400}}'
    await write_log(hot, keys, frame(refusal, HEAD | END, Meta(status=400, state="succeeded")))
    ended = await store.current(stored(facts_of(keys, State.SUCCEEDED)))
    assert (ended["status"], ended["error"]["code"]) == ("failed", "invalid_prompt")
    assert "too long" in ended["error"]["message"]
    with pytest.raises(RequestError, match="not kept"):
        await store.current(stored(facts_of(keys, State.SUCCEEDED, kept=False)))


async def test_the_log_of_a_key_keeps_its_time(store: Store, hot: HotClient, keys: Keys) -> None:
    await write_log(hot, keys, frame(b"".join(engine_events()), HEAD, SSE))
    await hot.call("EXPIRE", keys.log(RID), "1000", timeout_s=5)
    store.ended(keys, RID, BASE, keyed=True)
    await store.close()
    assert await hot.call("TTL", keys.log(RID), timeout_s=5) > 900
    store.ended(keys, RID, BASE, keyed=False)
    await store.close()
    assert await hot.call("TTL", keys.log(RID), timeout_s=5) <= 10


async def test_the_end_of_a_response_that_is_deleted_meanwhile_does_not_bring_its_text_back(
    store: Store, hot: HotClient, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(BASE, [], [], stream=True)
    await store.keep(keys, RID, kept, lasts_s=1)
    await store.forget(keys, RID)
    store.ended(keys, RID, BASE, keyed=False)
    await store.close()
    assert await hot.call("EXISTS", keys.response_object(RID), timeout_s=5) == 0, "deleted before it is written"
    await store.keep(keys, RID, kept, lasts_s=1)
    call = store._call

    async def deleted_meanwhile(*command: Any) -> Any:
        if command[0] == "SET":
            await store.forget(keys, RID)
        return await call(*command)

    monkeypatch.setattr(store, "_call", deleted_meanwhile)
    store.ended(keys, RID, BASE, keyed=False)
    await store.close()
    assert await hot.call("EXISTS", keys.response_object(RID), timeout_s=5) == 0, "deleted while it is written"


async def test_a_log_that_a_failover_has_changed_under_its_reader_is_lost_history(
    store: Store, hot: HotClient, keys: Keys
) -> None:
    await write_log(hot, keys, frame(b"".join(engine_events()), HEAD, SSE)[1:])
    with pytest.raises(RequestError) as lost:
        await store.current(stored(facts_of(keys, State.SUCCEEDED)))
    assert lost.value.code == "history_lost"
