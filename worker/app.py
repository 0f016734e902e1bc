"""Builds a worker's engine and services, runs them and drains them. No logic."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from shared.clock import SystemClock
from shared.connection import connect
from shared.errors import BrokerUnavailableError
from shared.hot import HotClient
from shared.keys import Keys
from shared.metrics import BUILD, ENGINE_UP, MODEL_LOAD, SLOTS
from shared.ops import OpsServer
from shared.process import version
from shared.reaper import Reaper
from shared.registry import Registry
from shared.scripts import Scripts
from shared.services import ServiceGroup
from worker.attempt import Stop
from worker.attempts import Attempts
from worker.engines.base import Engine
from worker.identity import Identity
from worker.intake import BLOCK_MS, Intake
from worker.lease import Beat
from worker.nudge import Nudge
from worker.orphans import Orphans
from worker.presence import Presence
from worker.publisher import Publisher
from worker.reconcile import LOOK_S, Reconcile
from worker.settings import WorkerSettings
from worker.stall import Stall
from worker.vocabulary import vocabulary_of

if TYPE_CHECKING:
    from shared.spans import Tracing

log = logging.getLogger(__name__)

_FAILURE_LOOK_S = 0.25
_LAST_READ_S = BLOCK_MS / 1000 + 2
_HAND_BACK_S = 10.0
_FAREWELL_S = 5.0
_FAREWELL_PAUSE_S = 0.25


class Worker:
    """One worker process."""

    def __init__(
        self, settings: WorkerSettings, engine: Engine, listener: socket.socket, tracing: Tracing | None = None
    ) -> None:
        self._settings = settings
        self._tracing = tracing
        self._engine = engine
        self._listener = listener
        self._status = "loading"
        self._identity = Identity()
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Works until SIGTERM or SIGINT, or until the engine fails. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        services = ServiceGroup()
        BUILD.labels(role="worker", version=version()).set(1)
        try:
            await services.start(OpsServer(lambda: self._status, self._listener))
            began_s = time.monotonic()
            await self._engine.start()
            MODEL_LOAD.set(time.monotonic() - began_s)
            ENGINE_UP.set(1)
            return await self._serve(services, await self._engine.models())
        finally:
            self._status = "stopping"
            ENGINE_UP.set(0)
            await services.stop()
            await self._engine.stop()

    async def _serve(self, services: ServiceGroup, models: list[dict[str, Any]]) -> int:
        settings, engine, identity = self._settings, self._engine, self._identity
        pool = settings.pool or pool_name(str(models[0]["id"]))
        keys = Keys(pool, prefix=settings.prefix)
        slots = min(filter(None, (settings.max_active, engine.capacity().slots)))
        SLOTS.set(slots)
        vocabulary = await vocabulary_of(engine)
        control = connect(settings.redis_url)
        client = HotClient(settings.redis_url, f"penstock-worker-{os.getpid()}")
        reader = HotClient(settings.redis_url, f"penstock-worker-read-{os.getpid()}")
        scripts = Scripts(client, keys, result_ttl_ms=settings.result_ttl_s * 1000)
        box = Box(scripts, identity)
        publisher = Publisher(scripts, identity, box.deliver, keep_bytes=settings.history_bytes)
        attempts = Attempts(engine, publisher, scripts, identity, self._tracing)
        intake = Intake(client, reader, keys, scripts, engine, attempts, identity, slots)
        attempts.on_room(intake.room)
        box.open(attempts.on_box)
        registry = Registry(control, settings.prefix)
        presence = Presence(registry, pool, engine, models, identity, slots, SystemClock(), vocabulary)
        beat = Beat(settings.redis_url, keys, identity, Stall(settings.stall_s, attempts.progress), box.deliver)
        reconcile = Reconcile(client, keys, scripts, attempts, identity, look_s=LOOK_S)
        client.on_connect(reconcile.soon)
        nudge = Nudge(settings.redis_url, f"penstock-worker-sub-{os.getpid()}", keys, identity, box.deliver)
        orphans = Orphans(client, keys, attempts, orphan_s=settings.orphan_s)
        reaper = Reaper(control, settings.prefix)
        try:
            for service in (client, reader, beat, nudge, publisher, presence, intake, reconcile, orphans, reaper):
                await services.start(service)
            self._status = "ready"
            log.info("worker %s serves %s in pool %s with %d slots", identity.wid, models[0]["id"], pool, slots)
            failed = await self._fails_before(services, self._stop.wait())
            self._status = "draining"
            if not failed:
                failed = await self._drain(services, presence, intake, attempts)
            # from here on nothing is taken: not what this worker gives back itself, and not under another id
            identity.retire()
            await services.end(intake)
            await services.end(reader)
            attempts.stop_all(Stop.FENCED)
            presence.withdraw()
            await farewell(scripts, reaper, keys, identity.wid, failed=failed)
            return int(failed)
        finally:
            await services.stop()
            await control.aclose()

    async def _fails_before(
        self, services: ServiceGroup, awaited: Coroutine[Any, Any, object], *, within_s: float = math.inf
    ) -> bool:
        """Waits, at most so long. True when a service or the engine failed first."""
        end_s = time.monotonic() + within_s
        failed = asyncio.create_task(services.failure())
        done = asyncio.create_task(awaited)
        try:
            while not failed.done() and not done.done() and (left_s := end_s - time.monotonic()) > 0:
                if (why := self._engine.failure()) is not None:
                    log.critical("the engine has failed: %s", why)
                    return True
                look_s = min(_FAILURE_LOOK_S, left_s)
                await asyncio.wait({failed, done}, timeout=look_s, return_when=asyncio.FIRST_COMPLETED)
            return failed.done()
        finally:
            failed.cancel()
            done.cancel()

    async def _drain(self, services: ServiceGroup, presence: Presence, intake: Intake, attempts: Attempts) -> bool:
        """Takes nothing more, lets run what fits into the time, hands the rest back. A second signal ends the wait.

        True when a service or the engine failed meanwhile: then nothing is waited for any more.
        """
        self._stop.clear()
        intake.close()

        async def runs_out() -> None:
            await asyncio.gather(presence.drain(), intake.drain())
            log.info("draining: %d requests are running", len(attempts))
            await attempts.empty()

        async def runs_out_or_is_told_again() -> None:
            ways = {asyncio.create_task(runs_out()), asyncio.create_task(self._stop.wait())}
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()

        if await self._fails_before(services, runs_out_or_is_told_again(), within_s=self._settings.drain_s):
            return True
        # the read that is under way would bring what is handed back, and it would run here again
        if await self._fails_before(services, intake.drain(), within_s=_LAST_READ_S):
            return True
        attempts.stop_all(Stop.HAND_BACK)
        return await self._fails_before(services, attempts.empty(), within_s=_HAND_BACK_S)


class Box:
    """Hands control messages on and tells Redis that they have arrived."""

    def __init__(self, scripts: Scripts, identity: Identity) -> None:
        self._scripts = scripts
        self._identity = identity
        self._deliver: Callable[[list[bytes]], None] = lambda _: None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, deliver: Callable[[list[bytes]], None]) -> None:
        """From now on messages go to `deliver`."""
        self._deliver = deliver

    def deliver(self, messages: list[bytes]) -> None:
        """Messages from a flush or a beat. The same message may come twice."""
        self._deliver(messages)
        task = asyncio.create_task(self._acknowledge(messages))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _acknowledge(self, messages: list[bytes]) -> None:
        try:
            await self._scripts.ackbox(self._identity.wid, messages)
        except BrokerUnavailableError as error:
            log.debug("box: %s", error)  # they come again


async def farewell(scripts: Scripts, reaper: Reaper, keys: Keys, wid: str, *, failed: bool) -> None:
    """This process ends: nobody needs to wait for its lease.

    What it still owns counts as killed only if it has failed: leaving in order is no crash, whatever has kept it from
    handing something back. For that it waits a little for a Redis that is away: or its lease lapses like a dead one's.
    """
    give_up_at_s = time.monotonic() + (0 if failed else _FAREWELL_S)
    while True:
        try:
            await scripts.condemn(wid, process_ended=True)  # first: nothing can come back under this id
            if not failed:
                await reaper.hand_back(keys, scripts, wid)
            await reaper.bury(keys, scripts, wid)
        except BrokerUnavailableError as error:
            if time.monotonic() >= give_up_at_s:
                log.warning("farewell: %s", error)
                return
            await asyncio.sleep(_FAREWELL_PAUSE_S)
        else:
            return


def pool_name(model: str) -> str:
    """A pool's name, made from a served model name: what may stand in a Redis hash tag."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", model.strip("/")).strip("-") or "default"
