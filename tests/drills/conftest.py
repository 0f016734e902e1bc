"""The drills' fixtures, their short form, and their report."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.catalogue import ALL, DRILLS, ELSEWHERE
from tests.support.stack import Stack, running_stack

Figures = dict[str, object]
_FIGURES = pytest.StashKey[Figures]()
_PROPERTY = "drill"
_rows: list[tuple[int, str, str]] = []
"""Drill, outcome, figures as text. In the process that reports, whichever processes run the drills."""
_TIMEOUT_S = 400
_WORDS = {"passed": "pass", "failed": "**fail**", "skipped": "waits"}


@pytest.fixture
def stack() -> Iterator[Stack]:
    """A server, and whatever the drill starts."""
    with running_stack() as started:
        yield started


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """What the drill measured; it stands in the report."""
    found: Figures = {}
    request.node.stash[_FIGURES] = found
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drills that take long run in `make drills` only; there they get the time."""
    if ALL:
        for item in items:
            if item.get_closest_marker("drill") and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(_TIMEOUT_S))
        return
    late = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if item not in late]
    config.hook.pytest_deselected(items=late)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    marker = item.get_closest_marker("drill")
    if marker is not None and (call.when == "call" or report.failed):  # type: ignore[attr-defined]
        figures = item.stash.get(_FIGURES, {})
        said = ", ".join(f"{name} {_round(value)}" for name, value in figures.items())
        report.user_properties.append((_PROPERTY, [marker.args[0], _outcome(report), said]))  # type: ignore[attr-defined]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collects what the drills have said, also from other processes."""
    for name, value in report.user_properties:
        if name == _PROPERTY and isinstance(value, list):
            number, outcome, said = value
            _rows.append((int(number), str(outcome), str(said)))


def _outcome(report: object) -> str:
    word = _WORDS[str(getattr(report, "outcome", ""))]
    return f"waits: {getattr(report, 'wasxfail', '')}" if word == "waits" else word


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the report where PENSTOCK_DRILLS_REPORT says."""
    path = os.environ.get("PENSTOCK_DRILLS_REPORT")
    if path and _rows and not hasattr(session.config, "workerinput"):
        Path(path).write_text(report_of(_rows), encoding="utf-8")


def report_of(rows: list[tuple[int, str, str]]) -> str:
    """The report, as Markdown."""
    lines = [
        "# Drills",
        "",
        "Written by `make drills`: faults on real processes, each of which proves that it happened. The engine is the",
        "simulated one, or real vLLM on the CPU with a small model where a row says so. A history checker compares",
        "what every client saw with what Redis says (tests/support/history.py).",
        f"This run: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.",
        "",
        "| # | drill | outcome | figures |",
        "|---|---|---|---|",
    ]
    for number, what in DRILLS.items():
        own = [row for row in rows if row[0] == number]
        for _, outcome, said in own:
            lines.append(f"| {number} | {what} | {outcome} | {said} |")
        if not own:
            lines.append(f"| {number} | {what} | not here | {ELSEWHERE.get(number, 'did not run')} |")
    return "\n".join([*lines, ""])


def _round(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
