"""The queues' metrics as a replica exposes them."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket

import pytest
import redis.asyncio
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from api.queues import FRESH_S, Queues
from api.scaling import Targets
from shared import metrics
from shared.connection import RedisCaller, connect
from shared.lanes import FAIR, QUARANTINE, QUEUES
from shared.metrics import Reading
from shared.outcomes import Bounds
from shared.registry import Registry
from shared.wire import WorkerCard
from tests.integration.monitor import watching
from tests.integration.shard import Shard
from tests.support import servers
from tests.support.clocks import HandClock

READINGS = {
    reading.name: reading
    for reading in vars(metrics).values()
    if isinstance(reading, Reading) and not reading.name.startswith(("penstock_redis_", "penstock_tenant_"))
}
"""Those of the queues; the others: test_server_metrics.py."""
ALWAYS = READINGS.keys() - {metrics.QUEUE_DRAIN.name, metrics.LANE_FAIRNESS.name, metrics.POOL_PACE.name}


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def queues_of(client: redis.asyncio.Redis, prefix: str, clock: HandClock, **targets: float) -> Queues:
    """What one replica has."""
    return Queues(Registry(client, prefix), RedisCaller(client), prefix, Targets(**targets), clock)  # type: ignore[arg-type]


def values(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """Metric → label values in their order → value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = tuple(sample.labels[name] for name in READINGS[sample.name].labels)
            assert labels not in found.setdefault(sample.name, {}), "one value for each series"
            found[sample.name][labels] = sample.value
    return found


async def register(shard: Shard, *cards: WorkerCard) -> None:
    """Announces living workers."""
    for card in cards:
        await Registry(shard.client, shard.keys.prefix).register("pool", card, ["llama"])
        await shard.scripts.beat(card.wid)


