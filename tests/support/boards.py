"""The dashboards as they are committed, and their queries as Prometheus is asked them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent.parent / "monitoring" / "grafana" / "dashboards"


def boards() -> dict[str, dict[str, Any]]:
    """Uid → dashboard."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    return {board["uid"]: board for board in found}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels, without the headings."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(*, rate: str = "5m") -> dict[str, str]:
    """Where each query stands → the query, with Grafana's variables filled in. `rate`: for `$__rate_interval`."""
    found = {}
    for uid, board in boards().items():
        values = {"__rate_interval": rate}
        for variable in board["templating"]["list"]:
            values[variable["name"]] = (
                variable["query"] if variable["type"] == "textbox" else variable.get("allValue", "")
            )
        for panel in panels(board):
            for target in panel.get("targets", []):
                query = target["expr"]
                for name in sorted(values, key=len, reverse=True):
                    query = query.replace(f"${name}", values[name])
                found[f"{uid} / {panel['title']} / {target['refId']}"] = query
    return found
