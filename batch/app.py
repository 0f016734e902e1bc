"""Builds a batch process: what a replica has to admit requests, without HTTP, and drivers. No logic."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

from api.catalog import Catalog
from api.entries import Entries
from api.images import Images
from api.memory import Memory
from api.placing import Places
from api.requests import Requests
from api.serverclock import ServerClock
from api.tokens import Tokens
from batch.bridge import Bridge
from batch.drivers import Drivers
from batch.ends import Ends
from batch.hooks import Hooks
from batch.jobs import Jobs, connect_arq
from batch.manifest import Manifests
from batch.posting import Poster
from batch.settings import BatchSettings
from batch.tools import Tools
from shared.batches import Batches
from shared.clock import SystemClock
from shared.connection import connect
from shared.errors import BrokerUnavailableError, StorageUnavailableError
from shared.files import Files
from shared.hot import HotClient
from shared.keys import GlobalKeys
from shared.metrics import BUILD
from shared.ops import OpsServer
from shared.process import version
from shared.reaper import Reaper
from shared.registry import Registry
from shared.services import ServiceGroup
from shared.storage import Storage

log = logging.getLogger(__name__)


class BatchProcess:
    """One batch process."""

    def __init__(self, settings: BatchSettings, storage: Storage, listener: socket.socket) -> None:
        self._settings = settings
        self._storage = storage
        self._listener = listener
        self._stop = asyncio.Event()
        self._client = HotClient(settings.redis_url, f"penstock-batch-{os.getpid()}")
        self._stopping = False

    async def run(self) -> int:
        """Works until SIGTERM or SIGINT, or until a service fails. Returns the exit status."""
        settings = self._settings
        BUILD.labels(role="batch", version=version()).set(1)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        control = connect(settings.redis_url)
        registry = Registry(control, settings.prefix)
        tokens, images = Tokens(registry.tokenizer), Images(settings.image_rules)
        files = Files(self._storage, control, GlobalKeys(settings.prefix))
        tools = self._tools(Catalog(registry, SystemClock()), tokens, images, files)
        arq = connect_arq(settings.redis_url, settings.prefix)
        keeping = Keeping(tools)
        drivers = Drivers(tools, most=settings.batch_drivers, on_loss=keeping.soon)
        jobs = Jobs(arq, settings.prefix, drivers.start, keeping.audit, keeping.sweep)
        services = ServiceGroup()
        try:
            await services.start(OpsServer(self._readiness, self._listener))
            reaper = Reaper(control, settings.prefix)
            bridge = Bridge(tools.batches, arq, settings.prefix)
            hooks = Hooks(settings, tools.batches, Manifests(self._storage, tools.batches), Poster(settings.hook_rules))
            for service in (self._client, tools.ends, drivers, keeping, jobs, bridge, hooks, reaper):
                await services.start(service)
            return await self._until_stopped(services)
        finally:
            self._stopping = True
            await services.stop()
            await tokens.close()
            await images.close()
            await arq.aclose()
            await arq.connection_pool.disconnect()
            await control.aclose()

    def _tools(self, catalog: Catalog, tokens: Tokens, images: Images, files: Files) -> Tools:
        settings, client = self._settings, self._client
        ttl_ms = settings.result_ttl_s * 1000
        clock = ServerClock(client, SystemClock())
        requests = Requests(client, catalog, result_ttl_ms=ttl_ms)
        return Tools(
            settings=settings,
            client=client,
            batches=Batches(client, settings.prefix),
            storage=self._storage,
            files=files,
            catalog=catalog,
            entries=Entries(settings, catalog, tokens, clock, lambda _terms, _whole_s: 0),
            places=Places(client, requests, images, clock, result_ttl_ms=ttl_ms),
            images=images,
            memory=Memory(client, SystemClock(), limit=settings.memory_limit),
            requests=requests,
            ends=Ends(client),
        )

    def _readiness(self) -> str:
        if self._stopping:
            return "stopping"
        return "ready" if self._client.connected else "broker_unavailable"

    async def _until_stopped(self, services: ServiceGroup) -> int:
        failed, stopped = asyncio.create_task(services.failure()), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({failed, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                log.critical("this batch process ends: %r", failed.result())
            return int(failed.done())
        finally:
            failed.cancel()
            stopped.cancel()


class Keeping:
    """Restores what Redis has lost: at the start, when a driver misses its batch, now and then. Deletes what is over.

    A service: see `services.py`.
    """

    name = "keeping"

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._manifests = Manifests(tools.storage, tools.batches)
        self._soon = asyncio.Event()
        self._soon.set()
        self._busy = asyncio.Lock()

    def soon(self) -> None:
        """Redis has lost something."""
        self._soon.set()

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled."""
        started.set()
        while True:
            await self._soon.wait()
            self._soon.clear()
            await self.audit()

    async def audit(self) -> None:
        """Gives Redis back what it has lost. Tries again soon when that is not possible now."""
        async with self._busy:
            try:
                await self._manifests.restore_lost()
            except (BrokerUnavailableError, StorageUnavailableError) as error:
                log.warning("audit: %s", error)
                await asyncio.sleep(1)
                self._soon.set()

    async def sweep(self) -> None:
        """Deletes files, parts and batches whose time is over."""
        settings = self._tools.settings
        try:
            swept = await self._tools.files.sweep()
            deleted = await self._manifests.sweep(
                await self._tools.batches.now_ms(),
                parts_ttl_s=settings.batch_parts_ttl_s,
                batch_ttl_s=settings.batch_ttl_s,
            )
        except (BrokerUnavailableError, StorageUnavailableError) as error:
            log.warning("sweep: %s", error)
        else:
            log.info("sweep: %s; %d objects of batches", swept, deleted)
