"""What a watcher of a batch sees: a bar on a terminal, lines elsewhere, JSON for programs.

Bars and lines go to standard error: standard output is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.batches.rates import Rates, facts_of
from shared.batches import ENDED

_EVERY_S = 5.0
"""How often a line is written while only counts change."""
_DRAWN_PER_S = 4
_STATUS = {
    "validating": "validating: every row is looked at before one is run",
    "finalizing": "finalizing: the files are put together",
    "cancelling": "cancelling: what runs may end",
}
_STYLES = {"completed": "green", "failed": "red", "expired": "red", "cancelled": "yellow"}


class Board(Protocol):
    """Where progress goes."""

    def show(self, found: Mapping[str, Any]) -> None:
        """The batch as it is now."""

    def say(self, sentence: str) -> None:
        """What the user should know."""

    def close(self) -> None:
        """Nothing is drawn any more."""


class QuietBoard:
    """Says only what matters."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""

    def show(self, found: Mapping[str, Any]) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """See Board. The same sentence is not repeated."""
        if sentence != self._said:
            self._said = sentence
            self._print(sentence)

    def close(self) -> None:
        """Nothing is open."""

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class PlainBoard(QuietBoard):
    """A line when the status changes, and every five seconds while rows get done."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._rates = Rates()
        self._shown: tuple[str, Any] = ("", None)
        self._shown_at_s = 0.0

    def show(self, found: Mapping[str, Any]) -> None:
        """See Board."""
        self._rates.add(found)
        status, now_s = found["status"], time.monotonic()
        changed = status != self._shown[0]
        if changed or (now_s - self._shown_at_s >= _EVERY_S and found["request_counts"] != self._shown[1]):
            self._shown, self._shown_at_s = (status, found["request_counts"]), now_s
            facts = facts_of(found, self._rates) if found["request_counts"]["total"] else []
            self._print(", ".join([f"{found['id']}: {status}", *facts]))


class JsonBoard(QuietBoard):
    """The batch's object, one a line on standard output, whenever it changes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._shown: dict[str, Any] = {}

    def show(self, found: Mapping[str, Any]) -> None:
        """See Board."""
        bare = {name: value for name, value in found.items() if name != "progress"}
        if bare != self._shown or found.get("progress"):
            self._shown = bare
            sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
            sys.stdout.flush()


class BarBoard:
    """A bar with what is known below it, drawn in place."""

    def __init__(self, console: Console) -> None:
        self._rates = Rates()
        self._found: Mapping[str, Any] | None = None
        self._console = console
        self._said = ""
        # what is written to standard output meanwhile are results: they must not pass through the terminal's drawing
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=_DRAWN_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._open = False

    def show(self, found: Mapping[str, Any]) -> None:
        """See Board."""
        self._rates.add(found)
        self._found = found
        if not self._open:
            self._live.start()
            self._open = True

    def say(self, sentence: str) -> None:
        """See Board: above the bar."""
        if sentence != self._said:
            self._said = sentence
            self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the last picture on the screen."""
        if self._open:
            self._live.stop()
            self._open = False

    def _draw(self) -> RenderableType:
        if self._found is None:
            return Text()
        status, counts = self._found["status"], self._found["request_counts"]
        done, total = counts["completed"] + counts["failed"], counts["total"]
        top = Text.assemble(
            (self._found["id"], "bold"), "  ", (_STATUS.get(status, status), _STYLES.get(status, "cyan"))
        )
        known = bool(total) or status in ENDED
        bar = ProgressBar(total=max(total, 1), completed=done, pulse=not known)
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(ratio=1)
        line.add_column(justify="right")
        line.add_row(bar, f"{100 * done / total:3.0f} %" if total else "")
        facts = Text(" · ".join(facts_of(self._found, self._rates)) if total else "", overflow="fold")
        return Group(top, line, facts)


def open_board(*, as_json: bool, quiet: bool) -> Board:
    """The board for standard error as it is."""
    console = Console(stderr=True)
    drawn = console.is_terminal and not console.is_dumb_terminal
    plain = console if drawn else Console(stderr=True, force_terminal=False, color_system=None, soft_wrap=True)
    if as_json:
        return JsonBoard(plain)
    if quiet:
        return QuietBoard(plain)
    return BarBoard(console) if drawn else PlainBoard(plain)
