"""What is seen while a load test runs: a changing table in a terminal with rich, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from scripts.loadtest.figures import Figures, summary

_LINE_EVERY_S = 5.0
_TIMES = ("TTFT", "ITL", "whole")
COLUMNS = (
    "prompts",
    "requests",
    "errors",
    "req/s",
    "tok/s",
    *(f"{name} {part}" for name in _TIMES for part in ("p50", "p95", "p99")),
)


def rows(figures: Figures, span_s: float) -> list[tuple[str, ...]]:
    """One row for each kind and one for all, in COLUMNS."""
    return [_row(kind, summary(outcomes, span_s)) for kind, outcomes in figures.by_kind().items()]


def _row(kind: str, found: dict[str, Any]) -> tuple[str, ...]:
    errors = sum(found["errors"].values())
    rates = (f"{found['requests_per_s']:.2f}", f"{found['tokens_per_s']:.0f}")
    times = [_time(found[name], part) for name in ("ttft_s", "itl_s", "latency_s") for part in ("p50", "p95", "p99")]
    return (kind, str(found["requests"]), str(errors), *rates, *times)


def _time(values: dict[str, float] | None, part: str) -> str:
    if values is None:
        return "-"
    value_s = values[part]
    return f"{value_s * 1000:.0f} ms" if value_s < 1 else f"{value_s:.2f} s"


def headline(figures: Figures, name: str) -> str:
    """One line about now."""
    requests, tokens = figures.lately()
    elapsed_s = time.monotonic() - figures.began_s
    kept = len(figures.outcomes)
    shown = f"  the last {kept} of {figures.ended}" if kept < figures.ended else ""
    now = f"now {requests:.1f} req/s, {tokens:.0f} tokens/s"
    return f"{name}  {elapsed_s:5.0f} s  running {figures.running}  {now}{shown}"


@contextlib.contextmanager
def shown(figures: Figures, name: str) -> Iterator[Callable[[], None]]:
    """Gives a function to call often, which shows how it goes."""
    try:
        from rich.live import Live  # noqa: PLC0415 - a machine that has only Docker and Python has no rich
        from rich.table import Table  # noqa: PLC0415 - as above
    except ImportError:
        Live = None  # noqa: N806 - a class's name
    if Live is None or not sys.stdout.isatty():
        yield _lines(figures, name)
        return

    def table() -> Table:
        made = Table(*COLUMNS, title=headline(figures, name))
        for row in rows(figures, figures.span_s()):
            made.add_row(*row)
        return made

    with Live(table(), refresh_per_second=4) as live:
        yield lambda: live.update(table())


def _lines(figures: Figures, name: str) -> Callable[[], None]:
    next_s = time.monotonic() + _LINE_EVERY_S

    def show() -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s += _LINE_EVERY_S
            row = rows(figures, figures.span_s())[-1]
            said = ", ".join(f"{title} {value}" for title, value in zip(COLUMNS[1:], row[1:], strict=True))
            print(f"{headline(figures, name)} | {said}", flush=True)

    return show
