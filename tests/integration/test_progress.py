"""What of an engine's work the stall detector sees: the engine's own, and all of it."""

from __future__ import annotations

import asyncio
import json

import pytest

from shared.scripts import Scripts
from shared.wire import DELTA, HEAD, Frame, Meta, Request, encode
from tests.integration.shard import Shard
from tests.support.polling import eventually
from worker.attempt import Claim, Stop
from worker.attempts import Attempts
from worker.engines import sim
from worker.engines.sim_answers import token_id, token_text
from worker.identity import Identity
from worker.publisher import Publisher
from worker.settings import WorkerSettings

TOKENS = 64


class Working:
    """A worker's attempts on the simulated engine, of which nothing is published before its end."""

    def __init__(self, shard: Shard, scripts: Scripts, *flags: str) -> None:
        self.shard = shard
        self.identity = Identity()
        self.engine = sim.create(WorkerSettings(engine="sim"), ["--ttft-ms", "0", *flags])
        publisher = Publisher(scripts, self.identity, lambda _: None)
        self.attempts = Attempts(self.engine, publisher, scripts, self.identity)

    async def start(self, rid: str, log: bytes = b"", **fields: object) -> None:
        """A request that asks for 64 tokens starts; `log` is what was published of it before."""
        asked = {"model": "sim", "stream": True, "max_tokens": TOKENS, **fields}
        headers = [("x-request-id", rid)]
        body = encode(Request("POST", "/v1/completions", headers, json.dumps(asked).encode(), "standard"))
        attempt = f"a-{rid}"
        if log:
            await self.shard.client.set(self.shard.keys.log(rid), log)
        claimed = await self.shard.claimed(rid, self.identity.wid, attempt, body=body)
        self.attempts.start(Claim(rid, attempt, "standard", claimed))

    @property
    def work(self) -> int:
        return self.attempts.progress().work


@pytest.fixture
def hung(shard: Shard, scripts: Scripts) -> Working:
    return Working(shard, scripts, "--faults")


async def test_that_clients_come_and_go_is_no_work_of_an_engine_that_hangs(hung: Working) -> None:
    await hung.start("r0", prompt="fault:hang")
    await eventually(lambda: hung.engine.running == 1, "the engine has the request that hangs it")
    before = hung.work
    for number in range(1, 4):
        rid = f"r{number}"
        await hung.start(rid, prompt="impatient")
        await eventually(lambda: hung.engine.running == 2, "the engine has the next one, too")
        hung.attempts.stop(rid, f"a-{rid}", Stop.ORPHANED)
        await eventually(lambda: len(hung.attempts) == 1, "its client is gone")
    await hung.start("r9", prompt="refused", max_tokens=0, n=2)
    await eventually(lambda: len(hung.attempts) == 1, "what is refused needs no engine")
    assert hung.work == before
    assert hung.attempts.progress().busy == 1
    hung.attempts.stop_all(Stop.CANCEL)
    await hung.attempts.empty()


async def test_an_answer_and_every_token_are_work(shard: Shard, scripts: Scripts) -> None:
    well = Working(shard, scripts)
    seen = [well.work]
    await well.start("r1", prompt="x")
    await well.attempts.empty()
    seen.append(well.work)
    assert seen[1] >= seen[0] + TOKENS


async def test_tokens_that_are_made_again_are_work(shard: Shard, scripts: Scripts) -> None:
    well = Working(shard, scripts, "--itl-ms", "100000")
    ids = [token_id("r1", index) for index in range(20)]
    head = Meta(200, [("content-type", "text/event-stream")])
    shown = b'data: {"id":"cmpl-r1","object":"text_completion","created":1,"model":"sim","choices":[{"index":0,'
    shown += b'"text":"%b","logprobs":null,"finish_reason":null}]}\n\n' % token_text("r1", 0).encode()
    log = encode(Frame(HEAD, "a0", 0, [], 0, head, b"")) + encode(Frame(DELTA, "a0", 0, ids, 7, None, shown))
    await well.start("r1", log, prompt="x", seed=1)
    before = well.work
    await eventually(lambda: well.work >= before + len(ids), "the replay is seen")
    well.attempts.stop_all(Stop.CANCEL)
    await asyncio.wait_for(well.attempts.empty(), 5)
