"""Every metric that rules, dashboards and pages may name, and how to find the names in a query."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from shared import gpu_metrics, metrics
from shared.gpu_metrics import Sensor
from shared.metrics import Reading

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ROOT / "monitoring" / "prometheus" / "rules"
RECORDED_OF_VLLM = ROOT / "tests" / "golden" / "vllm_metrics.txt"
PROMETHEUS_OWN = {"up", "ALERTS"}
BLACKBOX = {"probe_ssl_earliest_cert_expiry"}
"""Of Prometheus' blackbox_exporter."""
PROCESS = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_start_time_seconds",
}
"""Of prometheus_client, in every process."""
_SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "gauge": ("",), "counter": ("",)}
_COMMON = ("model_name", "engine")


@dataclass(frozen=True)
class Rule:
    """An alert or a recorded series, of a rule file."""

    file: str
    name: str
    expr: str
    alert: bool
    labels: dict[str, str]
    annotations: dict[str, str]
    wait: str


def rules() -> list[Rule]:
    """All rules of monitoring/prometheus/rules."""
    found = []
    for path in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                name = rule.get("alert") or rule["record"]
                labels, notes = rule.get("labels", {}), rule.get("annotations", {})
                found.append(Rule(path.name, name, rule["expr"], "alert" in rule, labels, notes, rule.get("for", "")))
    return found


def declared() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every metric of the house: its kind and its labels, by the name that its samples have."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for metric in {**vars(metrics), **vars(gpu_metrics)}.values():
        if isinstance(metric, Reading | Sensor):
            found[metric.name] = (metric.kind, metric.labels)
        elif isinstance(metric, Counter):
            found[f"{metric._name}_total"] = ("counter", tuple(metric._labelnames))
        elif isinstance(metric, MetricWrapperBase):
            kind = {Gauge: "gauge", Histogram: "histogram"}[type(metric)]
            found[metric._name] = (kind, tuple(metric._labelnames))
    return found


def of_vllm(*, optional: bool = True) -> dict[str, tuple[str, tuple[str, ...]]]:
    """VLLM's metrics as they were recorded; without `optional`, those that every engine has."""
    found = {}
    for line in RECORDED_OF_VLLM.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or (line.endswith(" optional") and not optional):
            continue
        name, kind, *labels = line.removesuffix(" optional").split(" ")
        found[name] = (kind, (*_COMMON, *filter(None, ",".join(labels).split(","))))
    return found


def series() -> set[str]:
    """Every name that a query may use."""
    known = {**declared(), **of_vllm()}
    recorded = {rule.name for rule in rules() if not rule.alert}
    plain = {f"{name}{suffix}" for name, (kind, _) in known.items() for suffix in _SUFFIXES[kind]}
    return plain | recorded | PROMETHEUS_OWN | BLACKBOX | PROCESS


def names_in(query: str) -> set[str]:
    """The series that a query asks for: words that are no function, keyword, label or text."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", query)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\{[^}]*\}", "{}", bare)
    bare = re.sub(r"\[[^\]]*\]", "[]", bare)
    found = set()
    for match in re.finditer(r"[A-Za-z_:][\w:]*", bare):
        word, rest = match[0], bare[match.end() :].lstrip()
        before = bare[: match.start()].rstrip()
        if rest.startswith("(") or before.endswith("offset") or re.search(r"[\d.]$", bare[: match.start()]):
            continue
        if word not in _KEYWORDS:
            found.add(word)
    return found


_KEYWORDS = {
    "and",
    "or",
    "unless",
    "offset",
    "bool",
    "group_left",
    "group_right",
    "by",
    "without",
    "on",
    "ignoring",
    "inf",
    "nan",
}


def labels_in(query: str) -> dict[str, set[str]]:
    """For each series with matchers, the labels that they name."""
    found: dict[str, set[str]] = {}
    for name, matchers in re.findall(r'([A-Za-z_:][\w:]*)\{((?:[^}"]|"(?:[^"\\]|\\.)*")*)\}', query):
        found.setdefault(name, set()).update(
            re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"(?:[^"\\]|\\.)*"', '""', matchers))
        )
    return found


def promtool() -> str:
    """Prometheus' own checker. Skips the test where there is none."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("this machine has no promtool (Debian: apt install prometheus)")
    return found


def check_queries(queries: dict[str, str], folder: Path) -> None:
    """Fails with what promtool says about the first query that it cannot parse. Keys say where each comes from."""
    names = list(queries)
    recorded = [{"record": f"query_{number}", "expr": queries[name]} for number, name in enumerate(names)]
    (folder / "queries.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "q", "rules": recorded}]}), encoding="utf-8"
    )
    done = subprocess.run(
        [promtool(), "check", "rules", "queries.yml"], capture_output=True, text=True, check=False, cwd=folder
    )
    where = {f"query_{number}": name for number, name in enumerate(names)}
    said = re.sub(r"query_\d+", lambda match: f"{match[0]} ({where.get(match[0])})", done.stdout + done.stderr)
    assert done.returncode == 0, said
    assert f"{len(names)} rules found" in said
