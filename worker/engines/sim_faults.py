"""Harm that a request can do to the simulated engine. For tests, and only with its flag `--faults`.

fault:crash   in the body: the worker's process dies at once, as by a fault of the GPU or for lack of memory
fault:hang    in the body: the engine's steps stop for every sequence; the event loop goes on
fault:block   in the body: the event loop stands still for a minute
"""

from __future__ import annotations

import os
import signal
import time
from typing import Protocol

_BLOCK_S = 60


class Hangs(Protocol):
    """What can hang."""

    hung: bool


def do_harm(body: bytes, steps: Hangs) -> None:
    """Does what the body asks for."""
    if b"fault:crash" in body:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"fault:hang" in body:
        steps.hung = True
    if b"fault:block" in body:
        time.sleep(_BLOCK_S)
