"""The jobs of the batch processes, and arq's worker that runs them. All are short, idempotent, and may run twice.

arq's main loop ends when Redis does not answer. It is started again, with a pause that grows; nothing that lives longer
than a job depends on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
from arq.connections import ArqRedis
from arq.cron import cron
from arq.worker import Function, Retry, Worker, func

from shared.connection import connect
from shared.keys import GlobalKeys

log = logging.getLogger(__name__)

JOB_TIMEOUT_S = 300
_POLL_S = 0.25
_MOST_JOBS = 10
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.2, 5.0
_FULL_AGAIN_S = 2


def connect_arq(url: str, prefix: str) -> ArqRedis:
    """Arq's client on our own connections, with our queue and a serializer that runs no code."""
    pool = connect(url).connection_pool
    return ArqRedis(
        pool,
        job_serializer=msgpack.packb,
        job_deserializer=msgpack.unpackb,
        default_queue_name=GlobalKeys(prefix).batch_jobs,
    )


class Jobs:
    """Runs arq's worker. A service: see `services.py`."""

    name = "arq"

    def __init__(
        self,
        arq: ArqRedis,
        prefix: str,
        drive: Callable[[str], Awaitable[str]],
        audit: Callable[[], Awaitable[object]],
        sweep: Callable[[], Awaitable[object]],
    ) -> None:
        """What the jobs do: drive a batch (FULL: elsewhere), restore lost batches, delete what has expired."""
        self._arq = arq
        self._queue = GlobalKeys(prefix).batch_jobs
        self._functions = _functions(drive)
        self._crons = [
            cron(_without_context(audit), name=f"{prefix}:audit", second=30, unique=True, keep_result=0),
            cron(_without_context(sweep), name=f"{prefix}:sweep", minute=17, second=0, unique=True, keep_result=0),
        ]

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled."""
        started.set()
        pause_s = _FIRST_PAUSE_S
        while True:
            began_s = asyncio.get_running_loop().time()
            worker = self._worker()
            try:
                await worker.async_run()
            except Exception as error:  # noqa: BLE001 - whatever it is, it must run again
                log.warning("arq's worker ended, and is started again: %r", error)
            finally:
                await _ended(worker)
            if asyncio.get_running_loop().time() - began_s > _MOST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(_MOST_PAUSE_S, 2 * pause_s)

    def _worker(self) -> Worker:
        return Worker(
            functions=self._functions,
            cron_jobs=self._crons,
            queue_name=self._queue,
            redis_pool=self._arq,
            handle_signals=False,
            max_jobs=_MOST_JOBS,
            job_timeout=JOB_TIMEOUT_S,
            keep_result=0,
            poll_delay=_POLL_S,
            max_tries=5,
            health_check_interval=30,
            job_serializer=msgpack.packb,
            job_deserializer=msgpack.unpackb,
            log_results=False,
        )


async def _ended(worker: Worker) -> None:
    """Ends the jobs that a worker has left running; they are short, and come again."""
    tasks = [task for task in worker.tasks.values() if not task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _functions(drive: Callable[[str], Awaitable[str]]) -> list[Function]:
    async def drive_job(ctx: dict[Any, Any], batch: str) -> str:
        del ctx
        outcome = await drive(batch)
        if outcome == "FULL":
            raise Retry(defer=_FULL_AGAIN_S)
        return outcome

    return [func(drive_job, name="drive")]


def _without_context(job: Callable[[], Awaitable[object]]) -> Any:
    async def run(ctx: dict[Any, Any]) -> None:
        del ctx
        await job()

    return run
