"""Keeps one process running: starts it, starts it again when it ends, and stops it in the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from cli.board import Board, State
from cli.offspring import Program, end_group, start
from cli.restarts import Again, GiveUp, Restarts, describe
from shared.errors import PenstockError

_TAIL_LINES = 15
_TAIL_BYTES = 8192
_UNREADY_GRACE_S = 3.0
"""What a process that was never ready gets to stop in: it has nothing to finish."""


class GaveUpError(PenstockError):
    """A process cannot be kept running. The message names it, says why, and ends with what it said last."""


class Keeper:
    """One process. `on_end(pid, started_at_ms)` runs each time it has ended, before it is started again."""

    def __init__(
        self,
        name: str,
        program: Program,
        board: Board,
        on_end: Callable[[int, int], Awaitable[object]] | None = None,
    ) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self.started_at_ms = 0
        self._program = program
        self._board = board
        self._on_end = on_end
        self._process: asyncio.subprocess.Process | None = None
        self._restarts = Restarts()
        self._stopping = asyncio.Event()
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process and running else None

    def look(self, *, ready: bool, detail: str) -> None:
        """Tells what somebody who asked the process has found. Until it is ready, `detail` says what it waits for."""
        if self.pid is None or self._stopping.is_set():
            return
        if ready:
            self.ready.set()
        elif self.ready.is_set():
            self._board.put(self.name, State.WAITING, detail)
            return
        self._board.put(self.name, State.READY if ready else State.STARTING, detail)

    async def run(self) -> None:
        """Until `stop`. Raises GaveUpError."""
        while not self._stopping.is_set():
            began_s = time.monotonic()
            status = await self._once()
            if self._stopping.is_set():
                break
            verdict = self._restarts.after(status, was_ready=self.ready.is_set(), lived_s=time.monotonic() - began_s)
            self.ready.clear()
            match verdict:
                case GiveUp(why):
                    self._board.put(self.name, State.ENDED, describe(status))
                    raise GaveUpError(self._obituary(why))
                case Again(delay_s):
                    self._board.put(self.name, State.WAITING, f"ended ({describe(status)}); starting again")
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), delay_s)
        self._board.put(self.name, State.ENDED, "stopped")

    async def _once(self) -> int:
        """Runs the process once. Returns its exit status."""
        log = self._program.log
        self._log_start = log.stat().st_size if log.exists() else 0
        self.started_at_ms = int(time.time() * 1000)
        self._board.put(self.name, State.STARTING, "starting")
        try:
            process = await start(self._program)
        except OSError as error:
            msg = f"{self.name} cannot be started: {error}"
            raise GaveUpError(msg) from error
        self._process = process
        if self._stopping.is_set():  # `stop` came while it was being started
            end_group(process.pid)
        status = await process.wait()
        end_group(process.pid)
        if self._on_end is not None:
            await self._on_end(process.pid, self.started_at_ms)
        return status

    def _obituary(self, why: str) -> str:
        with self._program.log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, 2) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        said = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
        return f"{self.name} {why}. Its log, {self._program.log}, ends with:\n{said}"

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s`. Returns when the process has ended. Safe to call twice."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._board.put(self.name, State.STOPPING, "finishing")
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), grace_s if self.ready.is_set() else min(grace_s, _UNREADY_GRACE_S))
        except TimeoutError:
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """SIGKILL to the process and to what it has started."""
        self._stopping.set()
        if (pid := self.pid) is not None:
            end_group(pid)
