"""What every long-running process does to itself at start."""

from __future__ import annotations

import gc
import time
from importlib import metadata

_BEGAN_S = time.monotonic()


def age_s() -> float:
    """How long this process has run, since it imported this module: among the first things that it does."""
    return time.monotonic() - _BEGAN_S


def tune_collector() -> None:
    """Makes Python's cyclic garbage collector run less often.

    A relay makes many short-lived objects and few cycles; with the default thresholds 6 % of a replica's time went into
    collections that found nothing. What exists at start (modules, routes) is left out of every later collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def version() -> str:
    """Penstock's own version, as it was installed; `unknown` when it was not."""
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "unknown"
