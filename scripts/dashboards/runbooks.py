"""The runbooks, so that a panel's link works wherever Grafana runs: docs/runbooks as panels of text."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.dashboards.panels import RUNBOOKS_UID, Board, Panel, Row

PAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "runbooks"


def pages() -> dict[str, str]:
    """Each alert's page."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("Penstock*.md"))}
    return {name: text.partition("\n")[2].strip() for name, text in found.items()}


def numbers() -> dict[str, int]:
    """The number of each page's panel: the row above them is panel 1."""
    return {name: number for number, name in enumerate(pages(), start=2)}


def board() -> Board:
    """The board; links between pages become links between panels, those out of it their text."""
    known = numbers()

    def led(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        name = target.removesuffix(".md")
        return f"[{words}](/d/{RUNBOOKS_UID}?viewPanel=panel-{known[name]})" if name in known else f"{words} ({target})"

    panels = [
        Panel(name, "", "", [], kind="text", wide=12, high=16, text=re.sub(r"\[([^]]+)\]\(([^)]+)\)", led, text))
        for name, text in pages().items()
    ]
    return Board(
        RUNBOOKS_UID, "runbooks", "A page for each alert; the same as docs/runbooks.", [Row("Runbooks", panels)]
    )
