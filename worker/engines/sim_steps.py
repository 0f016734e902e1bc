"""The simulated engine's clock."""

from __future__ import annotations

import asyncio
import math


class Steps:
    """The shared step of all running sequences: waiting for the next one costs a future, not a timer each."""

    def __init__(self, itl_s: float) -> None:
        self._itl_s = itl_s
        self._waiting: list[asyncio.Future[None]] = []
        self._due_s = 0.0
        self._ticking = False
        self.hung = False  # see sim_faults.py
        self.fails_at_s = math.inf
        self._loop: asyncio.AbstractEventLoop | None = None  # looked up once: on 3.11 every look-up is a system call

    def next(self) -> asyncio.Future[None]:
        """Done when the next step is."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        loop = self._loop
        future = loop.create_future()
        self._waiting.append(future)
        if not self._ticking:
            self._ticking = True
            self._due_s = loop.time()
            self._schedule(loop)
        return future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._itl_s <= 0:
            loop.call_soon(self._tick)
            return
        self._due_s = max(self._due_s + self._itl_s, loop.time())  # missed steps are skipped, not made up for
        loop.call_at(self._due_s, self._tick)

    def _tick(self) -> None:
        if self.hung:
            return
        waiting, self._waiting = self._waiting, []
        if not waiting:
            self._ticking = False
            return
        for future in waiting:
            if not future.done():
                future.set_result(None)
        self._schedule(asyncio.get_running_loop())
