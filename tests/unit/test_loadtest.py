"""The load test's figures, and its report."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from scripts.loadtest.figures import KEPT, Figures, Outcome, percentiles, summary
from scripts.loadtest.live import headline, rows
from scripts.loadtest.prompts import KINDS, kinds_of
from scripts.loadtest.report import write
from scripts.loadtest.target import stack_settings, target_of


def outcome(kind: str = "chat", *, ttft_s: float = 0.1, tokens: int = 10, error: str = "") -> Outcome:
    return Outcome(kind, 1.0, 1.0 + ttft_s, 2.0, tokens, [0.01] * (tokens - 1), error)


def test_percentiles_are_by_the_nearest_rank() -> None:
    assert percentiles([float(value) for value in range(100)]) == {"p50": 49, "p95": 94, "p99": 98, "max": 99}
    assert percentiles([1.0, 2.0]) == {"p50": 1, "p95": 2, "p99": 2, "max": 2}
    assert percentiles([3.0]) == {"p50": 3, "p95": 3, "p99": 3, "max": 3}
    assert percentiles([]) is None


def test_errors_are_counted_and_not_timed() -> None:
    found = summary([outcome(), outcome(ttft_s=9, error="429 queue_full"), outcome(error="429 queue_full")], 10)
    assert found["errors"] == {"429 queue_full": 2}
    assert (found["requests"], found["requests_per_s"], found["tokens_per_s"]) == (3, 0.1, 1.0)
    assert found["ttft_s"]["max"] == pytest.approx(0.1)


def test_a_run_without_an_end_keeps_the_last_outcomes_and_counts_them_all(tmp_path: Path) -> None:
    figures = Figures.endless()
    figures.began_s = time.monotonic() - 86_400
    for index in range(KEPT + 500):
        ended_s = time.monotonic() - 100 + index * 0.05
        figures.add(Outcome("chat", ended_s - 1, ended_s - 0.9, ended_s, 10, [], "" if index else "500 broken"))
    assert (len(figures.outcomes), figures.ended, figures.failed) == (KEPT, KEPT + 500, 1)
    (row,) = [row for row in rows(figures, figures.span_s()) if row[0] == "all"]
    requests_per_s = float(row[3])
    assert 12 < requests_per_s < 14, "1000 in the 75 s since the first of them: not in the whole day"
    assert "the last 1000 of 1500" in headline(figures, "x")
    assert json.loads(write(tmp_path, figures, figures.span_s(), {})[0].read_text())["kinds"]["all"]["requests"] == KEPT


def test_what_ended_lately_is_counted_from_the_end() -> None:
    figures = Figures(began_s=time.monotonic() - 100)
    for ago_s in (50, 5, 4, 3):
        ended_s = time.monotonic() - ago_s
        figures.add(Outcome("chat", ended_s, ended_s, ended_s, 10))
    assert figures.lately() == pytest.approx((0.3, 3.0))


def test_the_report_says_each_kind_and_all(tmp_path: Path) -> None:
    figures = Figures()
    for kind in ("short", "chat", "chat"):
        figures.add(outcome(kind))
    machine, people = write(tmp_path / "reports", figures, 5.0, {"url": "http://x", "concurrency": 2})
    said = json.loads(machine.read_text())
    assert {kind: found["requests"] for kind, found in said["kinds"].items()} == {"chat": 2, "short": 1, "all": 3}
    assert said["load"] == {"url": "http://x", "concurrency": 2}
    assert people.read_text().count("\n| ") == 5


def test_an_unknown_kind_of_prompts_is_named() -> None:
    assert [kind.name for kind in kinds_of("short, long")] == ["short", "long"]
    assert kinds_of("") == list(KINDS)
    with pytest.raises(ValueError, match="'poem'"):
        kinds_of("poem")


def test_no_two_prompts_are_alike() -> None:
    for kind in KINDS:
        assert kind.body(1, "m")["messages"] != kind.body(2, "m")["messages"]


def test_the_stacks_own_key_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".env"
    path.write_text("# secrets\nPENSTOCK_API_KEYS=pk-1,pk-2\nHTTP_PORT=9000\n")
    assert stack_settings(path) == {"PENSTOCK_API_KEYS": "pk-1,pk-2", "HTTP_PORT": "9000"}
    monkeypatch.setenv("PENSTOCK_API_KEY", "mine")
    target = target_of("https://example.test")
    assert (target.key, target.port, target.name) == ("mine", 443, "https://example.test:443")
    with pytest.raises(ValueError, match="no URL"):
        target_of("example.test:8000")