async def work(shard: Shard, requests: int = 120) -> None:
    """A pool with two tenants, a backlog that has begun to drain, a worker that is ready, one that drains, one lost."""
    cards = [WorkerCard("w1", "sim", "1", 8, []), WorkerCard("w2", "sim", "1", 8, [], state="draining")]
    await register(shard, *cards, WorkerCard("w3", "sim", "1", 8, []))
    await shard.client.delete(shard.keys.lease("w3"))
    for i in range(requests):
        await shard.admit(f"r{i}", tenant=f"t{i % 2}", tenant_cap=10_000, bounds=Bounds(share=1), cost=10)
    for i in range(requests // 2):
        await shard.scripts.claim("w1", await shard.delivered(), f"a{i}")


async def test_every_metric_is_there_with_its_values(shard: Shard, clock: HandClock) -> None:
    await work(shard)
    await shard.client.hset(shard.keys.sched, "work", "60000 20 0 10")  # type: ignore[misc]
    await shard.client.hset(shard.keys.sched, "rate:standard", "40 20 0")  # type: ignore[misc]
    found = values(await queues_of(shard.client, shard.keys.prefix, clock).exposition())
    assert found.keys() == READINGS.keys()
    names = [*(queue.name for queue in QUEUES), QUARANTINE]
    assert found["penstock_queue_depth"] == {(name, "pool"): 60 if name == "standard" else 0 for name in names}
    assert found["penstock_queue_work_tokens"]["standard", "pool"] == 600
    assert found["penstock_queue_tenants"]["standard", "pool"] == 2
    assert found["penstock_lane_paused"] == {(lane, "pool"): 0 for lane in FAIR}
    assert found["penstock_lane_fairness_ratio"] == {("standard", "pool"): pytest.approx(1, abs=0.02)}
    assert found["penstock_queue_drain_per_second"] == {("standard", "pool"): 2}
    assert found["penstock_pool_running"] == {("pool",): 60}
    assert found["penstock_pool_running_work_tokens"] == {("pool",): 600}
    assert found["penstock_pool_worker_tokens_per_second"] == {("pool",): 3_000}
    assert found["penstock_pool_workers"] == {("pool", "ready"): 1, ("pool", "draining"): 1, ("pool", "lost"): 1}
    assert found["penstock_wanted_workers"] == {("pool",): 1}


async def test_what_had_started_is_counted_by_lane_and_wants_a_worker_also_while_its_lane_is_paused(
    shard: Shard, clock: HandClock
) -> None:
    await register(shard, WorkerCard("w9", "sim", "1", 8, []))
    await shard.client.hset(shard.keys.sched, "work", "60000 20 0 10")  # type: ignore[misc]
    for number in range(3):
        await shard.claimed(f"r{number}", wid="w9", attempt=f"a{number}", lane="batch")
    await shard.admit("waits", lane="batch")
    await shard.scripts.setlane("batch", {"paused": "1"})
    for number in range(3):
        await shard.scripts.requeue("w9", f"r{number}", f"a{number}", how="hand_back")
    found = values(await queues_of(shard.client, shard.keys.prefix, clock, least=0).exposition())
    assert found["penstock_queue_retrying"] == {(lane, "pool"): 3 if lane == "batch" else 0 for lane in FAIR}
    assert found["penstock_queue_depth"]["batch", "pool"] == 4
    assert found["penstock_wanted_workers"] == {("pool",): 1}


async def test_what_is_not_known_is_absent(shard: Shard, clock: HandClock) -> None:
    await register(shard, WorkerCard("w1", "sim", "1", 8, []))
    found = values(await queues_of(shard.client, shard.keys.prefix, clock).exposition())
    assert found.keys() == ALWAYS


async def test_a_server_that_refuses_the_survey_leaves_the_replica_its_own_metrics(
    shard: Shard, clock: HandClock
) -> None:
    await register(shard, WorkerCard("w1", "sim", "1", 8, []))
    await shard.client.set(shard.keys.sched, "no hash")
    assert await queues_of(shard.client, shard.keys.prefix, clock).exposition() == b""


async def test_paused_lanes_and_quarantine_ask_for_no_workers(shard: Shard, clock: HandClock) -> None:
    await register(shard, WorkerCard("w1", "sim", "1", 8, []))
    await shard.client.hset(shard.keys.sched, "work", "1000 20 0 10")  # type: ignore[misc]
    queues = queues_of(shard.client, shard.keys.prefix, clock, least=0)
    for i in range(10):
        await shard.admit(f"r{i}", lane="batch", cost=3_000, tenant_cap=100)
    await shard.client.hset(shard.keys.sched, "arrivals", "0 0")  # type: ignore[misc]
    assert values(await queues.exposition())["penstock_wanted_workers"] == {("pool",): 10}
    await shard.client.hset(shard.keys.lanes, "batch.paused", "1")  # type: ignore[misc]
    clock.now_s += FRESH_S
    assert values(await queues.exposition())["penstock_wanted_workers"] == {("pool",): 0}


async def test_every_replica_says_the_same(shard: Shard, clock: HandClock) -> None:
    await work(shard)
    texts = [await queues_of(shard.client, shard.keys.prefix, clock).exposition() for _ in range(3)]
    ages = re.compile(rb"(penstock_queue_oldest_age_seconds\{.*\}|penstock_pool_arriving_.*\{.*\}) [\d.e-]+")
    assert len({ages.sub(rb"\1", text) for text in texts}) == 1
    assert b"penstock_queue_depth" in texts[0]


async def test_scrapes_ask_redis_once_a_second_however_many_there_are(
    server: servers.Server, shard: Shard, clock: HandClock
) -> None:
    await register(shard, WorkerCard("w1", "sim", "1", 8, []))
    queues = queues_of(shard.client, shard.keys.prefix, clock)
    first = await queues.exposition()
    await shard.admit("r1")
    clock.now_s += FRESH_S - 0.01
    async with watching(server.url) as touched:
        assert set(await asyncio.gather(*(queues.exposition() for _ in range(20)))) == {first}
    assert (touched.shas, touched.commands) == (set(), 0)
    clock.now_s += 0.01
    async with watching(server.url) as touched:
        texts = await asyncio.gather(*(queues.exposition() for _ in range(20)))
    assert set(texts) != {first}
    assert len(touched.shas) == 1
    assert touched.commands < 30, "one survey"


async def test_without_redis_the_metrics_are_absent_and_a_scrape_does_not_hang(clock: HandClock, prefix: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and answers nothing
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        client = connect(url)
        async with asyncio.timeout(30):
            assert await queues_of(client, prefix, clock).exposition() == b""
        await client.aclose()
    assert REGISTRY.get_sample_value("penstock_broker_up") == 0
    client = connect(url)  # nobody listens there now
    assert await queues_of(client, prefix, clock).exposition() == b""
    await client.aclose()


async def test_a_server_that_comes_back_is_read_again(shard: Shard, clock: HandClock) -> None:
    await register(shard, WorkerCard("w1", "sim", "1", 8, []))
    gone = connect("redis://127.0.0.1:1/0")
    queues = Queues(Registry(gone, shard.keys.prefix), RedisCaller(gone), shard.keys.prefix, Targets(), clock)
    assert await queues.exposition() == b""
    queues._registry, queues._caller = Registry(shard.client, shard.keys.prefix), RedisCaller(shard.client)
    assert await queues.exposition() == b"", "asked again a second later"
    clock.now_s += FRESH_S
    assert b"penstock_wanted_workers" in await queues.exposition()
    assert REGISTRY.get_sample_value("penstock_broker_up") == 1
    await gone.aclose()


async def test_promtool_accepts_the_exposition(shard: Shard, clock: HandClock) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("this machine has no promtool")
    await work(shard)
    text = generate_latest() + await queues_of(shard.client, shard.keys.prefix, clock).exposition()
    assert b"penstock_wanted_workers" in text
    checking = await asyncio.create_subprocess_exec(
        promtool,
        "check",
        "metrics",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await checking.communicate(text)
    ours = [line for line in said.decode().splitlines() if line.startswith("penstock_")]
    assert ours == []
    assert checking.returncode in {0, 3}, said.decode()


def test_the_help_of_every_reading_says_how_to_query_it() -> None:
    for reading in READINGS.values():
        assert "never the sum" in reading.documentation
