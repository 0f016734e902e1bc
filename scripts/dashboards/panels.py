"""From a short description of a dashboard to Grafana's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "table", "bargauge", "text"]

SCHEMA_VERSION = 41
WIDTH = 24
ROW_HEIGHT = 1
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
RUNBOOKS_UID = "penstock-runbooks"
RATE = "$__rate_interval"
_QUANTILES = ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel. `legend`: how its series are named, with `{{label}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        says: what it shows and what to make of it; Markdown, on the panel's (i).
        runbook: the alert whose page says what to do.
        unit: Grafana's name of it: s, reqps, percentunit, bytes …
        steps: from which value on it is which colour; below the first it is green.
        wide: of 24 columns.
    """

    title: str
    says: str
    runbook: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: Kind = "timeseries"
    steps: Sequence[tuple[float, str]] = ()
    wide: int = 8
    high: int = 8
    stacked: bool = False
    least: float | None = 0
    most: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and what stands under it."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Variable:
    """What can be chosen on top. `query`: PromQL for a choice; `text`: a box with this in it."""

    name: str
    label: str
    query: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    says: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = field(default_factory=tuple)
    since: str = "now-3h"


MODEL = Variable("model", "Model", "label_values(penstock_queue_depth, model)")
LANE = Variable("lane", "Lane", "label_values(penstock_queue_depth, lane)")


def rate(name: str, matchers: str = "", by: str = "") -> str:
    """The sum of a counter's rate."""
    return f"sum{_by(by)} (rate({name}{_braces(matchers)}[{RATE}]))"


def quantile(share: float, name: str, matchers: str = "", by: str = "") -> str:
    """A quantile of a histogram; `name` without `_bucket`."""
    grouped = ", ".join(filter(None, ["le", by]))
    return f"histogram_quantile({share}, sum by ({grouped}) (rate({name}_bucket{_braces(matchers)}[{RATE}])))"


def quantiles(name: str, matchers: str = "", by: str = "", legend: str = "") -> list[Query]:
    """Median, 95 % and 99 %."""
    return [Query(quantile(share, name, matchers, by), f"{legend} {said}".strip()) for share, said in _QUANTILES]


def ratio(part: str, whole: str) -> str:
    """A share; nothing where there is no whole."""
    return f"{part} / ({whole} > 0)"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _braces(matchers: str) -> str:
    return f"{{{matchers}}}" if matchers else ""


def board_json(board: Board, pages: dict[str, int]) -> Json:
    """The dashboard. `pages`: for each alert, the number of its panel on the board of runbooks."""
    return {
        "uid": board.uid,
        "title": f"Penstock: {board.title}",
        "description": board.says,
        "tags": ["penstock"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": board.since, "to": "now"},
        "refresh": "30s",
        "fiscalYearStartMonth": 0,
        "annotations": {"list": []},
        "templating": {"list": [_DATASOURCE_CHOICE, *map(_variable, board.variables)]},
        "links": [
            {
                **_LINK,
                "type": "dashboards",
                "title": "Penstock",
                "tags": ["penstock"],
                "asDropdown": True,
                "keepTime": True,
            }
        ],
        "panels": _laid_out(board.rows, pages),
    }


_LINK: Json = {
    "icon": "external link",
    "tooltip": "",
    "url": "",
    "tags": [],
    "asDropdown": False,
    "targetBlank": False,
    "includeVars": False,
    "keepTime": False,
}
_DATASOURCE_CHOICE: Json = {
    "name": "datasource",
    "label": "Source",
    "type": "datasource",
    "query": "prometheus",
    "hide": 0,
    "refresh": 1,
    "multi": False,
    "includeAll": False,
    "options": [],
    "skipUrlSync": False,
}


def _variable(variable: Variable) -> Json:
    common: Json = {"name": variable.name, "label": variable.label, "hide": 0, "skipUrlSync": False}
    if not variable.query:
        chosen = {"selected": True, "text": variable.text, "value": variable.text}
        return {**common, "type": "textbox", "query": variable.text, "current": chosen, "options": [chosen]}
    return {
        **common,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": variable.query, "refId": "variable"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def _laid_out(rows: Sequence[Row], pages: dict[str, int]) -> list[Json]:
    """The panels from left to right and top to bottom, numbered."""
    out: list[Json] = []
    top = 0
    for row in rows:
        out.append(_row(row.title, len(out) + 1, top))
        top += ROW_HEIGHT
        left = tallest = 0
        for panel in row.panels:
            if left + panel.wide > WIDTH:
                top, left, tallest = top + tallest, 0, 0
            where = {"x": left, "y": top, "w": panel.wide, "h": panel.high}
            out.append(_panel(panel, len(out) + 1, where, pages))
            left, tallest = left + panel.wide, max(tallest, panel.high)
        top += tallest
    return out


def _row(title: str, number: int, top: int) -> Json:
    where = {"x": 0, "y": top, "w": WIDTH, "h": ROW_HEIGHT}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": where, "panels": []}


def _panel(panel: Panel, number: int, where: Json, pages: dict[str, int]) -> Json:
    made: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "gridPos": where,
        "options": _options(panel),
    }
    if panel.runbook:
        url = f"/d/{RUNBOOKS_UID}?viewPanel=panel-{pages[panel.runbook]}"
        made["links"] = [
            {**_LINK, "type": "link", "title": f"Runbook: {panel.runbook}", "url": url, "targetBlank": True}
        ]
    if panel.kind == "text":
        return made
    made["datasource"] = DATASOURCE
    made["fieldConfig"] = {"defaults": _defaults(panel), "overrides": []}
    made["targets"] = [_target(panel, query, index) for index, query in enumerate(panel.queries)]
    return made


def _target(panel: Panel, query: Query, index: int) -> Json:
    instant = panel.kind != "timeseries"
    made = {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": query.expr}
    made |= {"legendFormat": query.legend or "__auto", "instant": instant, "range": not instant}
    if panel.kind == "table":
        made["format"] = "table"
    return made


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"value": None, "color": "green"}]
    steps += [{"value": value, "color": colour} for value, colour in panel.steps]
    made: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}, "mappings": []}
    if panel.least is not None and panel.kind != "table":
        made["min"] = panel.least
    if panel.most is not None:
        made["max"] = panel.most
    made["color"] = {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"}
    if panel.kind == "timeseries":
        made["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
        }
    return made


def _options(panel: Panel) -> Json:
    if panel.kind == "timeseries":
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    if panel.kind == "text":
        return {"mode": "markdown", "content": panel.text}
    reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "bargauge":
        return {"displayMode": "basic", "orientation": "horizontal", "reduceOptions": reduced, "showUnfilled": True}
    return {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": reduced,
        "textMode": "auto",
    }
