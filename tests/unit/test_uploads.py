"""Turns of uploads, and how slowly one may come."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from fastapi import Request
from starlette.types import Message

from api.files import turns as turns_module
from api.files.turns import Turns
from api.files.upload import LEAST_BYTES_PER_S, _body
from shared.errors import RequestError


async def test_a_tenant_leaves_turns_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(4, each=2)
    async with AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(turns.taken("greedy"))
        monkeypatch.setattr(turns_module, "WAIT_S", 0.02)
        with pytest.raises(RequestError) as refused:
            await held.enter_async_context(turns.taken("greedy"))
        assert refused.value.code == "uploads_busy"
        for tenant in ("one", "other"):
            await held.enter_async_context(turns.taken(tenant))
        with pytest.raises(RequestError):
            await held.enter_async_context(turns.taken("third"))
    monkeypatch.undo()
    async with turns.taken("greedy"), turns.taken("greedy"), turns.taken("one"), turns.taken("other"):
        pass


async def test_one_that_waits_gets_the_turn_that_its_tenant_gives_back() -> None:
    turns, had = Turns(4, each=1), asyncio.Event()

    async def another() -> None:
        async with turns.taken("t"):
            had.set()

    async with turns.taken("t"):
        waiting = asyncio.ensure_future(another())
        await asyncio.sleep(0)
        assert not had.is_set()
    await asyncio.wait_for(waiting, 30)
    assert had.is_set()
    assert len(turns._own) == 0, "nothing is kept of tenants that upload nothing"


async def test_an_upload_that_never_stops_and_gets_nowhere_is_given_up() -> None:
    async def drip() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async with asyncio.timeout(30):
        with pytest.raises(RequestError) as refused:
            async for _ in _body(Request({"type": "http"}, drip), 0.3):
                pass
    assert (refused.value.status, refused.value.code) == (408, "upload_timeout")


async def test_what_has_come_buys_time() -> None:
    sizes = [LEAST_BYTES_PER_S * 3_600, *[1] * 20]

    async def drip() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": bytes(sizes.pop(0)), "more_body": bool(sizes)}

    received = [len(chunk) async for chunk in _body(Request({"type": "http"}, drip), 30)]
    assert sum(received) == LEAST_BYTES_PER_S * 3_600 + 20


async def test_what_has_come_fast_buys_no_more_time_than_a_sweep_leaves() -> None:
    sizes = [LEAST_BYTES_PER_S * 3_600]

    async def drip() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": bytes(sizes.pop() if sizes else 1), "more_body": True}

    async with asyncio.timeout(60):
        with pytest.raises(RequestError):
            async for _ in _body(Request({"type": "http"}, drip), 0.3):
                pass
