"""`penstock up`: Redis, replicas and workers on this machine, started, watched and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from cli import plan
from cli.board import Board, State, open_board
from cli.cards import Cards
from cli.checks import check_before_start, check_redis
from cli.embedded import EmbeddedServer, answers
from cli.embedded import plan as plan_server
from cli.folder import DataFolder
from cli.gpus import visible
from cli.invitation import invitation
from cli.keeper import GaveUpError, Keeper
from cli.probes import Readiness, ask_replica, free_ports
from cli.settings import UpSettings
from shared.connection import connect
from shared.errors import BrokerUnavailableError, ConfigurationError
from shared.settings import read_settings

_STARTING_LOOK_S = 0.25
_IDLE_LOOK_S = 5.0
_TICK_S = 1.0
_WORKER_MARGIN_S = 20.0
"""What a worker gets beyond its own `drain_s`: it hands back what is left, and frees its engine."""
_REPLICA_GRACE_S = 40.0
_BATCH_GRACE_S = 15.0
_SERVER_GRACE_S = 15.0


def main(argv: list[str]) -> int:
    """Runs until Ctrl-C or SIGTERM. Returns the exit status: 2 something must be changed first, 1 it failed."""
    ours, engine_flags = plan.split_flags(argv)
    try:
        settings = read_settings(UpSettings, ours, "penstock up")
        gpus = visible() if settings.engine == "vllm" else []
        folder = DataFolder(settings.data)
        with folder.taken():
            check_before_start(settings, gpus)
            server = None if settings.redis_url else plan_server(folder)
            about = str(server.binary) if server else check_redis(settings.redis_url)
            return asyncio.run(Up(settings, engine_flags, gpus, folder, server, about).run())
    except ConfigurationError as error:
        sys.stderr.write(f"penstock up: {error}\n")
        return 2


class Up:
    """One run."""

    def __init__(
        self,
        settings: UpSettings,
        engine_flags: list[str],
        gpus: list[str],
        folder: DataFolder,
        server: EmbeddedServer | None,
        about: str,
    ) -> None:
        """`about` describes the Redis that is used; `server` is None when it is somebody else's."""
        self._settings = settings
        self._folder = folder
        self._about = about
        url = server.url if server else settings.redis_url
        self._url = url
        self._board: Board = open_board(f"Penstock: {_what(settings, gpus)}")
        self._control = connect(url)
        self._cards = Cards(self._control, settings.prefix, result_ttl_ms=settings.result_ttl_s * 1000)
        self._server = Keeper("redis", server.program, self._board) if server else None
        self._replicas = [
            Keeper(f"api-{index}", plan.replica(settings, index, url, folder), self._board)
            for index in range(settings.api)
        ]
        self._batch_ports = free_ports(settings.batch)
        self._batches = [
            Keeper(f"batch-{index}", plan.batch(settings, index, url, folder, port), self._board)
            for index, port in enumerate(self._batch_ports)
        ]
        self._workers = [
            Keeper(
                f"worker-{index}",
                plan.worker(settings, index, url, folder, gpus, engine_flags),
                self._board,
                lambda pid, since_ms: self._cards.bury(pid, since_ms=since_ms),
            )
            for index in range(settings.workers)
        ]
        self._over = asyncio.Event()
        """Set once it is to end: by a signal, or by a process that cannot be kept running."""
        self._failure: GaveUpError | None = None
        self._running: set[asyncio.Task[None]] = set()

    @property
    def _keepers(self) -> list[Keeper]:
        return [*([self._server] if self._server else []), *self._replicas, *self._workers, *self._batches]

    async def run(self) -> int:
        """Until stopped. Returns the exit status."""
        self._catch_signals()
        watch = asyncio.create_task(self._watch())
        over = asyncio.create_task(self._over.wait())
        try:
            async with self._server_up(over):
                if not over.done():
                    for keeper in (*self._replicas, *self._workers, *self._batches):
                        self._keep(keeper)
                await asyncio.wait({over, watch}, return_when=asyncio.FIRST_COMPLETED)
                if watch.done():
                    watch.result()
                await self._stop()
        finally:
            over.cancel()
            watch.cancel()
            await self._control.aclose()
            self._board.close()
        if self._failure is not None:
            sys.stderr.write(f"penstock up: {self._failure}\n")
            return 1
        return 0

    @contextlib.asynccontextmanager
    async def _server_up(self, over: asyncio.Task[Literal[True]]) -> AsyncIterator[None]:
        """The embedded server, from before the first process that needs it until after the last."""
        try:
            if self._server is None:
                self._board.put("redis", State.READY, self._about)
            else:
                self._keep(self._server)
                answering = asyncio.create_task(self._server.ready.wait())
                await asyncio.wait({answering, over}, return_when=asyncio.FIRST_COMPLETED)
                answering.cancel()
            yield
        finally:
            for keeper in (*self._replicas, *self._workers, *self._batches):
                keeper.kill()  # they have ended by now, unless something unforeseen brought us here
            if self._server is not None:
                await self._server.stop(_SERVER_GRACE_S)
            if self._running:
                await asyncio.wait(self._running)

    def _keep(self, keeper: Keeper) -> None:
        async def run() -> None:
            try:
                await keeper.run()
            except GaveUpError as error:
                self._failure = self._failure or error
                self._over.set()

        self._running.add(asyncio.create_task(run(), name=keeper.name))

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self._over.is_set():
            for keeper in self._keepers:
                keeper.kill()
        self._over.set()

    async def _stop(self) -> None:
        """Batch processes first: nothing more comes of them. Then workers, while replicas relay what those finish.

        Then the replicas; the server comes last.
        """
        self._board.say(["", " Stopping: running requests are finished first. Ctrl-C again stops at once.", ""])
        await asyncio.gather(*(batch.stop(_BATCH_GRACE_S) for batch in self._batches))
        grace_s = self._settings.drain_s + _WORKER_MARGIN_S
        await asyncio.gather(*(worker.stop(grace_s) for worker in self._workers))
        await asyncio.gather(*(replica.stop(_REPLICA_GRACE_S) for replica in self._replicas))
        self._board.say([])

    async def _watch(self) -> None:
        """Looks how everybody is: often while something is not ready, seldom when all is well."""
        loop = asyncio.get_running_loop()
        ticked_s = loop.time()
        while True:
            if not self._over.is_set():
                await self._look()
            settled = all(keeper.ready.is_set() for keeper in self._keepers)
            if loop.time() - ticked_s >= _TICK_S:
                self._board.tick()
                ticked_s = loop.time()
            await self._pause(settled=settled and not self._over.is_set())

    async def _pause(self, *, settled: bool) -> None:
        if not settled:
            await asyncio.sleep(_STARTING_LOOK_S)
            return
        for _ in range(int(_IDLE_LOOK_S / _TICK_S)):
            await asyncio.sleep(_TICK_S)
            if not all(keeper.ready.is_set() for keeper in self._keepers):
                return

    async def _look(self) -> None:
        if self._server is not None and self._server.pid:
            up = await asyncio.to_thread(answers, self._url)
            self._server.look(ready=up, detail=self._about if up else "reading its data")
        asked = [
            asyncio.to_thread(ask_replica, self._settings.host, port)
            for keeper, port in zip(self._replicas, self._settings.ports, strict=True)
            if keeper.pid
        ]
        running = [keeper for keeper in self._replicas if keeper.pid]
        reports: list[Readiness] = await asyncio.gather(*asked)
        for keeper, answer in zip(running, reports, strict=True):
            keeper.look(ready=answer.ready, detail=answer.detail)
        await self._look_at_workers()
        await self._look_at_batches()
        everywhere = len(reports) == len(self._replicas) and all(answer.ready for answer in reports)
        if everywhere and reports[0].models and not self._over.is_set():
            self._board.say(invitation(self._settings, reports[0].models[0], self._folder.logs))

    async def _look_at_batches(self) -> None:
        for keeper, port in zip(self._batches, self._batch_ports, strict=True):
            if keeper.pid:
                answer = await asyncio.to_thread(ask_replica, "127.0.0.1", port)
                keeper.look(ready=answer.ready, detail="runs batches" if answer.ready else answer.detail)

    async def _look_at_workers(self) -> None:
        processes = {keeper.pid: keeper.started_at_ms for keeper in self._workers if keeper.pid}
        try:
            ready = await self._cards.ready(processes) if processes else set()
        except BrokerUnavailableError:
            return
        loading = "starting" if self._settings.engine == "sim" else "loading the model"
        for keeper in self._workers:
            up = keeper.pid in ready
            keeper.look(ready=up, detail="takes work" if up else loading)


def _what(settings: UpSettings, gpus: list[str]) -> str:
    if settings.engine == "sim":
        return "the simulated engine, no model"
    place = f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}" if gpus else "CPU"
    return f"{Path(settings.model_argument).name or settings.model_argument} on vLLM ({place})"
