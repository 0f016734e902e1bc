"""When a process takes part in tracing, where its spans go, and what they hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared import genai
from shared.errors import ConfigurationError
from shared.history import events_of
from shared.settings import Settings, read_settings
from shared.tracing import collector, open_tracing, traces_endpoint
from worker.tracing import span_id_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "PROTOCOL", "TRACES_ENDPOINT", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)


def told(*flags: str) -> Settings:
    return read_settings(Settings, list(flags), "test")


def test_it_is_off_unless_told_where_spans_go() -> None:
    assert open_tracing(told(), "s") is None


@pytest.mark.parametrize("module", ["api.__main__", "worker.__main__", "worker.engines.sim", "cli.main", "cli.up"])
def test_opentelemetry_is_not_imported_while_it_is_off(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_opentelemetrys_own_ways_to_say_no_are_heeded(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert open_tracing(told("--otlp-endpoint", "http://c:4318"), "s") is None
    assert not collector(told("--otlp-endpoint", "http://c:4318"))


def test_the_environment_names_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
    assert collector(told()) == "http://c:4318/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4318/all/of/it")
    assert collector(told()) == "http://c:4318/all/of/it"
    assert collector(told("--otlp-endpoint", "http://ours:4318")) == "http://ours:4318/v1/traces"


def test_a_path_for_traces_is_appended_once() -> None:
    assert traces_endpoint("http://c:4318") == "http://c:4318/v1/traces"
    assert traces_endpoint("http://c:4318/base/") == "http://c:4318/base/v1/traces"
    assert traces_endpoint("http://c:4318/v1/traces") == "http://c:4318/v1/traces"


def test_grpc_has_no_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert traces_endpoint("http://c:4317") == "http://c:4317"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(ConfigurationError, match="carrier-pigeon"):
        traces_endpoint("http://c:4317")


def test_a_file_that_cannot_be_written_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match="--trace-file"):
        open_tracing(told("--trace-file", "/proc/nowhere/spans.jsonl"), "s")


def spans_in(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_span_is_a_line_and_the_child_of_the_one_that_the_headers_name(tmp_path: Path) -> None:
    path = tmp_path / "new" / "spans.jsonl"
    tracing = open_tracing(told("--trace-file", str(path)), "ours")
    assert tracing is not None
    span = tracing.start("work", "consumer", tracing.parent([("traceparent", PARENT)]), {genai.LANE: "batch", "x": ""})
    span.fail("worker_lost")
    assert dict(span.headers())["traceparent"].startswith(PARENT[:36])
    span.end()
    span.end()
    tracing.close()
    (line,) = spans_in(path)
    assert (line["trace_id"], line["parent_span_id"]) == tuple(PARENT.split("-")[1:3])
    assert (line["name"], line["kind"], line["service"], line["failed"]) == ("work", "consumer", "ours", True)
    assert line["attributes"] == {genai.LANE: "batch", genai.ERROR_TYPE: "worker_lost"}


def test_a_parent_that_is_not_sampled_has_no_children(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    tracing = open_tracing(told("--trace-file", str(path)), "ours")
    assert tracing is not None
    span = tracing.start("work", "internal", tracing.parent([("traceparent", PARENT[:-2] + "00")]))
    assert dict(span.headers())["traceparent"].endswith("-00")
    span.end()
    tracing.close()
    assert not path.read_text()


def test_the_id_of_an_attempts_span_is_the_same_everywhere_and_of_other_spans_random(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    tracing = open_tracing(told("--trace-file", str(path)), "ours")
    assert tracing is not None
    for _ in range(2):
        tracing.start("process", "consumer", tracing.parent([]), span_id=span_id_of("a1")).end()
        tracing.start("other", "internal", tracing.parent([])).end()
    tracing.close()
    ids = [line["span_id"] for line in spans_in(path)]
    assert ids[0] == ids[2] == f"{span_id_of('a1'):016x}"
    assert len(set(ids)) == 3


def test_a_history_of_the_version_before_is_read() -> None:
    old, new = events_of("1700 worker_died w1 a1\n1900 handed_back w2 a2 1800\n")
    assert (old.at_ms, old.what, old.wid, old.attempt, old.started_at_ms) == (1700, "worker_died", "w1", "a1", 0)
    assert (new.at_ms, new.started_at_ms) == (1900, 1800)


def test_every_attribute_stands_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text()
    names = {value for name, value in vars(genai).items() if name.isupper() and isinstance(value, str)}
    assert len(names) > 20
    assert not [name for name in names if name not in text and not name.startswith("messaging.")]
