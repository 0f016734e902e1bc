"""Several intakes on one server: who gets what, how often in vain, and what a paused lane costs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from shared.hot import HotClient
from shared.keys import Keys
from shared.outcomes import Claimed, Entry, Unclaimed
from shared.scripts import Scripts
from shared.wire import Request, encode
from tests.integration.shard import Shard, in_ms
from tests.support.polling import eventually, serving
from tests.support.servers import Server
from worker.attempt import Stop
from worker.attempts import Attempts
from worker.engines import sim
from worker.identity import Identity
from worker.intake import Intake
from worker.preemption import LEAST_WAIT_MS
from worker.publisher import Publisher
from worker.settings import WorkerSettings

_SHORT = ("--ttft-ms", "1", "--itl-ms", "1")
_ENDLESS = ("--ttft-ms", "1", "--itl-ms", "10000")


class Counted(Scripts):
    """Scripts that count what a worker asks for, and what its claims gave."""

    def __init__(self, caller: HotClient, keys: Keys) -> None:
        super().__init__(caller, keys)
        self.pulls: Counter[str] = Counter()
        self.claims: Counter[str] = Counter()
        self.rids: list[str] = []
        self.held: set[int] = set()

    async def pull(self, wid: str, want: int, *, only: str = "", **options: Any) -> list[Entry]:
        """See Scripts."""
        self.pulls[only] += 1
        self.held.add(options["held"])
        return await super().pull(wid, want, only=only, **options)

    async def claim(self, wid: str, entry: Entry, attempt: str) -> Claimed | Unclaimed:
        """See Scripts."""
        claimed = await super().claim(wid, entry, attempt)
        self.claims["OK" if isinstance(claimed, Claimed) else claimed.outcome] += 1
        if isinstance(claimed, Claimed):
            self.rids.append(entry.rid)
        return claimed


class Taking:
    """What a worker takes, and runs."""

    def __init__(self, scripts: Counted, attempts: Attempts) -> None:
        self.scripts = scripts
        self.attempts = attempts


@contextlib.asynccontextmanager
async def taking(url: str, keys: Keys, slots: int, *flags: str) -> AsyncIterator[Taking]:
    """A worker's way in and out, with the simulated engine."""
    name = f"test-{next(_numbers)}"
    client, reader, identity = HotClient(url, name), HotClient(url, f"{name}-read"), Identity()
    scripts = Counted(client, keys)
    engine = sim.create(WorkerSettings(engine="sim"), list(flags))
    publisher = Publisher(scripts, identity, lambda _: None)
    attempts = Attempts(engine, publisher, scripts, identity)
    intake = Intake(client, reader, keys, scripts, engine, attempts, identity, slots)
    attempts.on_room(intake.room)
    async with serving(client), serving(reader), serving(publisher), serving(intake):
        try:
            yield Taking(scripts, attempts)
        finally:
            await asyncio.wait_for(intake.drain(), 5)
            attempts.stop_all(Stop.FENCED)
            await attempts.empty()


_numbers = itertools.count()


def _at_least(count: Callable[[], int], least: int) -> bool:
    return count() >= least


def body(lane: str, tokens: int = 3, *, stream: bool = False) -> bytes:
    """A completion as a replica would put it on the queue."""
    asked = b'{"prompt": "x", "max_tokens": %d, "stream": %b}' % (tokens, b"true" if stream else b"false")
    return encode(Request("POST", "/v1/completions", [], asked, lane))


async def test_in_bursts_on_three_workers_nothing_is_run_twice_and_hardly_a_claim_is_in_vain(
    server: Server, shard: Shard
) -> None:
    lanes = ("interactive", "standard", "batch")
    admitted = 0
    workers: list[Taking] = []

    def taken() -> int:
        return sum(len(worker.scripts.rids) for worker in workers)

    room = asyncio.Semaphore(8)  # the test's client has so many connections, and waits for one only so long

    async def asked(number: int) -> None:
        lane = lanes[number % 3]
        async with room:
            await shard.admit(f"r{number}", lane=lane, tenant=f"t{number % 7}", body=body(lane), tenant_cap=999)

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            workers.append(await stack.enter_async_context(taking(server.url, shard.keys, 8, *_SHORT)))  # noqa: PERF401
        for burst in (1, 60, 3, 120, 1, 200):
            several = range(admitted, admitted + burst)
            admitted += burst
            await asyncio.gather(*(asked(number) for number in several))
            await eventually(partial(_at_least, taken, admitted), "the whole burst")
        await asyncio.gather(*(worker.attempts.empty() for worker in workers))
    rids = Counter(rid for worker in workers for rid in worker.scripts.rids)
    assert len(rids) == admitted
    assert set(rids.values()) == {1}
    claims = sum((worker.scripts.claims for worker in workers), Counter[str]())
    assert claims["SKIP"] <= admitted / 10, claims
    assert await shard.client.zcard(shard.keys.fair("standard")) == 0


