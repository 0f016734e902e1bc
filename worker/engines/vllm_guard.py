"""No engine process outlives its worker, not even when the worker is killed with SIGKILL.

vLLM runs its engine in child processes, which do not notice that their parent has died: they would hold the GPU for
ever. So the worker starts this file as a process of its own, with a pipe that ends when the worker ends, and marks
every process that it starts meanwhile through the environment. At the end of the pipe the guard kills what is marked.

The guard imports neither vLLM nor anything of Penstock, and keeps to a few megabytes.
"""

from __future__ import annotations

import contextlib
import multiprocessing.resource_tracker
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "PENSTOCK_ENGINE_OF"
_ROUNDS = 100
_PAUSE_S = 0.05
_WAIT_S = 10.0


class Guard:
    """The worker's end. Blocks for milliseconds; safe to use from any thread."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)
        self._process = subprocess.Popen(  # noqa: S603 - this very file
            [sys.executable, "-I", "-S", __file__, self._mark], stdin=subprocess.PIPE, start_new_session=True
        )

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Processes that are spawned inside belong to the engine; Ctrl-C of a terminal does not reach them.

        A terminal interrupts the whole process group, but it is for the worker to drain and then end its engine.
        """
        multiprocessing.resource_tracker.ensure_running()  # serves the whole process: it must not carry the mark
        os.environ[MARK] = self._mark
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.environ.pop(MARK, None)

    def close(self) -> None:
        """Kills what is left of the engine. Safe to call twice."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_WAIT_S)


def marked(mark: str) -> list[int]:
    """The processes that carry the mark."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # somebody else's, or just gone
            if folder.name.isdigit() and entry in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def main(mark: str) -> None:
    """Waits until the worker's end of the pipe is closed, then kills everything that carries the mark."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the worker and not before
    sys.stdin.buffer.read()
    for _ in range(_ROUNDS):  # what is being killed may just have started another one
        pids = marked(mark)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1])
