"""CPU seconds of process trees and of the whole machine, from /proc. Linux only."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_TICK_HZ = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def _stat(pid: int) -> list[str]:
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> Iterator[int]:
    """The pid and all its descendants that live now."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(folder.name))[1]), []).append(int(folder.name))
    todo = [root]
    while todo:
        pid = todo.pop()
        if (_PROC / str(pid)).exists():
            yield pid
            todo += children.get(pid, ())


def title(pid: int) -> str:
    """The command line of a process; empty when it is gone."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def cpu_s(pid: int) -> float:
    """CPU seconds of one process: all its threads, plus the children that it has reaped.

    The scheduler's nanosecond counters of the living threads, or the 10 ms process counters where those are higher
    (threads that have ended).
    """
    try:
        stat = _stat(pid)
        ticks_s = (int(stat[11]) + int(stat[12])) / _TICK_HZ
        reaped_s = (int(stat[13]) + int(stat[14])) / _TICK_HZ
        threads = (_PROC / str(pid) / "task").iterdir()
        living_s = sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except OSError:
        return 0.0
    return max(living_s, ticks_s - 1 / _TICK_HZ) + reaped_s


def tree_cpu_s(root: int) -> dict[int, float]:
    """CPU seconds of each process of a tree."""
    return {pid: cpu_s(pid) for pid in tree(root)}


def spent_s(before: dict[int, float], after: dict[int, float], *, apart: str = "") -> tuple[float, float]:
    """CPU seconds between two readings of a tree, without and only in processes whose command line matches `apart`.

    `apart` is a regular expression; empty matches nothing. A process that is new counts from 0.
    """
    rest_s = apart_s = 0.0
    for pid, seconds in after.items():
        used_s = seconds - before.get(pid, 0.0)
        if apart and re.search(apart, title(pid)):
            apart_s += used_s
        else:
            rest_s += used_s
    return rest_s, apart_s


def rss_mb(root: int) -> float:
    """Resident memory of a tree, MB; shared pages count once for each process."""
    return sum(map(own_rss_mb, tree(root)))


def own_rss_mb(pid: int) -> float:
    """Resident memory of one process, MB; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return 0.0


def machine_busy_s() -> float:
    """CPU seconds, since boot, in which any core of the machine was busy."""
    fields = [int(field) for field in (_PROC / "stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / _TICK_HZ
