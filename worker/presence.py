"""Presence: the card by which replicas know this worker. Repeated, since a server may be flushed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from typing import Any

import msgspec

from shared.clock import Clock
from shared.errors import BrokerUnavailableError
from shared.process import age_s
from shared.registry import Registry
from shared.wire import WorkerCard
from worker.engines.base import Engine
from worker.identity import Identity

log = logging.getLogger(__name__)

REPEAT_S = 2.0


class Presence:
    """A service: see `services.py`."""

    name = "presence"

    def __init__(
        self,
        registry: Registry,
        pool: str,
        engine: Engine,
        models: list[dict[str, Any]],
        identity: Identity,
        slots: int,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._identity = identity
        self._names = [str(model["id"]) for model in models]
        self._card = WorkerCard(
            wid=identity.wid,
            engine=engine.name,
            engine_version=engine.version,
            slots=slots,
            models=[json.dumps(model).encode() for model in models],
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at_ms=clock.wall_ms(),
        )
        identity.on_renewal(lambda _: self._renamed.set())
        self._renamed = asyncio.Event()
        self._withdrawn = False
        self._cold_start_ms = int(age_s() * 1000)  # the engine has just become ready

    async def run(self, started: asyncio.Event) -> None:
        """Announces the worker until cancelled. Its card goes when it is buried (`reaper.py`), and not before."""
        while True:
            try:
                if not self._withdrawn:
                    await self._announce()
                started.set()
            except BrokerUnavailableError as error:
                log.warning("presence: %s", error)
            self._renamed.clear()
            try:
                async with asyncio.timeout(REPEAT_S):  # wait_for of 3.11 may swallow a cancel, and run on for ever
                    await self._renamed.wait()
            except TimeoutError:
                continue

    def withdraw(self) -> None:
        """The worker is about to be buried: its card must not come back."""
        self._withdrawn = True

    async def drain(self) -> None:
        """Tells the replicas that this worker takes nothing more."""
        self._card = msgspec.structs.replace(self._card, state="draining")
        try:
            await self._announce()
        except BrokerUnavailableError as error:
            log.warning("presence: %s", error)

    async def _announce(self) -> None:
        self._card = msgspec.structs.replace(self._card, wid=self._identity.wid)
        await self._registry.register(self._pool, self._card, self._names, cold_start_ms=self._cold_start_ms)