async def test_a_paused_lane_with_a_backlog_costs_an_idle_worker_nothing(server: Server, shard: Shard) -> None:
    await shard.client.hset(shard.keys.lanes, "batch.paused", "1")  # type: ignore[misc]
    for number in range(50):
        await shard.admit(f"r{number}", lane="batch", body=body("batch"))
    async with taking(server.url, shard.keys, 4, *_SHORT) as worker:
        await eventually(lambda: worker.scripts.pulls[""] >= 3, "a look each second")
        assert not worker.scripts.claims, "it took what it could not claim"
        await shard.admit("late", lane="batch", body=body("batch"))
        await eventually(lambda: worker.scripts.pulls[""] >= 5, "more of them")
        assert worker.scripts.claims == {"PAUSED": 1}, "one that arrives wakes the reader once"
        assert await shard.client.zcard(shard.keys.fair("batch")) == 51
        await shard.client.hdel(shard.keys.lanes, "batch.paused")  # type: ignore[misc]
        await eventually(lambda: worker.scripts.claims["OK"] == 51, "all of them")
        await worker.attempts.empty()


async def test_a_lane_that_is_resumed_is_served_although_other_lanes_keep_the_reader_busy(
    server: Server, shard: Shard
) -> None:
    await shard.client.hset(shard.keys.lanes, "batch.paused", "1")  # type: ignore[misc]
    await shard.admit("paused", lane="batch", body=body("batch"))
    async with taking(server.url, shard.keys, 4, *_SHORT) as worker:
        await eventually(lambda: worker.scripts.pulls[""], "a first look")

        async def trickle() -> None:
            for number in itertools.count():
                await shard.admit(f"s{number}", body=body("standard"), tenant_cap=999)
                await asyncio.sleep(0.1)

        trickling = asyncio.create_task(trickle())
        await eventually(lambda: len(worker.scripts.rids) > 3, "what trickles in")
        await shard.client.hdel(shard.keys.lanes, "batch.paused")  # type: ignore[misc]
        try:
            await eventually(lambda: "paused" in worker.scripts.rids, "the resumed one")
        finally:
            trickling.cancel()
        await worker.attempts.empty()


async def batches(shard: Shard, count: int, *, stream: bool = True) -> None:
    """So many batch requests that never end by themselves."""
    for number in range(count):
        await shard.admit(f"b{number}", lane="batch", body=body("batch", 9_000, stream=stream))


async def test_workers_without_room_make_it_once_for_one_interactive_request(server: Server, shard: Shard) -> None:
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(taking(server.url, shard.keys, 2, *_ENDLESS)) for _ in range(3)]
        await batches(shard, 6)
        await eventually(lambda: all(len(worker.attempts) == 2 for worker in workers), "six that run")
        await shard.admit("i1", lane="interactive", body=body("interactive", 9_000))
        await eventually(lambda: any("i1" in worker.scripts.rids for worker in workers), "its turn")
        records = [await shard.record(f"b{number}") for number in range(6)]
    (yielded,) = (record for record in records if "preempted" in record)
    assert {"preempted": "1", "kills": "0", "queue": "batch", "state": "queued"}.items() <= yielded.items()
    assert [record["state"] for record in records].count("running") == 5


