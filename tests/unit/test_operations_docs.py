"""docs/operations.md names every metric, says what the code says of it, and its rules and commands are sound."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from api.settings import ApiSettings
from shared import metrics
from shared.lanes import QUEUES
from shared.metrics import Reading

TEXT = (Path(__file__).parent.parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(penstock_\w+)` \| ([\w, ]*?) ?\|", TEXT, re.MULTILINE)
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def declared() -> dict[str, tuple[str, ...]]:
    """Every metric of the house, with its labels."""
    found: dict[str, tuple[str, ...]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, Reading):
            found[metric.name] = metric.labels
        elif isinstance(metric, MetricWrapperBase):
            found[metric._name + ("_total" if isinstance(metric, Counter) else "")] = tuple(metric._labelnames)
    return found


def test_the_tables_are_metrics_py() -> None:
    documented = {name: tuple(filter(None, labels.split(", "))) for name, labels in ROWS}
    assert len(documented) == len(ROWS), "a metric has one row"
    assert documented == declared()


def test_what_is_read_from_redis_is_in_the_table_of_that() -> None:
    part = TEXT.partition("### Read from Redis")[2].partition("### Counted by each replica")[0]
    names = set(re.findall(r"^\| `(penstock_\w+)`", part, re.MULTILINE))
    assert names == {metric.name for metric in vars(metrics).values() if isinstance(metric, Reading)}


def test_every_metric_that_is_named_anywhere_exists() -> None:
    known = declared().keys()
    for name in set(re.findall(r"\bpenstock_\w+", TEXT)):
        assert re.sub(r"_(bucket|count|sum)$", "", name) in known, name


def test_every_flag_that_is_named_exists() -> None:
    flags = {f"--{name.replace('_', '-')}" for name in ApiSettings.model_fields}
    assert {f"--{flag}" for flag in re.findall(r"`--([a-z-]+)", TEXT)} <= flags | {"--pool"}


def test_the_lanes_numbers_are_those_of_lanes_py() -> None:
    assert " : ".join(str(lane.weight) for lane in QUEUES) in TEXT
    assert ", ".join(f"{lane.age_limit_ms // 1000} s" for lane in QUEUES) in TEXT


def test_promtool_accepts_the_alerts(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("this machine has no promtool")
    rules = tmp_path / "rules.yml"
    rules.write_text(next(block for block in BLOCKS if block.startswith("groups:")), encoding="utf-8")
    done = subprocess.run([promtool, "check", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 rules found" in done.stdout


ALERT_TESTS = """
rule_files: [rules.yml]
evaluation_interval: 30s
tests:
  - interval: 30s
    input_series:
      - {series: 'penstock_queue_depth{lane="batch",model="m",instance="a"}', values: '5x40'}
      - {series: 'penstock_queue_depth{lane="batch",model="m",instance="b"}', values: '5x40'}
      - {series: 'penstock_pool_workers{model="m",state="ready",instance="a"}', values: '1x10 0x30'}
      - {series: 'penstock_wanted_workers{model="m",instance="a"}', values: '1x40'}
      - {series: 'penstock_broker_up{instance="a"}', values: '1x40'}
    alert_rule_test:
      - {eval_time: 5m, alertname: PenstockNobodyWorks, exp_alerts: []}
      - {eval_time: 5m, alertname: PenstockQueuesUnread, exp_alerts: []}
      - eval_time: 10m
        alertname: PenstockNobodyWorks
        exp_alerts:
          - exp_labels: {model: m}
            exp_annotations: {summary: 'Requests wait for m, and no worker is ready.'}
  - interval: 30s
    input_series:
      - {series: 'penstock_requests_turned_away_total{lane="batch",model="m",reason="full"}', values: '0+30x40'}
      - {series: 'penstock_queue_wait_seconds_count{lane="batch",model="m"}', values: '0+100x40'}
      - {series: 'penstock_broker_up{instance="a"}', values: '0x40'}
    alert_rule_test:
      - eval_time: 15m
        alertname: PenstockTurnsAway
        exp_alerts:
          - exp_labels: {model: m, reason: full}
            exp_annotations: {summary: 'More than 5 % of what m starts is turned away: full.'}
      - eval_time: 15m
        alertname: PenstockQueuesUnread
        exp_alerts:
          - exp_annotations: {summary: 'No replica can read the queues; nothing scales.'}
"""


def test_the_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("this machine has no promtool")
    (tmp_path / "rules.yml").write_text(next(each for each in BLOCKS if each.startswith("groups:")), encoding="utf-8")
    (tmp_path / "tests.yml").write_text(ALERT_TESTS, encoding="utf-8")
    command = [promtool, "test", "rules", "tests.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scalers_ask_for_the_metric_and_let_nothing_pass_for_zero() -> None:
    keda, hpa = (block for block in BLOCKS if not block.startswith("groups:"))
    for line in (
        'query: max(penstock_wanted_workers{model="my-model"})',
        'threshold: "1"',
        'ignoreNullValues: "false"',
        "failureThreshold: 3",
    ):
        assert f"  {line}\n" in keda
    assert "name: penstock_wanted_workers\n" in hpa
    assert 'target: {type: AverageValue, averageValue: "1"}' in hpa


@pytest.mark.parametrize(("text", "said"), [('penstock_wanted_workers{model="my-model"} 3.0\n', "3"), ("", "")])
def test_the_compose_command_reads_the_number(tmp_path: Path, text: str, said: str) -> None:
    other = 'penstock_wanted_workers{model="my-model-2"} 9.0\n'
    (tmp_path / "exposition").write_text(other + text, encoding="utf-8")
    line = next(line for line in TEXT.splitlines() if line.startswith("wanted=$("))
    script = line.replace("curl -fsS http://127.0.0.1:8000/metrics", "cat exposition") + '; echo "$wanted"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == said
