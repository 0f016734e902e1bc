"""How the CLI starts Penstock's own processes: its own code and its own Python, whatever the working folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def command(module: str, argv: list[str]) -> list[str]:
    """The command line of `python -m module argv…`. `-P`: a folder `api/` of the user's must not shadow ours."""
    return [sys.executable, "-P", "-m", module, *argv]


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `changes`, and with the folder of this code first on the module path."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **changes}
