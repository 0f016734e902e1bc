"""Which profile this machine wants."""

from __future__ import annotations

import shutil
import subprocess


def gpus() -> int:
    """How many NVIDIA GPUs the driver shows."""
    if not shutil.which("nvidia-smi"):
        return 0
    done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return sum(1 for line in done.stdout.splitlines() if line.startswith("GPU ")) if done.returncode == 0 else 0


def profiles(count: int) -> str:
    """One worker for each GPU, at most eight; on the CPU without any."""
    if not count:
        return "cpu"
    return ",".join(["gpu", *(f"gpu{index}" for index in range(1, min(count, 8)))])
