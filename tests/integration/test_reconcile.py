"""The worker's reconciliation against a real server."""

from __future__ import annotations

import redis.asyncio

from shared.hot import HotClient
from shared.keys import Keys
from shared.outcomes import Admission, Claimed
from shared.scripts import Scripts
from worker.attempt import Claim
from worker.attempts import Attempts
from worker.engines import sim
from worker.identity import Identity
from worker.publisher import Publisher
from worker.reconcile import Reconcile
from worker.settings import WorkerSettings

RID = "req_0" + "0" * 26


async def claimed(scripts: Scripts, wid: str, attempt: str) -> Claim:
    await scripts.admit(Admission(RID, "f", "standard", b"not a request", "t", 9, 9, 1, 0))
    (entry,) = await scripts.pull(wid, 1)
    claim = await scripts.claim(wid, entry, attempt)
    assert isinstance(claim, Claimed)
    return Claim(RID, attempt, "standard", claim)


async def test_what_redis_says_is_ours_and_nobody_runs_is_handed_back_at_the_second_look(
    hot: HotClient, keys: Keys, scripts: Scripts, client: redis.asyncio.Redis
) -> None:
    identity = Identity()
    publisher = Publisher(scripts, identity, lambda _: None)
    engine = sim.create(WorkerSettings(engine="sim"), [])
    attempts = Attempts(engine, publisher, scripts, identity)
    reconcile = Reconcile(hot, keys, scripts, attempts, identity, look_s=60)
    await claimed(scripts, identity.wid, "a1")
    await reconcile.look()
    assert await client.hget(keys.record(RID), "state") == b"running"
    await reconcile.look()
    assert await client.hget(keys.record(RID), "state") == b"queued"
    assert await client.hget(keys.record(RID), "kills") == b"0"
    assert await client.hgetall(keys.run(identity.wid)) == {}


async def test_what_runs_here_is_left_alone(
    hot: HotClient, keys: Keys, scripts: Scripts, client: redis.asyncio.Redis
) -> None:
    identity = Identity()
    engine = sim.create(WorkerSettings(engine="sim"), [])
    attempts = Attempts(engine, Publisher(scripts, identity, lambda _: None), scripts, identity)
    reconcile = Reconcile(hot, keys, scripts, attempts, identity, look_s=60)
    attempts.start(await claimed(scripts, identity.wid, "a1"))
    assert attempts.owned() == {(RID, "a1")}
    await reconcile.look()
    await reconcile.look()
    await attempts.empty()  # its body cannot be read, so it ends as failed
    assert attempts.owned() == set()
    assert await client.hget(keys.record(RID), "reason") == b"undecodable"
