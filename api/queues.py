"""The metrics that are read from Redis: queues, workers, and how many workers are wanted.

One script for each pool, at most once a second however often the replica is scraped. Every replica reads the same
server state, so every replica says the same. While Redis is away these metrics are absent: a stale zero would scale a
pool down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Protocol

import msgspec
import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.scaling import Load, Targets, wanted_workers
from shared import metrics
from shared.clock import Clock
from shared.errors import BrokerUnavailableError
from shared.keys import Keys
from shared.lanes import FAIR, QUARANTINE, Lane
from shared.metrics import Value
from shared.outcomes import Caller
from shared.registry import Registry
from shared.scripts import Scripts
from shared.survey import QueueSeen, Survey
from shared.wire import WorkerCard, decode_card

log = logging.getLogger(__name__)

FRESH_S = 1.0
_TIMEOUT_S = 2.0
"""Below the ten seconds that Prometheus waits for a scrape: a replica's own metrics must get out without Redis, too."""

_Values = Iterator[Value]


class Source(Protocol):
    """More that is read from Redis when a replica is scraped."""

    async def read(self, pools: list[str]) -> list[Value]:
        """The values. Raises redis.RedisError."""


class Queues:
    """The state of all pools, as text for Prometheus."""

    def __init__(
        self,
        registry: Registry,
        caller: Caller,
        prefix: str,
        targets: Targets,
        clock: Clock,
        sources: Iterable[Source] = (),
    ) -> None:
        self._sources = tuple(sources)
        self._registry = registry
        self._caller = caller
        self._prefix = prefix
        self._targets = targets
        self._clock = clock
        self._text = b""
        self._read_at_s = float("-inf")
        self._reading = asyncio.Lock()

    async def exposition(self) -> bytes:
        """What Redis said at most a second ago; empty when it said nothing."""
        asked_at_s = self._clock.monotonic_s()
        if asked_at_s - self._read_at_s >= FRESH_S:
            async with self._reading:
                if self._read_at_s < asked_at_s:  # nobody has read it while we waited for the lock
                    self._text = await self._read()
                    self._read_at_s = self._clock.monotonic_s()
        return self._text

    async def _read(self) -> bytes:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                pools = sorted(await self._registry.known())
                values = [value for pool in pools for value in await self._look(pool)]
                for source in self._sources:
                    values += await source.read(pools)
        except (BrokerUnavailableError, TimeoutError, redis.RedisError) as error:
            log.debug("the queues could not be read: %s", error)
            metrics.BROKER_UP.set(0)
            return b""
        metrics.BROKER_UP.set(1)
        registry = CollectorRegistry()
        registry.register(_Fixed(values))
        return generate_latest(registry)

    async def _look(self, pool: str) -> list[Value]:
        keys = Keys(pool, prefix=self._prefix)
        cards = await self._registry.workers(keys)
        survey = await Scripts(self._caller, keys).survey(list(cards))
        workers = {
            wid: card for wid, raw in cards.items() if wid in survey.running and (card := _card(raw)) is not None
        }
        load = pool_load(survey, workers)
        return [
            *_of_queues(pool, survey),
            *_of_pool(pool, survey, workers),
            (metrics.WANTED_WORKERS, (pool,), wanted_workers(load, self._targets)),
        ]


def pool_load(survey: Survey, workers: dict[str, WorkerCard]) -> Load:
    """What the pool is scaled by. `workers`: the cards of those that live."""
    startable = [seen for seen in survey.queues if not seen.paused and seen.name != QUARANTINE]
    goes_on = sum(seen.retrying for seen in survey.queues if seen.paused)  # a pause holds up only what has not started
    ready = [card for card in workers.values() if card.state == "ready"]
    return Load(
        waiting=sum(seen.depth for seen in startable) + goes_on,
        waiting_tokens=sum(seen.tokens for seen in startable) + goes_on * survey.mean_cost,
        running=sum(survey.running.values()) + survey.lost_running,
        mean_cost=survey.mean_cost,
        arriving=survey.arriving,
        per_worker=survey.per_worker,
        live=len(ready),
        slots=fmean(card.slots for card in workers.values()) if workers else 0,
        oldest_interactive_s=max((seen.oldest_age_s for seen in startable if seen.name == Lane.INTERACTIVE), default=0),
    )


def _of_queues(pool: str, survey: Survey) -> _Values:
    for seen in survey.queues:
        where = (seen.name, pool)
        yield metrics.QUEUE_DEPTH, where, seen.depth
        yield metrics.QUEUE_AGE, where, seen.oldest_age_s
        yield metrics.QUEUE_TOKENS, where, seen.tokens
        yield metrics.QUEUE_BYTES, where, seen.body_bytes
        yield metrics.QUEUE_TENANTS, where, seen.tenants
        if seen.per_s is not None:
            yield metrics.QUEUE_DRAIN, where, seen.per_s
        if seen.name in FAIR:
            yield from _of_lane(where, seen)


def _of_lane(where: tuple[str, ...], seen: QueueSeen) -> _Values:
    yield metrics.QUEUE_RETRYING, where, seen.retrying
    yield metrics.LANE_AGED, where, seen.aged
    yield metrics.LANE_PAUSED, where, seen.paused
    yield metrics.LANE_DRAINING, where, seen.draining
    if seen.fairness is not None:
        yield metrics.LANE_FAIRNESS, where, seen.fairness


def _of_pool(pool: str, survey: Survey, workers: dict[str, WorkerCard]) -> _Values:
    running = sum(survey.running.values()) + survey.lost_running
    yield metrics.POOL_RUNNING, (pool,), running
    yield metrics.POOL_RUNNING_TOKENS, (pool,), running * survey.mean_cost
    yield metrics.POOL_ARRIVING, (pool,), survey.arriving
    if survey.per_worker is not None:
        yield metrics.POOL_PACE, (pool,), survey.per_worker
    ready = sum(card.state == "ready" for card in workers.values())
    yield metrics.POOL_WORKERS, (pool, "ready"), ready
    yield metrics.POOL_WORKERS, (pool, "draining"), len(workers) - ready
    yield metrics.POOL_WORKERS, (pool, "lost"), len(survey.lost)
    yield metrics.POOL_DEAD_LETTERS, (pool,), survey.dead_letters


def _card(raw: bytes) -> WorkerCard | None:
    try:
        return decode_card(raw)
    except msgspec.MsgspecError:  # of a release that we cannot read, or lost: its worker brings it again
        return None


class _Fixed(Collector):
    """Values that are known already, as prometheus_client wants them."""

    def __init__(self, values: Iterable[Value]) -> None:
        self._values = values

    def collect(self) -> Iterable[Metric]:
        """One family for each metric that has a value."""
        families: dict[str, Metric] = {}
        for reading, labels, value in self._values:
            family = families.get(reading.name)
            if family is None:
                made = CounterMetricFamily if reading.kind == "counter" else GaugeMetricFamily
                family = families[reading.name] = made(reading.name, reading.documentation, labels=reading.labels)
            family.add_metric(labels, float(value))  # type: ignore[attr-defined]
        return families.values()
