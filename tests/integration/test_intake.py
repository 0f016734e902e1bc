"""The worker's intake against a real server."""

from __future__ import annotations

import asyncio
import gc
import uuid
import weakref
from typing import Any

import pytest
import redis.asyncio

from shared.errors import BrokerUnavailableError
from shared.hot import HotClient
from shared.keys import Keys
from shared.outcomes import Claimed, Entry, Unclaimed
from shared.scripts import Scripts
from shared.wire import Request, encode
from tests.integration.shard import Shard
from tests.support.polling import eventually, serving
from tests.support.servers import Server
from worker.attempt import Attempt, Claim, Stop
from worker.attempts import Attempts
from worker.engines import sim
from worker.identity import Identity
from worker.intake import Intake
from worker.publisher import Publisher
from worker.settings import WorkerSettings


class Outrun(Scripts):
    """Scripts of a worker whose beat learns that it is condemned while a pull is on its way."""

    identity: Identity
    pulls = 0

    async def pull(self, wid: str, want: int, *, only: str = "", **options: Any) -> list[Entry]:
        self.pulls += 1
        if self.pulls == 1:
            await self.condemn(wid)
            self.identity.condemned(wid)
        return await super().pull(wid, want, only=only, **options)


async def test_a_late_refusal_of_an_old_id_does_not_cost_the_new_one(hot: HotClient, keys: Keys) -> None:
    identity = Identity()
    renewed: list[str] = []
    identity.on_renewal(renewed.append)
    scripts = Outrun(hot, keys)
    scripts.identity = identity
    first = identity.wid
    engine = sim.create(WorkerSettings(engine="sim"), [])
    attempts = Attempts(engine, Publisher(scripts, identity, lambda _: None), scripts, identity)
    intake = Intake(hot, hot, keys, scripts, engine, attempts, identity, 4)
    async with serving(intake):
        await eventually(lambda: scripts.pulls >= 2, "another pull, under the new id")
    assert renewed == [first]


class Renewed(Scripts):
    """Scripts of a worker that is condemned after its claim, and learns of that before the claim's reply is there."""

    identity: Identity
    claims = 0

    async def claim(self, wid: str, entry: Entry, attempt: str) -> Claimed | Unclaimed:
        claimed = await super().claim(wid, entry, attempt)
        self.claims += 1
        if self.claims == 1:
            await self.condemn(wid, process_ended=True)
            self.identity.condemned(wid)
        return claimed


async def test_what_was_claimed_under_an_id_that_is_condemned_by_now_does_not_start(
    hot: HotClient, shard: Shard
) -> None:
    identity = Identity()
    scripts = Renewed(hot, shard.keys)
    scripts.identity = identity
    engine = sim.create(WorkerSettings(engine="sim"), ["--itl-ms", "100000"])
    attempts = Attempts(engine, Publisher(scripts, identity, lambda _: None), scripts, identity)
    intake = Intake(hot, hot, shard.keys, scripts, engine, attempts, identity, 4)
    await shard.admit(body=encode(Request("POST", "/v1/completions", [], b'{"prompt": "x"}', "standard")))
    async with serving(intake):
        await eventually(lambda: scripts.claims and not intake._claiming, "the claim")
    assert len(attempts) == 0


async def test_an_attempt_that_is_over_is_gone_without_a_collection(hot: HotClient, shard: Shard) -> None:
    """It holds its whole answer, and a full collection comes once in some ten thousand requests."""
    identity, scripts = Identity(), Scripts(hot, shard.keys)
    engine, publisher = sim.create(WorkerSettings(engine="sim"), []), Publisher(scripts, identity, lambda _: None)
    attempts = Attempts(engine, publisher, scripts, identity)
    intake = Intake(hot, hot, shard.keys, scripts, engine, attempts, identity, 4)
    body = b'{"prompt": "x", "stream": true, "max_tokens": 3}'
    await shard.admit(body=encode(Request("POST", "/v1/completions", [], body, "standard")))
    seen: list[weakref.ref[Attempt]] = []
    start = attempts.start

    def watched(claim: Claim) -> None:
        start(claim)
        seen.extend(map(weakref.ref, attempts.running()))

    attempts.start = watched  # type: ignore[method-assign]
    gc.disable()
    try:
        async with serving(publisher), serving(intake):
            await eventually(lambda: seen and not len(attempts), "it has run")
            await eventually(lambda: seen[0]() is None, "nothing holds it")
    finally:
        gc.enable()


