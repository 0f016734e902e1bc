"""A streaming response lets its request go, whatever happens to it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any, cast

import pytest
from fastapi import Request
from starlette.types import Message, Scope

from api.admission import Door
from api.catalog import Catalog
from api.relay import Relay
from api.settings import ApiSettings
from api.sse import Answer
from api.ticket import Ticket
from api.waiting import Waiting
from shared.errors import BrokerUnavailableError
from shared.hot import HotClient
from shared.keys import Keys
from shared.wire import END, HEAD, Frame, Meta

SCOPE: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "asgi": {"version": "3.0"}}
HEAD_META = Meta(status=200, headers=[("content-type", "text/event-stream")])
ENDED = Meta(status=200, headers=HEAD_META.headers, state="succeeded", reason="completed")


class Away:
    """A Redis that cannot be asked where a request stands."""

    async def evalsha(self, *_: object) -> None:
        raise BrokerUnavailableError


class Leaving:
    """A door that only counts who leaves."""

    def __init__(self) -> None:
        self.left = 0
        self.waiting = Waiting(cast("HotClient", Away()), cast("Catalog", None), 1)

    def leave(self, ticket: Ticket) -> None:
        del ticket
        self.left += 1


async def never() -> None:
    raise AssertionError


async def streaming(door: Leaving) -> Any:
    keys = Keys("p")
    relay = Relay(cast("HotClient", None), keys, "req", grace_s=1, lost_grace_s=1, readmit=never)
    relay._take(10, Frame(HEAD, "a", 0, [], 0, HEAD_META, b"data: 1\n\n"))
    ticket = Ticket("req", "m", "standard", relay, keys, 0.0)
    answer = Answer(cast("Door", door), ticket, ApiSettings(), stream=True)
    return await answer.response(Request(SCOPE))


async def test_once_an_answer_has_begun_its_request_is_kept_no_longer() -> None:
    async def readmit() -> None:
        """Has the request and its body, of some megabytes."""

    kept = weakref.ref(readmit)
    relay = Relay(cast("HotClient", None), Keys("p"), "req", grace_s=1, lost_grace_s=1, readmit=readmit)
    del readmit
    assert kept() is not None
    relay._take(10, Frame(HEAD, "a", 0, [], 0, HEAD_META, b"data: 1\n\n"))
    gc.collect()
    assert kept() is None


async def gone() -> Message:
    return {"type": "http.disconnect"}


async def waiting() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_client_that_is_gone_before_the_first_byte_frees_its_request() -> None:
    door = Leaving()

    async def stuck(message: Message) -> None:
        del message
        await asyncio.Event().wait()

    response = await streaming(door)
    await asyncio.wait_for(response(SCOPE, gone, stuck), 5)
    assert door.left == 1


async def test_a_client_that_leaves_later_frees_its_request_once() -> None:
    door = Leaving()
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def later() -> Message:
        while not any(b"data: 1" in body for body in sent):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    response = await streaming(door)
    await asyncio.wait_for(response(SCOPE, later, send), 5)
    assert door.left == 1


async def test_a_socket_that_breaks_frees_its_request() -> None:
    door = Leaving()

    async def broken(message: Message) -> None:
        del message
        msg = "the peer has reset the connection"
        raise ConnectionResetError(msg)

    response = await streaming(door)
    with pytest.raises((ConnectionResetError, BaseExceptionGroup)):
        await asyncio.wait_for(response(SCOPE, waiting, broken), 5)
    assert door.left == 1


@pytest.mark.parametrize("unsent", [True, False])
async def test_the_body_of_a_client_that_is_sent_away_ends_regularly_only_when_it_has_everything(
    *, unsent: bool
) -> None:
    door = Leaving()
    response = await streaming(door)
    relay: Relay = response._relay
    relay.hung_up = lambda: False  # behind uvicorn
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if b"[DONE]" in message.get("body", b""):
            relay.send_away()

    relay._take(200, Frame(END, "a", 1, [], 0, ENDED, b"data: [DONE]\n\n"))
    if unsent:
        relay.send_away()
    await asyncio.wait_for(response(SCOPE, waiting, send), 5)
    body = b"".join(message.get("body", b"") for message in sent)
    assert (b"retry: 200" in body) == unsent
    assert (b"[DONE]" in body) != unsent
    assert sent[-1]["more_body"] == unsent, "a regular end says that this was all"
    assert door.left == 1


async def test_an_error_event_that_opens_a_late_stream_is_told_in_our_envelope() -> None:
    keys = Keys("p")
    relay = Relay(cast("HotClient", None), keys, "req", grace_s=1, lost_grace_s=1, readmit=never)
    door = Leaving()
    ticket = Ticket("req", "m", "standard", relay, keys, 0.0)
    answer = Answer(cast("Door", door), ticket, ApiSettings(header_hold_s=0.01), stream=True)
    response = await answer.response(Request(SCOPE))
    sent: list[bytes] = []
    refusal = b'data: {"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}\n\ndata: [DONE]\n\n'

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        if b": queued" in sent[-1]:
            relay._take(200, Frame(HEAD | END, "a", 0, [], 0, ENDED, refusal))

    await asyncio.wait_for(response(SCOPE, waiting, send), 5)
    last = [body for body in sent if body][-1]
    assert last.startswith(b'data: {"error":{"message":"no","type":"')
    assert b'"code":"invalid_request_error"' in last
    assert b"[DONE]" not in b"".join(sent)
    assert door.left == 1
