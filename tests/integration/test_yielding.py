"""One attempt that has to give its slot, with engines that end in awkward ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from starlette.types import Message, Receive, Scope, Send

from shared.hot import HotClient
from shared.outcomes import Claimed
from shared.scripts import Scripts
from shared.wire import Request, encode, split_log
from tests.integration.shard import Shard
from tests.support.polling import eventually, serving
from worker.attempt import Attempt, Claim, Stop
from worker.attempts import Attempts
from worker.engines import sim
from worker.engines.base import current_journal
from worker.engines.sim import SimEngine
from worker.identity import Identity
from worker.publisher import Publisher
from worker.settings import WorkerSettings

EVENTS = [(b"content-type", b"text/event-stream")]
START: Message = {"type": "http.response.start", "status": 200, "headers": EVENTS}
App = Callable[[Send], Awaitable[None]]


class Scripted(SimEngine):
    """An engine whose application is a test's."""

    script: App

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await self.script(send)


class Bench:
    """A worker that runs one batch request."""

    def __init__(self, shard: Shard, hot: HotClient) -> None:
        self.shard = shard
        self.scripts = Scripts(hot, shard.keys)
        self.identity = Identity()
        self.publisher = Publisher(self.scripts, self.identity, lambda _: None)
        self.engine = Scripted(sim.create(WorkerSettings(engine="sim"), [])._options)
        self.attempts = Attempts(self.engine, self.publisher, self.scripts, self.identity)

    async def run(self, app: App) -> Attempt:
        """Its attempt, that the engine works on."""
        self.engine.script = app
        body = b'{"prompt": "x", "stream": true}'
        await self.shard.admit(lane="batch", body=encode(Request("POST", "/v1/completions", [], body, "batch")))
        (entry,) = await self.scripts.pull(self.identity.wid, 1)
        claimed = await self.scripts.claim(self.identity.wid, entry, "a1")
        assert isinstance(claimed, Claimed)
        self.attempts.start(Claim("r1", "a1", entry.queue, claimed))
        (attempt,) = self.attempts.running()
        await eventually(lambda: attempt.in_engine, "the engine's work")
        return attempt

    async def over(self, attempt: Attempt) -> str:
        """How the attempt ended."""
        await asyncio.wait_for(attempt.over.wait(), 5)
        await self.attempts.empty()
        return attempt.outcome


@pytest.fixture
async def bench(shard: Shard, hot: HotClient) -> AsyncIterator[Bench]:
    made = Bench(shard, hot)
    async with serving(made.publisher):
        yield made


async def say(send: Send, text: bytes, *, more: bool = True) -> None:
    """A piece of the answer."""
    await send({"type": "http.response.body", "body": text, "more_body": more})


async def test_an_answer_that_is_complete_ends_instead(bench: Bench) -> None:
    complete = asyncio.Event()

    async def lingering(send: Send) -> None:
        await send(START)
        await say(send, b"data: [DONE]\n\n", more=False)
        complete.set()
        await asyncio.Event().wait()

    attempt = await bench.run(lingering)
    await complete.wait()
    attempt.stop(Stop.PREEMPT)
    assert await bench.over(attempt) == "succeeded"
    assert await bench.shard.state() == "succeeded"


async def test_what_was_made_is_published_before_the_request_is_given_back(bench: Bench) -> None:
    async def talking(send: Send) -> None:
        await send(START)
        for number in range(1_000_000):
            await say(send, b"data: %d\n\n" % number)
            said.append(number)
            await asyncio.sleep(0)

    said: list[int] = []
    attempt = await bench.run(talking)
    await eventually(lambda: len(said) > 50, "some of it")
    assert attempt.loss == 0
    attempt.stop(Stop.PREEMPT)
    assert await bench.over(attempt) == "preempted"
    frames = [frame for _, frame in split_log(await bench.shard.log(), 0)]
    assert b"".join(frame.data for frame in frames) == b"".join(b"data: %d\n\n" % number for number in said)
    assert {"state": "queued", "queue": "batch", "preempted": "1"}.items() <= (await bench.shard.record()).items()


async def test_what_an_engine_says_once_it_was_stopped_stays_invisible(bench: Bench) -> None:
    async def late(send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await send(START)
            await say(send, b"data: too late\n\n")

    attempt = await bench.run(late)
    assert attempt.loss == 0
    attempt.stop(Stop.PREEMPT)
    assert await bench.over(attempt) == "preempted"
    assert await bench.shard.log() == b""
    assert await bench.shard.state() == "queued"


async def test_a_stream_that_the_engine_cannot_go_on_with_is_not_stopped_once_it_shows(bench: Bench) -> None:
    async def special(send: Send) -> None:
        journal = current_journal.get()
        assert journal is not None
        journal.cannot_continue()
        await asked.wait()
        await send(START)
        await say(send, b"data: 1\n\n")
        await asyncio.Event().wait()

    asked = asyncio.Event()
    attempt = await bench.run(special)
    assert attempt.loss == 0
    asked.set()
    await eventually(lambda: attempt.loss is None, "something visible")
    attempt.stop(Stop.FENCED)
    assert await bench.over(attempt) == "fenced"


async def test_a_request_that_is_cancelled_while_it_yields_ends(bench: Bench) -> None:
    async def silent(_: Send) -> None:
        await asyncio.Event().wait()

    attempt = await bench.run(silent)
    await bench.scripts.cancel("r1", owner=bench.identity.wid, queue="batch", reason="client_gone")
    attempt.stop(Stop.PREEMPT)
    assert await bench.over(attempt) == "preempted"
    assert await bench.shard.state() == "cancelled"
