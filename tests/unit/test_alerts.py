"""Every alert fires in a test and stays quiet in one, has a page and a drill, and asks for metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from api.problems import FAULTS
from cli.main import _USAGE
from shared.metrics import _FIRST_BYTE_S
from tests.support.metric_names import (
    ROOT,
    Rule,
    check_queries,
    declared,
    labels_in,
    names_in,
    of_vllm,
    promtool,
    rules,
    series,
)

MONITORING = ROOT / "monitoring"
TESTS = sorted((MONITORING / "prometheus" / "tests").glob("*.yml"))
PAGES = ROOT / "docs" / "runbooks"
ALERTS = {rule.name: rule for rule in rules() if rule.alert}
DRILLS = ROOT / "tests" / "drills"
SECTIONS = ["What it means", "What users feel", "What to look at", "What to do", "How it was drilled"]
DCGM = re.compile(r"DCGM_FI_DEV_\w+")


def test_promtool_and_amtool_accept_the_configuration() -> None:
    config = MONITORING / "prometheus" / "prometheus.yml"
    done = subprocess.run([promtool(), "check", "config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    amtool = shutil.which("amtool")
    if amtool is None:
        pytest.skip("this machine has no amtool (Debian: apt install prometheus-alertmanager); promtool was content")
    config = MONITORING / "alertmanager" / "alertmanager.yml"
    done = subprocess.run([amtool, "check-config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_holds_alerts_back_are_alerts() -> None:
    config = yaml.safe_load((MONITORING / "alertmanager" / "alertmanager.yml").read_text())
    for rule in config["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            pattern = matcher.split('"')[1]
            assert [name for name in ALERTS if re.fullmatch(pattern, name)], matcher


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_not_before(path: Path) -> None:
    done = subprocess.run(
        [promtool(), "test", "rules", path.name], capture_output=True, text=True, check=False, cwd=path.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_quiet() -> None:
    fires, quiet = set(), set()
    for path in TESTS:
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for looked in test["promql_expr_test"]:
                name = re.search(r'alertname="(\w+)"', looked["expr"])
                if name is not None:
                    (fires if looked["exp_samples"] else quiet).add(name[1])
    assert fires == quiet == ALERTS.keys()


@pytest.mark.parametrize("rule", ALERTS.values(), ids=list(ALERTS))
def test_an_alert_says_who_is_told_what_it_is_and_where_its_page_is(rule: Rule) -> None:
    assert rule.labels.keys() == {"severity"}
    assert rule.labels["severity"] in {"page", "ticket"}
    assert rule.annotations["runbook"] == f"docs/runbooks/{rule.name}.md"
    assert rule.annotations["summary"].endswith(".") or rule.annotations["summary"].endswith("}}")
    page = (ROOT / rule.annotations["runbook"]).read_text(encoding="utf-8")
    assert page.startswith(f"# {rule.name}\n\n`severity: {rule.labels['severity']}`")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == SECTIONS
    assert f"(../../monitoring/prometheus/rules/{rule.file})" in page


def test_every_alert_has_a_drill_and_its_page_says_which() -> None:
    drills = {
        path.name: set(re.findall(r"Penstock[A-Z]\w+", path.read_text())) for path in DRILLS.glob("test_alerts*.py")
    }
    assert set().union(*drills.values()) == ALERTS.keys()
    for name in ALERTS:
        told = re.search(r"tests/drills/(test_alerts\w*\.py)", (PAGES / f"{name}.md").read_text(encoding="utf-8"))
        assert told is not None
        assert name in drills[told[1]], name


def test_there_is_no_page_without_an_alert_and_the_list_has_all() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == {*ALERTS, "README"}
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \|", (PAGES / "README.md").read_text(), re.MULTILINE)
    assert {(name, name, rule.labels["severity"]) for name, rule in ALERTS.items()} == set(listed)


@pytest.mark.parametrize(
    "path",
    sorted([*PAGES.glob("*.md"), ROOT / "docs/slo.md", ROOT / "docs/metric-names.md", ROOT / "docs/operations.md"]),
    ids=lambda path: path.stem,
)
def test_links_lead_to_something(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (path.parent / link).resolve().exists(), link


def test_the_pages_queries_parse_and_ask_for_what_there_is(tmp_path: Path) -> None:
    queries = {}
    for path in PAGES.glob("*.md"):
        for number, query in enumerate(
            re.findall(r"^```promql\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        ):
            queries[f"{path.stem} {number}"] = query
            assert names_in(re.sub(r"#.*", "", query)) <= series(), path.name
    check_queries(queries, tmp_path)


def test_the_pages_commands_are_those_of_penstock() -> None:
    known = set(re.findall(r"^  penstock ([\w-]+)", _USAGE, re.MULTILINE))
    for path in PAGES.glob("*.md"):
        assert set(re.findall(r"`?\bpenstock ([a-z][\w-]+) ", path.read_text())) <= known | {"gpu-exporter"}, path.name


def test_rules_ask_for_metrics_and_labels_that_exist() -> None:
    labels = {**declared(), **of_vllm()}
    for rule in rules():
        used = {name for name in names_in(rule.expr) if not DCGM.fullmatch(name)}
        assert used <= series(), rule.name
        for name, named in labels_in(rule.expr).items():
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            if base in labels:
                assert named <= {*labels[base][1], "le", "job", "instance"}, rule.name


def test_only_the_dcgm_rules_record_a_metric_of_ours() -> None:
    assert {rule.file for rule in rules() if not rule.alert and rule.name in declared()} == {"dcgm.yml"}


def test_the_promised_bounds_are_buckets_and_the_page_says_them() -> None:
    text = (ROOT / "docs" / "slo.md").read_text()
    bounds = {float(le) for rule in rules() for le in re.findall(r'le="([\d.]+)"', rule.expr)}
    assert bounds == {2.0, 10.0}
    assert bounds <= set(_FIRST_BYTE_S)
    assert "first byte within 2 s" in text
    assert "first byte within 10 s" in text


def test_what_counts_as_an_error_are_the_codes_of_our_own_faults() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "shared").glob("*errors.py"))
    not_faults = {"lane_draining", "images_busy", "uploads_busy", "no_storage"}
    ours = set(re.findall(r'RequestError\(5\d\d, "(\w+)"', source)) - not_faults
    bad = [rule.expr for rule in rules() if rule.name.startswith("penstock:requests_bad:rate")]
    assert bad
    for expr in bad:
        (codes,) = re.findall(r'code=~"([^"]+)"', expr)
        assert set(codes.split("|")) == ours
    assert set(FAULTS) == ours


def test_the_first_of_our_own_faults_is_an_increase() -> None:
    for code in FAULTS:
        assert REGISTRY.get_sample_value("penstock_requests_rejected_total", {"code": code}) is not None, code


def test_the_budgets_of_the_page_are_those_of_the_rules() -> None:
    text = (ROOT / "docs" / "slo.md").read_text()
    for name, budget in (("PenstockErrorsBurnFast", "0.005"), ("PenstockLatencyBurnFast", "0.01")):
        assert f"> 14.4 * {budget} " in ALERTS[name].expr
        assert f"{100 - 100 * float(budget):g} %" in text
    rows = re.findall(r"^\| ([\d.]+) \| (\d+) (\w+) and (\d+) (\w+) \|", text, re.MULTILINE)
    for factor, long, long_unit, short, short_unit in rows:
        windows = f"{long}{long_unit[0]}", f"{short}{short_unit[0]}"
        alert = ALERTS["PenstockErrorsBurnFast" if float(factor) > 3 else "PenstockErrorsBurnSlow"]
        for window in windows:
            assert f"ratio{window} > {factor} * " in alert.expr
    assert len(rows) == 4


def test_the_names_of_a_query_are_found() -> None:
    query = (
        'histogram_quantile(0.9, sum by (le, lane) (rate(a_bucket{lane!="b{}"}[5m]))) > 2 * c:d or on (x) e offset 1h'
    )
    assert names_in(query) == {"a_bucket", "c:d", "e"}
    assert labels_in(query) == {"a_bucket": {"lane"}}
