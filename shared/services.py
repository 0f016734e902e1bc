"""Background loops with one contract.

A service is an object with `name` and `async run(started)`: it sets `started` once it does its work, and works until it
is cancelled. Cancellation is the stop signal; cleaning up belongs into `finally`. A service that returns or raises on
its own has failed, and its group reports it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

log = logging.getLogger(__name__)

_CANCEL_AGAIN_S = 3.0


class Service(Protocol):
    """A background loop."""

    @property
    def name(self) -> str:
        """For logs."""

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled; sets `started` once it works."""


class ServiceGroup:
    """Services started in order and stopped in reverse. Stopping twice is safe."""

    def __init__(self) -> None:
        self._running: list[tuple[Service, asyncio.Task[None]]] = []
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._ended: set[Service] = set()

    async def start(self, service: Service, *, timeout_s: float = 30.0) -> None:
        """Starts a service and waits until it works. Raises what it raised, or TimeoutError."""
        started = asyncio.Event()
        task = asyncio.create_task(service.run(started), name=service.name)
        self._running.append((service, task))
        waiter = asyncio.create_task(started.wait())
        done, _ = await asyncio.wait({task, waiter}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if not done:
            msg = f"the service {service.name} did not start within {timeout_s:.0f} s"
            raise TimeoutError(msg)
        if task in done:
            await task
        task.add_done_callback(lambda ended: self._on_end(service, ended))

    def _on_end(self, service: Service, task: asyncio.Task[None]) -> None:
        if self._stopping or service in self._ended or task.cancelled() or self._failed.done():
            return
        error = task.exception() or RuntimeError(f"the service {service.name} returned")
        log.error("service %s failed: %r", service.name, error, exc_info=error)
        self._failed.set_result(error)

    async def failure(self) -> BaseException:
        """Returns the error of the first service that fails; waits until there is one."""
        return await asyncio.shield(self._failed)

    async def end(self, service: Service) -> None:
        """Stops one service before the others."""
        for entry in [running for running in self._running if running[0] is service]:
            self._running.remove(entry)
            self._ended.add(service)
            await _cancel(*entry)

    async def stop(self) -> None:
        """Stops all services, the last started first."""
        self._stopping = True
        while self._running:
            await _cancel(*self._running.pop())


async def _cancel(service: Service, task: asyncio.Task[None]) -> None:
    while not task.done():
        task.cancel()  # and again: wait_for of Python 3.11, which redis-py writes with, may swallow one
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN_S)
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
    log.debug("service %s stopped", service.name)
