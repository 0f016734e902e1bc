"""When a worker that runs is as good as dead: its event loop stands still, or its engine makes no progress.

Progress is anything that the engine did for any request: a token, also one that is made again, a prompt read, an answer
given. What others do with its requests is none: a client that leaves, a deadline. A request that nobody
has read yet needs time before its first token, and the more the longer it is; so the engine's patience grows with the
longest prompt that waits for its first token, up to a limit.

Only time counts in which the watching thread itself was awake: a process that was stopped (SIGSTOP, a frozen machine)
has not stalled, it has slept. Its lease tells the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_PROMPT_BYTES_PER_S = 1_000
"""The slowest prefill that is believed to be one: about 250 tokens a second."""
_MOST_PATIENCE = 10
"""However long a prompt is, the engine gets at most this many times `stall_s`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the engine has done.

    Attributes:
        busy: requests that the engine works on now.
        work: a number that grows whenever the engine has done something, and only then.
        longest_prompt_bytes: of the requests that wait for their first token, the size of the largest, the text that it
            goes on with included; 0 when none waits.
    """

    busy: int
    work: int
    longest_prompt_bytes: int = 0


class Stall:
    """`sign_of_life` is called in the event loop, `after` in the watching thread."""

    def __init__(self, stall_s: float, progress: Callable[[], Progress]) -> None:
        """`stall_s`: how long nothing may happen. `progress` is called in the event loop and must not block."""
        self._stall_s = stall_s
        self._progress = progress
        self._seen = Progress(0, 0)
        self._before = 0
        self._signs = 0
        self._signs_before = 0
        self._loop_silent_s = 0.0
        self._engine_silent_s = 0.0

    def sign_of_life(self) -> None:
        """The event loop turns; this is how the engine is."""
        self._seen = self._progress()
        self._signs += 1

    def after(self, awake_s: float) -> str | None:
        """Why this worker is as good as dead, after another `awake_s` of watching; None while it is well."""
        seen, signs = self._seen, self._signs
        self._loop_silent_s = 0.0 if signs != self._signs_before else self._loop_silent_s + awake_s
        self._signs_before = signs
        if not seen.busy or seen.work != self._before:
            self._engine_silent_s = 0.0
        else:
            self._engine_silent_s += awake_s
        self._before = seen.work
        if self._loop_silent_s > self._stall_s:
            return f"the event loop has stood still for {self._loop_silent_s:.0f} s"
        if self._engine_silent_s > self._patience_s(seen):
            return f"the engine has made no token for {self._engine_silent_s:.0f} s, and {seen.busy} requests wait"
        return None

    def _patience_s(self, seen: Progress) -> float:
        reading_s = seen.longest_prompt_bytes / _PROMPT_BYTES_PER_S
        return min(self._stall_s + reading_s, _MOST_PATIENCE * self._stall_s)
