"""A response in background whose storing fails, on a real server: what becomes of its request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request
from starlette.types import Message

from api.admission import Door
from api.responses.store import Store
from api.routes import responses
from shared.channels import Channels
from shared.errors import BrokerUnavailableError
from shared.hot import HotClient
from tests.integration.shard import Shard
from tests.integration.test_door import door_with, records
from tests.support.polling import eventually, serving
from tests.support.servers import Server

BODY = json.dumps({"model": "llama", "input": "hi", "background": True}).encode()
KEY = [(b"idempotency-key", b"k1")]
AGAIN = [(b"x-stainless-retry-count", b"1")]
Headers = list[tuple[bytes, bytes]]


class Replica:
    """The part of a replica that makes responses. Nobody who has gone gets a grace.

    Attributes:
        failures: how many of the next responses cannot be stored.
        looks: whether the door may see, once a grace is over, if somebody follows.
    """

    def __init__(self, door: Door, hot: HotClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.door, self.failures, self.looks = door, 0, asyncio.Event()
        self._store = Store(hot, ttl_s=100, log_ttl_s=100)
        keep, followed = self._store.keep, door._requests.followed

        async def kept(*args: Any, **lasts: Any) -> None:
            if self.failures:
                self.failures -= 1
                raise BrokerUnavailableError
            await keep(*args, **lasts)

        async def late(*args: Any) -> bool:
            await self.looks.wait()
            return await followed(*args)

        monkeypatch.setattr(self._store, "keep", kept)
        monkeypatch.setattr(door._requests, "followed", late)

    async def create(self, headers: Headers) -> tuple[int, Any]:
        """Status and body of a response that is asked for."""

        async def receive() -> Message:
            return {"type": "http.request", "body": BODY, "more_body": False}

        names = {"settings": self.door._settings, "door": self.door, "responses": self._store, "keys": ()}
        app = SimpleNamespace(state=SimpleNamespace(requests=self.door._requests, **names))
        scope = {"type": "http", "method": "POST", "path": "/v1/responses", "query_string": b"", "app": app}
        sent = [(b"content-type", b"application/json"), *headers]
        answer = await responses.create(Request({**scope, "headers": sent}, receive))
        return answer.status_code, json.loads(answer.body)

    async def graces_over(self) -> None:
        """Returns once the door has done what it does for those who are gone."""
        await eventually(lambda: self.door._leaving, "the end of a grace")
        self.looks.set()
        await eventually(lambda: not self.door._leaving, "what follows a grace")


@pytest.fixture
async def replica(
    server: Server, hot: HotClient, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Replica]:
    channels = Channels(server.url, "test-create")
    async with serving(channels):
        yield Replica(await door_with(channels, hot, shard, 0), hot, monkeypatch)


@pytest.mark.parametrize(("first", "second"), [(KEY, KEY), ([], AGAIN)], ids=["key", "retry"])
async def test_what_a_retry_was_promised_goes_on_although_the_first_try_was_not_stored(
    replica: Replica, shard: Shard, first: Headers, second: Headers
) -> None:
    replica.failures = 1
    with pytest.raises(BrokerUnavailableError):
        await replica.create(first)
    status, shown = await replica.create(second)
    assert (status, shown["status"]) == (200, "queued")
    assert len(await records(shard)) == 1, "it has not joined: this proves nothing"
    await replica.graces_over()
    assert list((await records(shard)).values()) == ["queued"]


async def test_what_could_not_be_stored_and_nobody_comes_back_for_is_cancelled(replica: Replica, shard: Shard) -> None:
    replica.failures = 1
    with pytest.raises(BrokerUnavailableError):
        await replica.create(KEY)
    await replica.graces_over()
    assert list((await records(shard)).values()) == ["cancelled"]


async def test_one_that_joins_and_cannot_store_does_not_cancel_the_request_of_the_first(
    replica: Replica, shard: Shard
) -> None:
    replica.looks.set()
    assert (await replica.create(KEY))[0] == 200
    replica.failures = 1
    with pytest.raises(BrokerUnavailableError):
        await replica.create(KEY)
    for _ in range(20):  # turns of the event loop and round trips, in which a grace of 0 s would be over
        assert list((await records(shard)).values()) == ["queued"]


async def test_one_that_joins_and_cannot_read_how_that_stands_follows_no_longer(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise BrokerUnavailableError

    assert (await replica.create(KEY))[0] == 200
    monkeypatch.setattr(Store, "current", broken)
    with pytest.raises(BrokerUnavailableError):
        await replica.create(KEY)
    assert len(replica.door._watch) == 0
