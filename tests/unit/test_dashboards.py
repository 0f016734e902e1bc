"""The dashboards are what the generator makes, every panel explains itself, every query asks for what exists.

Against Grafana's types they are checked by `make validate` (scripts/dashboards/typecheck.py, which needs node); that
every query has an answer, by tests/e2e/test_vllm_dashboards.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.dashboards.__main__ import main
from scripts.dashboards.panels import RUNBOOKS_UID, WIDTH
from tests.support.boards import boards, panels, queries
from tests.support.metric_names import ROOT, check_queries, declared, labels_in, names_in, of_vllm, rules, series

BOARDS = boards()
SHOWN = {uid: board for uid, board in BOARDS.items() if uid != RUNBOOKS_UID}
PAGES = {panel["id"]: panel["title"] for panel in panels(BOARDS[RUNBOOKS_UID])}
TITLES = {
    "overview and SLO",
    "API gateway",
    "queue and lanes",
    "capacity and saturation",
    "LLM performance",
    "infrastructure and GPU",
    "tenants and cost",
    "batches",
}


def test_what_is_committed_is_what_the_generator_makes() -> None:
    assert main(["--check"]) == 0, "run python -m scripts.dashboards"


def test_the_dashboards_are_those_that_were_promised() -> None:
    assert {board["title"].removeprefix("Penstock: ") for board in SHOWN.values()} == TITLES
    assert {rule.name for rule in rules() if rule.alert} == set(PAGES.values())


@pytest.mark.parametrize("board", SHOWN.values(), ids=list(SHOWN))
def test_every_panel_says_what_it_shows_and_leads_to_a_page(board: dict[str, Any]) -> None:
    seen = [panel["id"] for panel in board["panels"]]
    assert len(set(seen)) == len(seen)
    for panel in panels(board):
        assert len(panel["description"]) > 3, panel["title"]
        assert panel["targets"], panel["title"]
        (link,) = panel["links"]
        found = re.fullmatch(rf"/d/{RUNBOOKS_UID}\?viewPanel=panel-(\d+)", link["url"])
        assert found is not None
        assert link["title"] == f"Runbook: {PAGES[int(found[1])]}"


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_no_panel_lies_on_another(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < WIDTH
        taken |= cells


def test_every_query_parses(tmp_path: Path) -> None:
    check_queries(queries(), tmp_path)


def test_every_name_and_label_in_a_query_exists() -> None:
    known, labels = series(), {**declared(), **of_vllm()}
    for where, query in queries().items():
        assert names_in(query) <= known, where
        assert "$" not in query, where
        for name, named in labels_in(query).items():
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            if base in labels:
                assert named <= {*labels[base][1], "le", "job", "instance"}, where


def test_what_is_read_from_redis_is_never_summed_over_replicas() -> None:
    read = {
        name
        for name, (kind, _) in declared().items()
        if name.startswith(("penstock_queue_depth", "penstock_pool_", "penstock_redis_memory"))
    }
    for where, query in queries().items():
        for name in names_in(query) & read:
            assert re.search(rf"(max|min)( by \([^)]*\))? ?\((rate\()?{name}", query), f"{where}: {query}"


def test_shares_of_arrivals_are_of_the_same_models_and_of_all_that_came() -> None:
    queries_of_it = [query for where, query in queries().items() if where.startswith("penstock-capacity / Turned away")]
    assert queries_of_it
    for query in queries_of_it:
        part, _, whole = query.partition(" / ")
        assert {"penstock_requests_admitted_total", "penstock_requests_turned_away_total"} == names_in(whole)
        assert query.count("model=~") == query.count("rate(") == 3, query
        assert names_in(part) == {"penstock_requests_turned_away_total"}


def test_legends_use_labels_that_the_query_keeps() -> None:
    for board in SHOWN.values():
        for panel in panels(board):
            for target in panel["targets"]:
                grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
                kept = {label.strip() for labels in grouped for label in labels.split(",")}
                named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                if grouped:
                    assert named <= kept, f"{panel['title']}: {target['expr']}"


def test_provisioning_finds_the_folder_and_asks_as_often_as_prometheus_scrapes() -> None:
    grafana = ROOT / "monitoring" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((grafana / "datasources" / "prometheus.yml").read_text())["datasources"]
    prometheus = yaml.safe_load((ROOT / "monitoring" / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((grafana / "dashboards" / "penstock.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
