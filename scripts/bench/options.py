"""What a run is asked to do, and how it keeps within its time and waits for a quiet machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from scripts.bench import procs

PARTS = ("transport", "ramp", "idle", "vllm", "lanes", "batch", "streams", "endurance")
FULL_PARTS = tuple(name for name in PARTS if name != "endurance")
QUICK_PARTS = ("transport", "idle", "vllm", "lanes", "batch")
GATEWAY_PARTS = frozenset({"transport", "ramp"})
"""Those that compare gateways."""
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """The run."""

    parts: tuple[str, ...]
    peers: tuple[str, ...]
    scenarios: tuple[str, ...]
    all_scenarios: bool
    """Nobody chose among them, so a slow gateway may be spared some."""
    streams: tuple[int, ...]
    """Of the vLLM scenario."""
    seconds: float
    repeat: int
    idle_s: float
    lanes_s: float
    tries: int
    max_other_cores: float
    aof: bool
    load_streams: int | None
    """Of the parts streams and endurance, and the most in the ramp; None for what they take by themselves."""
    minutes: float | None
    may_install: bool
    model: Path | None
    cache: Path


class Budget:
    """The time that a run may take, and the part of it that may go into what others do to the machine."""

    def __init__(self, total_s: float, patience_s: float, quiet_cores: float) -> None:
        """`patience_s`: most seconds for waiting and for repeating what others spoilt, in all.

        `quiet_cores`: what others may use of the machine for it to be quiet.
        """
        self._end_s = time.monotonic() + total_s
        self._patience_s = patience_s
        self._quiet_cores = quiet_cores
        self.skipped: list[str] = []

    def allows(self, what: str, needs_s: float) -> bool:
        """Whether there is time for `what`; when there is not, it is noted."""
        if time.monotonic() + needs_s <= self._end_s:
            return True
        self.skipped.append(what)
        return False

    def patience(self, costs_s: float) -> bool:
        """Whether there is patience left for repeating a run that takes `costs_s`; takes it off."""
        if self._patience_s < costs_s:
            return False
        self._patience_s -= costs_s
        return True

    def extend(self, spent_s: float) -> None:
        """Gives back time that went into something that happens only once, such as an installation."""
        self._end_s += spent_s

    def wait_quiet(self, most_s: float) -> None:
        """Returns when others leave the machine alone, after `most_s`, or when there is no patience left."""
        end_s = time.monotonic() + min(most_s, self._patience_s)
        while (began_s := time.monotonic()) < end_s:
            busy_s = procs.machine_busy_s()
            time.sleep(_LOOK_S)
            lasted_s = time.monotonic() - began_s
            if (procs.machine_busy_s() - busy_s) / lasted_s < self._quiet_cores:
                return
            self._patience_s -= lasted_s
