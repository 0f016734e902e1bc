"""`python -m scripts.dashboards`: writes the dashboards. `--check`: fails when what is committed is something else."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from scripts.dashboards import batches, capacity, gateway, infrastructure, llm, overview, queue, runbooks, tenants
from scripts.dashboards.panels import Json, board_json

FOLDER = Path(__file__).resolve().parent.parent.parent / "monitoring" / "grafana" / "dashboards"
BOARDS = (
    overview.BOARD,
    gateway.BOARD,
    queue.BOARD,
    capacity.BOARD,
    llm.BOARD,
    infrastructure.BOARD,
    tenants.BOARD,
    batches.BOARD,
)


def dashboards() -> dict[str, Json]:
    """File name → dashboard."""
    pages = runbooks.numbers()
    return {f"{board.uid}.json": board_json(board, pages) for board in (*BOARDS, runbooks.board())}


def text_of(dashboard: Json) -> str:
    """As it is committed."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def main(argv: list[str]) -> int:
    """Writes or checks. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is not what it should be")
    check = parser.parse_args(argv).check
    made = {name: text_of(dashboard) for name, dashboard in dashboards().items()}
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    differ = sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))
    if check:
        for name in differ:
            sys.stderr.write(f"{name} is not what scripts/dashboards makes: run python -m scripts.dashboards\n")
        return int(bool(differ))
    for name in differ:
        if name in made:
            (FOLDER / name).write_text(made[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    print(f"{len(made)} dashboards, {len(differ)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
