"""A `make up` of this folder: whether it runs, and how it is stopped. Its lock file says who it is (cli/folder.py)."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

from scripts.stack.places import ROOT, StackError

_POLL_S = 0.1


def process(folder: Path = ROOT / ".penstock") -> int | None:
    """The process id of the `penstock up` that holds the folder; None when none does."""
    path = folder / "lock"
    try:
        with path.open("r", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = path.read_text(encoding="utf-8").strip()
        return int(said) if said.isdigit() else None
    except OSError:
        return None
    return None


def stop(pid: int, wait_s: float, folder: Path = ROOT / ".penstock") -> None:
    """Tells it to stop, and returns once it has. Raises StackError when it takes longer than `wait_s`."""
    os.kill(pid, signal.SIGTERM)
    end_s = time.monotonic() + wait_s
    while process(folder) == pid:
        if time.monotonic() > end_s:
            msg = f"process {pid} still runs after {wait_s:.0f} s"
            raise StackError(msg)
        time.sleep(_POLL_S)
