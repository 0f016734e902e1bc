"""docs/operations.md names every metric, says what the code says of it, and its commands are sound."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from api.settings import ApiSettings
from scripts.stack.places import COMPOSE
from shared import metrics
from shared.lanes import QUEUES
from shared.metrics import Reading
from tests.support.metric_names import declared

TEXT = (Path(__file__).parent.parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(penstock_\w+)` \| ([\w, ]*?) ?\|", TEXT, re.MULTILINE)
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_tables_are_metrics_py() -> None:
    documented = {name: tuple(filter(None, labels.split(", "))) for name, labels in ROWS}
    assert len(documented) == len(ROWS), "a metric has one row"
    assert documented == {name: labels for name, (_, labels) in declared().items()}


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


def test_the_scalers_ask_for_the_metric_and_let_nothing_pass_for_zero() -> None:
    keda, hpa = BLOCKS
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
    script = line.replace('docker compose exec -T api python -c "$ask"', "cat exposition") + '; echo "$wanted"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == said


def test_the_loop_that_scales_compose_asks_a_container_and_scales_a_service_that_is_there(tmp_path: Path) -> None:
    script = re.search(r"```sh\n(ask=.*?)```", TEXT, re.DOTALL)
    assert script
    docker = tmp_path / "docker"
    said = 'penstock_wanted_workers{model="other"} 9.0\\npenstock_wanted_workers{model="my-model"} 3.0\\n'
    docker.write_text(f"#!/bin/sh\n[ $2 = exec ] && printf '{said}' || echo $@\n")
    docker.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", script[1]], env=env, capture_output=True, text=True, check=True)
    *_, scale, service = done.stdout.split()
    assert scale == f"{service}=3"
    assert f"\n  {service}:\n" in (COMPOSE / "docker-compose.yml").read_text(encoding="utf-8")
