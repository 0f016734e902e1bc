"""What `penstock up` shows: one calm table on a terminal, plain lines elsewhere.

Nothing is drawn but on a change, or once a second while something starts and a figure of seconds is on the screen.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, replace
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text


class State(enum.Enum):
    """How a process is."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    STOPPING = "stopping"
    ENDED = "ended"


_MARKS = {
    State.STARTING: ("◌", "yellow"),
    State.READY: ("●", "green"),
    State.WAITING: ("◌", "red"),
    State.STOPPING: ("◌", "yellow"),
    State.ENDED: ("○", "dim"),
}
_SHOWN_AFTER_S = 2


@dataclass(frozen=True, slots=True)
class Line:
    """A process on the board. `since_s` is when its state began (monotonic), `took_s` how long it took to be ready."""

    state: State
    detail: str
    since_s: float
    took_s: float = 0.0

    def followed_by(self, state: State, detail: str) -> Line:
        """The line after a change."""
        if state is self.state:
            return replace(self, detail=detail)
        now_s = time.monotonic()
        started = self.state is State.STARTING and state is State.READY
        return Line(state, detail, now_s, now_s - self.since_s if started else 0.0)


class Board(Protocol):
    """Where progress goes."""

    def put(self, name: str, state: State, detail: str) -> None:
        """How a process is now."""

    def say(self, sentences: list[str]) -> None:
        """What the user should know now; replaces what was said before."""

    def tick(self) -> None:
        """A second has passed."""

    def close(self) -> None:
        """Nothing follows."""


class PlainBoard:
    """A line for each change: for files, pipes and journals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: dict[str, Line] = {}
        self._said: list[str] = []

    def put(self, name: str, state: State, detail: str) -> None:
        """See Board."""
        before = self._lines.get(name)
        if before and (before.state, before.detail) == (state, detail):
            return
        line = before.followed_by(state, detail) if before else Line(state, detail, time.monotonic())
        self._lines[name] = line
        took = f" after {line.took_s:.0f} s" if line.took_s >= _SHOWN_AFTER_S else ""
        self._print(f"{name}: ready{took}, {detail}" if state is State.READY else f"{name}: {detail}")

    def say(self, sentences: list[str]) -> None:
        """See Board."""
        if sentences != self._said:
            self._said = sentences
            for sentence in sentences:
                self._print(sentence)

    def tick(self) -> None:
        """Nothing moves here."""

    def close(self) -> None:
        """Nothing is open."""

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class LiveBoard:
    """A table that is drawn again in place."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._lines: dict[str, Line] = {}
        self._said: list[str] = []
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()
        self._draw()

    def put(self, name: str, state: State, detail: str) -> None:
        """See Board."""
        before = self._lines.get(name)
        if before and (before.state, before.detail) == (state, detail):
            return
        self._lines[name] = before.followed_by(state, detail) if before else Line(state, detail, time.monotonic())
        self._draw()

    def say(self, sentences: list[str]) -> None:
        """See Board."""
        if sentences != self._said:
            self._said = sentences
            self._draw()

    def tick(self) -> None:
        """Draws the seconds of what is starting."""
        if any(line.state in {State.STARTING, State.STOPPING} for line in self._lines.values()):
            self._draw()

    def close(self) -> None:
        """Leaves the last picture on the screen."""
        self._live.stop()

    def _draw(self) -> None:
        table = Table.grid(padding=(0, 1))
        for name, line in self._lines.items():
            mark, style = _MARKS[line.state]
            table.add_row("", Text(mark, style), name, Text(self._detail(line), overflow="fold"))
        said = [Text(sentence, overflow="fold") for sentence in self._said]
        blank = Text()
        self._live.update(Group(blank, Text(f" {self._title}", "bold"), blank, table, blank, *said), refresh=True)

    @staticmethod
    def _detail(line: Line) -> str:
        if line.took_s >= _SHOWN_AFTER_S:
            return f"{line.detail} (ready after {line.took_s:.0f} s)"
        for_s = int(time.monotonic() - line.since_s)
        ticking = line.state in {State.STARTING, State.STOPPING} and for_s >= _SHOWN_AFTER_S
        return f"{line.detail}, {for_s} s" if ticking else line.detail


def open_board(title: str) -> Board:
    """The board for standard output as it is."""
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveBoard(console, title)
    board = PlainBoard(Console(force_terminal=False, color_system=None))
    board.say([title])
    return board
