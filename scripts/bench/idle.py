"""CPU of processes while nothing happens."""

from __future__ import annotations

import time
from pathlib import Path

from scripts.bench import procs
from scripts.bench.gateways import GATEWAYS, Place, run_up
from scripts.bench.groups import Group, free_ports
from scripts.bench.options import Options
from scripts.bench.scenarios import PACED

_SETTLE_S = 3.0


def shares_percent(group: Group, lasting_s: float, *, apart: str = "") -> dict[str, float]:
    """CPU of each process of a group over the next `lasting_s` seconds, per cent of one core.

    Children whose command line matches `apart` are left out.
    """
    before = {role: procs.tree_cpu_s(process.pid) for role, process in group.processes.items()}
    began_s = time.monotonic()
    time.sleep(lasting_s)
    lasted_s = time.monotonic() - began_s
    return {
        role: round(100 * procs.spent_s(before[role], procs.tree_cpu_s(process.pid), apart=apart)[0] / lasted_s, 2)
        for role, process in group.processes.items()
    }


def measure(options: Options, work: Path) -> dict[str, float]:
    """Penstock with the simulated engine and nothing to do. Raises BenchError."""
    port, backend, spare = free_ports(3)
    place = Place(work, options.cache, port, backend, spare, PACED, aof=options.aof)
    group = run_up(GATEWAYS["penstock"], place)
    try:
        time.sleep(_SETTLE_S)
        return shares_percent(group, options.idle_s)
    finally:
        group.stop()