async def test_a_request_whose_trace_cannot_be_begun_runs_without_one(hot: HotClient, shard: Shard) -> None:
    identity, scripts = Identity(), Scripts(hot, shard.keys)
    engine, publisher = sim.create(WorkerSettings(engine="sim"), []), Publisher(scripts, identity, lambda _: None)
    broken: Any = object()
    attempts = Attempts(engine, publisher, scripts, identity, broken)
    intake = Intake(hot, hot, shard.keys, scripts, engine, attempts, identity, 4)
    body = b'{"prompt": "x", "max_tokens": 3}'
    await shard.admit(body=encode(Request("POST", "/v1/completions", [], body, "standard")))
    async with serving(publisher), serving(intake):
        async with asyncio.timeout(30):
            while (await shard.record())["state"] != "succeeded":
                await asyncio.sleep(0.01)


class Between(HotClient):
    """A client whose connection comes later than that of the blocking read."""

    refused = 0

    async def call(self, *command: object, timeout_s: float) -> object:
        """See HotClient."""
        if command[0] == "XGROUP" and not self.refused:
            self.refused += 1
            raise BrokerUnavailableError("not connected")
        return await super().call(*command, timeout_s=timeout_s)


async def test_a_server_that_came_back_empty_costs_no_worker_while_not_all_connections_are_up(
    server: Server, hot: HotClient, keys: Keys, client: redis.asyncio.Redis
) -> None:
    identity = Identity()
    late = Between(server.url, "test-late")
    async with serving(late):
        scripts = Scripts(late, keys)
        engine = sim.create(WorkerSettings(engine="sim"), [])
        attempts = Attempts(engine, Publisher(scripts, identity, lambda _: None), scripts, identity)
        intake = Intake(late, hot, keys, scripts, engine, attempts, identity, 4)
        async with serving(intake) as running:
            await eventually(lambda: late.refused, "the groups could not be made")
            while not await client.exists(keys.queue("standard")):
                assert not running.done(), "the intake ended"
                await asyncio.sleep(0.01)


async def test_a_sweep_takes_no_more_than_there_is_room_for(
    hot: HotClient, shard: Shard, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.intake._SWEEP_IDLE_MS", 0)
    body = encode(Request("POST", "/v1/completions", [], b'{"prompt": "x", "max_tokens": 64}', "standard"))
    for number in range(8):
        await shard.admit(f"r{number}", body=body, lane=("standard", "batch")[number % 2])
    assert len(await scripts.pull("gone", 8)) == 8
    identity = Identity()
    engine = sim.create(WorkerSettings(engine="sim"), ["--itl-ms", "100000"])
    attempts = Attempts(engine, Publisher(scripts, identity, lambda _: None), scripts, identity)
    intake = Intake(hot, hot, shard.keys, scripts, engine, attempts, identity, 3)
    async with serving(intake):
        await eventually(lambda: len(attempts) >= 3, "the first that were swept up")
        await eventually(lambda: not intake._claiming, "no claim is under way")
    assert len(attempts) == 3
    attempts.stop_all(Stop.FENCED)
    await attempts.empty()


async def test_a_claim_that_fails_in_a_way_that_nobody_has_thought_of_is_logged_and_swept_up_later(
    server: Server,
    hot: HotClient,
    shard: Shard,
    client: redis.asyncio.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("worker.intake._SWEEP_IDLE_MS", 0)
    monkeypatch.setattr("worker.intake._SWEEP_EVERY_S", 0.1)
    monkeypatch.setattr("worker.intake.BLOCK_MS", 50)
    name, word = f"narrow-{uuid.uuid4().hex}", uuid.uuid4().hex
    may_pull_but_not_claim = ("~*:q:*", "~*:fair:*", "~*:led:*", "~*:lanes", "~*:sched", "~*:w:*", "~*:dead:*", "~*:ws")
    await client.execute_command("ACL", "SETUSER", name, "reset", "on", f">{word}", "+@all", *may_pull_but_not_claim)
    body = encode(Request("POST", "/v1/completions", [], b'{"prompt": "x", "max_tokens": 64}', "standard"))
    await shard.admit("r1", body=body)
    identity = Identity()
    engine = sim.create(WorkerSettings(engine="sim"), ["--itl-ms", "100000"])
    narrow = HotClient(server.url.replace("://", f"://{name}:{word}@"), name)
    try:
        async with serving(narrow):
            scripts = Scripts(narrow, shard.keys)
            attempts = Attempts(engine, Publisher(scripts, identity, lambda _: None), scripts, identity)
            intake = Intake(narrow, hot, shard.keys, scripts, engine, attempts, identity, 4)
            async with serving(intake) as running:
                await eventually(lambda: caplog.text.count("claim-r1 failed") >= 2, "the first failures")
                assert await shard.state("r1") == "queued"
                assert not running.done()
                await client.execute_command("ACL", "SETUSER", name, "allkeys")
                await eventually(lambda: len(attempts) == 1, "it is swept up")
                assert await shard.state("r1") == "running"
            attempts.stop_all(Stop.FENCED)
            await attempts.empty()
    finally:
        await client.execute_command("ACL", "DELUSER", name)
    assert "NOPERM" in caplog.text