async def test_interactive_requests_take_no_more_slots_than_their_lanes_part(server: Server, shard: Shard) -> None:
    async with taking(server.url, shard.keys, 4, *_ENDLESS) as worker:
        await batches(shard, 4)
        await eventually(lambda: len(worker.attempts) == 4, "four that run")
        for number in range(4):
            await shard.admit(f"i{number}", lane="interactive", body=body("interactive", 9_000))
        await eventually(lambda: sum(rid[0] == "i" for rid in worker.scripts.rids) == 2, "two of them run")
        looks = worker.scripts.pulls["interactive"]
        await eventually(lambda: worker.scripts.pulls["interactive"] >= looks + 5, "more looks")
        states = [await shard.state(f"i{number}") for number in range(4)]
        batch = [await shard.state(f"b{number}") for number in range(4)]
    assert (states.count("running"), batch.count("running")) == (2, 2)


async def test_a_worker_says_how_much_it_runs_when_it_takes_its_part(server: Server, shard: Shard) -> None:
    async with taking(server.url, shard.keys, 8, *_ENDLESS) as worker:
        await batches(shard, 3)
        await eventually(lambda: len(worker.attempts) == 3, "three that run")
        await eventually(lambda: 3 in worker.scripts.held, "another look")


async def test_nobody_looks_who_runs_no_batch_request(server: Server, shard: Shard) -> None:
    async with taking(server.url, shard.keys, 1, *_ENDLESS) as worker:
        await shard.admit("s1", body=body("standard", 9_000))
        await eventually(lambda: len(worker.attempts), "one that runs")
        await shard.admit("i1", lane="interactive", body=body("interactive"))
        queued = await shard.record("i1")
        await eventually(lambda: in_ms(0) > int(queued["queued_at_ms"]) + 600, "some time")
        assert not worker.scripts.pulls["interactive"]
        assert await shard.state("i1") == "queued"


async def test_looking_is_cheap_and_a_head_that_waited_less_is_left_alone(server: Server, shard: Shard) -> None:
    async with taking(server.url, shard.keys, 1, *_ENDLESS) as worker:
        await batches(shard, 1)
        await eventually(lambda: len(worker.attempts), "one that runs")
        pulls, since_ms = worker.scripts.pulls, in_ms(0)
        before = pulls["interactive"]
        await eventually(lambda: in_ms(0) >= since_ms + 500 and pulls["interactive"] > before, "some time and a look")
        assert pulls["interactive"] - before <= 8
        await shard.admit("i1", lane="interactive", body=body("interactive", 9_000))
        queued_at_ms = int((await shard.record("i1"))["queued_at_ms"])
        await eventually(lambda: "i1" in worker.scripts.rids, "its turn")
        assert int((await shard.record("i1"))["started_at_ms"]) - queued_at_ms >= LEAST_WAIT_MS


async def test_who_yielded_three_times_and_what_must_be_verified_stay(server: Server, shard: Shard) -> None:
    """The newest one would be generated again and compared, the next has yielded often enough: the oldest goes."""
    async with taking(server.url, shard.keys, 3, *_ENDLESS) as worker:
        await shard.admit("free", lane="batch", body=body("batch", 9_000, stream=True))
        await eventually(lambda: "free" in worker.scripts.rids, "the first")
        await shard.admit("tired", lane="batch", body=body("batch", 9_000, stream=True), tenant_cap=99)
        await eventually(lambda: "tired" in worker.scripts.rids, "the second")
        (tired,) = (one for one in worker.attempts.running() if one.rid == "tired")
        tired.preempted = 3
        seeded = b'{"prompt": "x", "max_tokens": 9000, "stream": true, "seed": 1}'
        asked = encode(Request("POST", "/v1/completions", [], seeded, "batch"))
        await shard.admit("seeded", lane="batch", body=asked)
        await eventually(lambda: "seeded" in worker.scripts.rids, "the third")
        await shard.admit("i1", lane="interactive", body=body("interactive", 9_000))
        await eventually(lambda: "i1" in worker.scripts.rids, "its turn")
        assert [await shard.state(rid) for rid in ("free", "tired", "seeded")] == ["queued", "running", "running"]


async def test_what_nobody_sees_yet_yields_before_it_has_made_much(server: Server, shard: Shard) -> None:
    async with taking(server.url, shard.keys, 1, *_ENDLESS) as worker:
        await batches(shard, 1, stream=False)
        await eventually(lambda: len(worker.attempts), "one that runs")
        await shard.admit("i1", lane="interactive", body=body("interactive", 9_000))
        await eventually(lambda: "i1" in worker.scripts.rids, "its turn")
        assert await shard.log("b0") == b""
        assert (await shard.record("b0"))["preempted"] == "1"
