"""Children that do not outlive their parent.

On Linux the kernel kills a child when the thread that started it ends (PR_SET_PDEATHSIG), so that even `kill -9` of the
parent leaves nothing behind; children must therefore be started from the main thread. Other systems have no such
signal: an orderly stop ends every child there too, but after `kill -9` of the parent they stay, and the next
`penstock up` in the same folder says which process to stop.

Each child leads a session of its own: Ctrl-C in the terminal reaches only the parent, which decides about the order,
and what a child has started itself can be ended with it (`end_group`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
"""Looked up before any fork: a forked child must not load libraries."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. `stdin` is written to it at once; `log` gets its output and its errors."""

    argv: list[str]
    env: dict[str, str]
    log: Path
    stdin: bytes = field(default=b"", repr=False)


async def start(program: Program) -> asyncio.subprocess.Process:
    """Starts a program. Raises OSError. Call it from the main thread."""
    with program.log.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *program.argv,
            env=program.env,
            stdin=asyncio.subprocess.PIPE if program.stdin else asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
    if process.stdin is not None:
        process.stdin.write(program.stdin)
        with contextlib.suppress(ConnectionError):  # it has ended already; its exit status tells
            await process.stdin.drain()
        process.stdin.close()
    return process


def _die_with(parent: int) -> Callable[[], None] | None:
    """What a child does between fork and exec so that it dies with `parent`."""
    if _prctl is None:
        return None
    prctl = _prctl

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died between the fork and the line above
            os._exit(1)

    return arrange


def end_group(leader: int) -> None:
    """Kills what is left of a child's session, such as the engine processes of a worker that was killed."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
