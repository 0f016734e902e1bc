"""The report of a load test: JSON for machines, Markdown for people."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.loadtest.figures import Figures, summary
from scripts.loadtest.live import COLUMNS, rows


def report(figures: Figures, span_s: float, about: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured. `about`: what was asked for."""
    kinds = {kind: summary(outcomes, span_s) for kind, outcomes in figures.by_kind().items()}
    machine = {"system": platform.platform(), "python": platform.python_version()}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"version": 1, "at": at, "load": about, "client": machine, "seconds": span_s, "kinds": kinds}


def write(folder: Path, figures: Figures, span_s: float, about: dict[str, Any]) -> tuple[Path, Path]:
    """Writes `loadtest-<time>.json` and `.md` into the folder. Returns their paths."""
    found = report(figures, span_s, about)
    folder.mkdir(parents=True, exist_ok=True)
    stem = "loadtest-" + found["at"][:19].replace(":", "").replace("-", "")
    paths = folder / f"{stem}.json", folder / f"{stem}.md"
    paths[0].write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    paths[1].write_text(_markdown(found, rows(figures, span_s)), encoding="utf-8")
    return paths


def _markdown(found: dict[str, Any], table: list[tuple[str, ...]]) -> str:
    load = ", ".join(f"{name} {value}" for name, value in found["load"].items() if value not in {"", 0, None})
    lines = [f"# Load test, {found['at']}", "", f"{load}. {found['seconds']:.0f} s, seen from the client.", ""]
    lines += [f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *table)]
    everything = found["kinds"]["all"]
    if everything["errors"]:
        lines += ["", "Errors: " + ", ".join(f"{count} x {code}" for code, count in everything["errors"].items()) + "."]
    if everything["resumed"]:
        lines += ["", f"{everything['resumed']} streams broke off and were gone on with."]
    return "\n".join(lines) + "\n"
