"""What a process leaves for Python's collector of cycles, which comes seldom: it is memory that grows meanwhile."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.support.stack import Process, eventually

ENVIRON = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent / "at_start"), os.getenv("PYTHONPATH")]))
}
"""What a process needs in its environment to be asked."""
_MARK = "litter "


async def of(process: Process) -> dict[str, int]:
    """Objects by type that are in cycles which nothing uses, since this was asked the last time."""
    before = len(_told(process))
    os.kill(process.pid, signal.SIGUSR1)
    await eventually(lambda: len(_told(process)) > before, 30, f"{process.name} tells")
    found: dict[str, int] = json.loads(_told(process)[-1].removeprefix(_MARK))
    return found


def _told(process: Process) -> list[str]:
    text = process.log.read_text()
    return [line for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith(_MARK)]
