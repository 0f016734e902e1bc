"""Memory and CPU of processes, looked at regularly while something else runs."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import NamedTuple, Self

from scripts.bench import procs


class Sample(NamedTuple):
    """One look: when (seconds of the monotonic clock), resident memory, CPU seconds so far, by role."""

    at_s: float
    rss_mb: dict[str, float]
    cpu_s: dict[str, float]


class Sampler:
    """Looks at processes each `every_s` seconds, in a thread of its own, while its block runs."""

    def __init__(self, pids: dict[str, int], every_s: float) -> None:
        """`pids`: by role. Children of these are not looked at: a fork of Redis shares its memory."""
        self._pids = pids
        self._every_s = every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[Sample] = []

    def look(self) -> Sample:
        """One look, now."""
        return Sample(
            time.monotonic(),
            {role: procs.own_rss_mb(pid) for role, pid in self._pids.items()},
            {role: procs.cpu_s(pid) for role, pid in self._pids.items()},
        )

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._end.wait(max(0.0, due_s - time.monotonic())):
            self.samples.append(self.look())
            due_s += self._every_s

    def between(self, from_s: float, to_s: float) -> list[Sample]:
        """The samples of a span of the monotonic clock."""
        return [sample for sample in self.samples if from_s <= sample.at_s < to_s]

    def __enter__(self) -> Self:
        """Begins to look."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ends it."""
        self._end.set()
        self._thread.join()
