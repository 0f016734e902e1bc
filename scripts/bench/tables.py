"""Numbers and tables in Markdown."""

from __future__ import annotations

import math

NONE = "-"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


def number(value: float, digits: int = 1) -> str:
    """A number, or a dash where there is none."""
    return NONE if math.isnan(value) else f"{value:,.{digits}f}"
