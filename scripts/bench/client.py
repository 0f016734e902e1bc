"""Runs the load client against one address and reads its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from scripts.bench import procs
from scripts.bench.gateways import KEY, REPOSITORY
from scripts.bench.groups import BenchError, Group

Run = dict[str, Any]
_GRACE_S = 90
_ERROR_CHARS = 400


def load(port: int, flags: list[str], *, warmup_s: float, seconds: float, groups: dict[str, Group]) -> Run:
    """One run of the client. The CPU of the groups' processes is counted; roles that begin with `_` apart.

    `groups` maps a prefix for the roles to their group. Raises BenchError.
    """
    processes = {prefix + role: p.pid for prefix, group in groups.items() for role, p in group.processes.items()}
    command = [sys.executable, "-m", "scripts.bench.load", f"127.0.0.1:{port}", "--key", KEY, *flags]
    command += ["--warmup", str(warmup_s), "--seconds", str(seconds)]
    for role, pid in processes.items():
        command += ["--tree", f"{role}={pid}"]
    try:
        out = subprocess.run(
            command, capture_output=True, text=True, cwd=REPOSITORY, timeout=warmup_s + seconds + _GRACE_S, check=True
        )
    except subprocess.CalledProcessError as error:
        msg = f"the load client failed: {error.stderr[-_ERROR_CHARS:]}"
        raise BenchError(msg) from error
    except subprocess.TimeoutExpired as error:
        msg = "the load client did not end"
        raise BenchError(msg) from error
    run: Run = json.loads(out.stdout)
    run["cpu_not_counted_s"] = {role: run["cpu_s"].pop(role) for role in list(run["cpu_s"]) if role.startswith("_")}
    run["rss_mb"] = {role: round(procs.rss_mb(pid), 1) for role, pid in processes.items() if not role.startswith("_")}
    return run


def other_cores(run: Run) -> float:
    """Cores that others used during a run."""
    return max(0.0, float(run["cpu_other_s"]) / float(run["seconds"]))
