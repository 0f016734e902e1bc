"""Which NVIDIA GPUs this machine has, and which worker gets which. Asks the driver, never torch: that takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/gpus")
_TIMEOUT_S = 10


def visible() -> list[str]:
    """What may stand in CUDA_VISIBLE_DEVICES: the user's own list where there is one, else every GPU's index."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device.strip() for device in chosen.split(",") if device.strip()]
    return [str(index) for index in range(_count())]


def _count() -> int:
    try:
        if found := sum(1 for _ in _DRIVER.iterdir()):
            return found
    except OSError:
        pass  # no such folder: no driver, or a container that hides it
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def share(devices: list[str], worker: int, width: int) -> str | None:
    """CUDA_VISIBLE_DEVICES for worker number `worker`, `width` GPUs wide. None leaves it as it is.

    Workers beyond the last GPU start again at the first: they share.
    """
    groups = len(devices) // width
    if len(devices) < 2 or not groups:  # noqa: PLR2004 - nothing to choose from
        return None
    first = worker % groups * width
    return ",".join(devices[first : first + width])
