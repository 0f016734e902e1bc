"""Waiting without sleeping blindly, and services that run while a block runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

_LOOK_EVERY_S = 0.005


async def eventually(condition: Callable[[], Any], what: str, *, within_s: float = 30.0) -> None:
    """Returns as soon as the condition holds. Raises AssertionError that names what did not come.

    The time is that of a machine that has much else to do: a condition that never comes fails with any limit.
    """
    give_up_at_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > give_up_at_s:
            raise AssertionError(f"{what} did not come within {within_s} s")
        await asyncio.sleep(_LOOK_EVERY_S)


@contextlib.asynccontextmanager
async def serving(service: Any) -> AsyncIterator[asyncio.Task[None]]:
    """Runs a service (see shared/services.py) while the block runs."""
    started = asyncio.Event()
    task = asyncio.create_task(service.run(started))
    try:
        await asyncio.wait_for(started.wait(), 30)
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
