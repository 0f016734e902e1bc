"""Rows on their way, on a real server: what a failover or a takeover leaves of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import batch.running as running_module
from batch.answers import Asked
from batch.ends import Ends
from batch.feeding import Feeder
from batch.reading import Read
from batch.run_state import Flight, RunState
from batch.running import Running
from shared.batches import Batch
from shared.errors import RequestError
from shared.hot import HotClient
from shared.keys import Keys
from tests.integration.shard import Shard


@pytest.fixture
def state(hot: HotClient) -> RunState:
    """Of a batch whose parts these tests do not need."""
    tools: Any = SimpleNamespace(client=hot, ends=Ends(hot), rules=lambda _: None)
    owned: Any = SimpleNamespace(batch=Batch("batch_1", {}))
    nothing: Any = None
    return RunState(tools, owned, nothing, nothing, nothing, 0)


async def test_a_row_that_was_admitted_before_fetches_no_image_again(
    shard: Shard, keys: Keys, state: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[str]()

    async def entry(rid: str, *_: Any) -> None:
        tried.append(rid)
        raise RequestError(422, "image_not_fetched", "")

    added = list[Any]()
    tools, committer = state.tools, SimpleNamespace(has=lambda _: False, add=added.append)
    rules = SimpleNamespace(valid=lambda _: SimpleNamespace(pictures=object(), model="m", lane="batch"))
    monkeypatch.setattr(tools, "rules", lambda _: rules)
    monkeypatch.setattr(tools, "entries", SimpleNamespace(entry=entry), raising=False)
    monkeypatch.setattr(state, "committer", committer)
    text = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{}}'
    await shard.claimed(state.rid(0))
    pool: Any = SimpleNamespace(keys=keys)
    for row in range(2):
        assert await Feeder(state)._admit(pool, Read(row, row, text), 0) is None
    assert list(state.flights) == [state.rid(0)]
    assert tried == [state.rid(1)]
    assert [outcome.row for outcome in added] == [1]


async def test_a_row_over_which_we_make_a_mistake_fails_and_the_rows_behind_it_go_on(
    keys: Keys, state: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def entry(*_: Any) -> None:
        raise ZeroDivisionError

    added = list[Any]()
    rules = SimpleNamespace(valid=lambda _: SimpleNamespace(pictures=None, model="m", lane="batch"))
    monkeypatch.setattr(state.tools, "rules", lambda _: rules)
    monkeypatch.setattr(state.tools, "entries", SimpleNamespace(entry=entry), raising=False)
    monkeypatch.setattr(state, "committer", SimpleNamespace(has=lambda _: False, add=added.append))
    text = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{}}'
    pool: Any = SimpleNamespace(keys=keys)
    assert await Feeder(state)._admit(pool, Read(0, 0, text), 0) is None
    assert not state.flights
    assert [(outcome.row, outcome.code) for outcome in added] == [(0, "internal_error")]


async def test_a_request_whose_end_was_lost_with_a_failover_is_waited_for_and_holds_up_nobody(
    shard: Shard, keys: Keys, state: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_module, "_ANSWER_S", 0.2)
    await shard.claimed("r1")
    flight = Flight(Asked(0, "r1", "a", "m", "/v1/completions"), 0, 0, keys)
    state.fly(flight)
    running = Running(state)
    await running._settle(flight)
    assert list(state.flights) == ["r1"]
    await running._look()
    assert not state.ended
    await shard.ended("r1")
    await running._look()
    assert list(state.ended) == ["r1"]
