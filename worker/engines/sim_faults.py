"""Harm that a request can do to the simulated engine. For tests, and only with its flag `--faults`.

fault:crash   in the body: the worker's process dies at once, as by a fault of the GPU or for lack of memory
fault:fail    in the body: a second later the engine says that it has failed
fault:hang    in the body: the engine's steps stop for every sequence; the event loop goes on
fault:block   in the body: the event loop stands still for a minute
"""

from __future__ import annotations

import os
import signal
import time
from typing import Protocol

_BLOCK_S = 60
_FAIL_S = 1


class Harmed(Protocol):
    """What can hang, or fail."""

    hung: bool
    fails_at_s: float
    """Of the monotonic clock."""


def do_harm(body: bytes, steps: Harmed) -> None:
    """Does what the body asks for."""
    if b"fault:crash" in body:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"fault:fail" in body:
        steps.fails_at_s = time.monotonic() + _FAIL_S
    if b"fault:hang" in body:
        steps.hung = True
    if b"fault:block" in body:
        time.sleep(_BLOCK_S)
