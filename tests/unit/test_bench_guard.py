"""The guard of the benchmark's ratios: what it lets through, what it does not, and how new ones are recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import __main__ as bench
from scripts.bench import guard

NGINX = "S2: CPU per token without the engine, over nginx"
ROUTER_S3 = "S3: requests/s over vllm-router"
TOK_S = "vLLM: tokens/s over vLLM's own server, 64 streams"
STACK = "vLLM: CPU per token of the whole stack over vLLM's own server, 64 streams"
FLOOD = "lanes: small tenants' TTFT p95 beside a flood over that without"
COMPARED = "ramp: CPU per token at 768 streams without the engine, over vllm-router"


def run_of(cpu_s: float, req_s: float = 25.0, tok_s: float = 2_000.0) -> dict[str, Any]:
    pair = {"p50": 31.0, "p99": 36.0}
    return {
        "seconds": 5.0,
        "requests": 78,
        "tokens": 10_000,
        "req_s": req_s,
        "tok_s": tok_s,
        "ttft_ms": pair,
        "itl_ms": pair,
        "relay_ms": pair,
        "tokens_per_read": 1.0,
        "errors": 0,
        "unfinished": 0,
        "cpu_s": {"a process": cpu_s},
        "rss_mb": {"a process": 50.0},
        "cpu_other_s": 0.5,
    }


def data_of(
    *, cpu_s: float = 0.5, req_s: float = 40.0, tok_s: float = 2_000.0, flood_ms: float = 1_000.0
) -> dict[str, Any]:
    """A run in which Penstock costs `cpu_s` where nginx costs 0.2, and so on; the engine inside costs 0.1."""
    spans = {"ttft_ms": {"p50": 500.0, "p95": 1_000.0}, "jain": 0.97}
    flood = {"no flood": spans, "flood": {"ttft_ms": {"p50": 500.0, "p95": flood_ms}, "jain": 0.97}}
    step = {"streams": 768, "in_time": True}
    served = {"cpu_engine_core_s": 1.0}
    engine = [{"cpu_s": 0.1, "tokens": 10_000, "requests": 78, "seconds": 4}]
    return {
        "machine": {"cpu": "a CPU", "cores": "2", "memory": "8 GiB", "system": "Linux", "date": "2026-01-01"},
        "versions": {"penstock": "0.1.0 (abc)"},
        "options": {"seconds": 5.0, "repeat": 3, "aof": True, "idle_s": 20.0, "parts": ["transport"]},
        "missing": {},
        "failures": {},
        "skipped": [],
        "runs": {
            "nginx": {"S2": [run_of(0.2)]},
            "vllm-router": {"S3": [run_of(0.2, req_s=100.0)]},
            "penstock": {"S2": [run_of(cpu_s)], "S3": [run_of(cpu_s, req_s=req_s)]},
        },
        "engine": dict.fromkeys(("S2", "ramp-768"), engine),
        "ramps": {"penstock": [{**run_of(cpu_s), **step}], "vllm-router": [{**run_of(0.2), **step}]},
        "idle": {},
        "serving": {
            "model": "m",
            "idle": {},
            "runs": {
                "vllm": {"64": [{**run_of(0.5), **served}]},
                "penstock": {"64": [{**run_of(cpu_s, tok_s=tok_s), **served}]},
            },
        },
        "lanes": {"flood": [flood], "burst": [{"told": {"inside": 0.95}}]},
    }


def names(verdicts: list[guard.Verdict]) -> set[str]:
    return {each.name for each in verdicts if each.regressed}


@pytest.fixture
def entries(tmp_path: Path) -> dict[str, dict[str, Any]]:
    guard.record(tmp_path / "ratios.json", data_of())
    return guard.recorded(tmp_path / "ratios.json")


def test_the_ratios_of_a_run_are_those_of_penstock_without_its_engine_over_its_peers() -> None:
    found = {name: ratio.value for name, ratio in guard.ratios(data_of()).items()}
    assert found[NGINX] == pytest.approx(2.0)  # 0.5 less the engine's 0.1, over 0.2
    assert found[ROUTER_S3] == pytest.approx(0.4)
    assert found[TOK_S] == pytest.approx(1.0)
    assert found[STACK] == pytest.approx(1.0)
    assert found[COMPARED] == pytest.approx(2.0)
    assert found[FLOOD] == pytest.approx(1.0)
    assert not any("S4" in name for name in found)  # was not measured


def test_the_same_run_again_is_no_regression(entries: dict[str, dict[str, Any]]) -> None:
    assert names(guard.judge(entries, data_of())) == set()


def test_a_ratio_that_should_be_less_fails_beyond_15_percent_more_and_not_below(
    entries: dict[str, dict[str, Any]],
) -> None:
    assert NGINX not in names(guard.judge(entries, data_of(cpu_s=0.1 + 0.4 * 1.14)))
    assert {NGINX, COMPARED} <= names(guard.judge(entries, data_of(cpu_s=0.1 + 0.4 * 1.16)))
    assert NGINX not in names(guard.judge(entries, data_of(cpu_s=0.2)))  # half the cost


def test_a_ratio_that_should_be_more_fails_beyond_15_percent_less_and_not_above(
    entries: dict[str, dict[str, Any]],
) -> None:
    assert names(guard.judge(entries, data_of(req_s=40 * 0.86, tok_s=2_000 * 0.86))) == set()
    assert names(guard.judge(entries, data_of(req_s=40 * 0.84))) == {ROUTER_S3}
    assert names(guard.judge(entries, data_of(tok_s=2_000 * 0.84))) == {TOK_S}
    assert names(guard.judge(entries, data_of(req_s=400))) == set()


def test_lanes_are_guarded_too(entries: dict[str, dict[str, Any]]) -> None:
    assert names(guard.judge(entries, data_of(flood_ms=1_200))) == {FLOOD}


def test_a_machine_that_is_twice_as_slow_for_all_is_no_regression(entries: dict[str, dict[str, Any]]) -> None:
    slow = data_of()
    for by in slow["runs"].values():
        for run in (run for runs in by.values() for run in runs):
            run["cpu_s"] = {"a process": 2 * run["cpu_s"]["a process"]}
            run["req_s"] /= 2
    for run in (run for runs in slow["engine"].values() for run in runs[:1]):
        run["cpu_s"] = 0.2
    slow["ramps"] = {}
    assert names(guard.judge(entries, slow)) == set()


def test_what_a_run_did_not_measure_is_not_judged_and_said_so(entries: dict[str, dict[str, Any]]) -> None:
    less = data_of(cpu_s=5.0)
    less |= {"runs": {"vllm-router": less["runs"]["vllm-router"], "penstock": less["runs"]["penstock"]}}
    less |= {"ramps": {}, "serving": None, "lanes": None}
    verdicts = guard.judge(entries, less)
    assert names(verdicts) == set()
    assert f"| {NGINX} | less | 2.000 | - | not measured |" in guard.section(verdicts)


def test_recording_replaces_what_was_measured_and_keeps_the_rest_with_its_origin(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    path.write_text(json.dumps({"other": {"value": 1.0, "better": "less"}, NGINX: {"value": 9.0}}), encoding="utf-8")
    assert NGINX in guard.record(path, data_of())
    entries = guard.recorded(path)
    assert entries["other"] == {"value": 1.0, "better": "less"}
    assert entries[NGINX] == {
        "value": 2.0,
        "better": "less",
        "date": "2026-01-01",
        "commit": "0.1.0 (abc)",
        "machine": "2 cores of a CPU",
        "repeats": 3,
    }


def show(tmp_path: Path, data: dict[str, Any], *flags: str) -> int:
    saved = tmp_path / "bench.json"
    saved.write_text(json.dumps(data), encoding="utf-8")
    return bench.main(["--report", str(saved), "--recorded", str(tmp_path / "ratios.json"), *flags])


@pytest.fixture
def no_lanes_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests' lanes have no more figures than the guard looks at."""
    monkeypatch.setattr("scripts.bench.lanes_report.targets", lambda _: [])
    monkeypatch.setattr("scripts.bench.lanes_report.section", lambda _: "")


@pytest.mark.usefixtures("no_lanes_section")
def test_a_run_with_a_regression_fails_and_says_which_by_how_much_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(tmp_path, data_of(), "--record") == 0
    assert show(tmp_path, data_of()) == 0
    capsys.readouterr()
    assert show(tmp_path, data_of(cpu_s=0.6)) == 1
    out = capsys.readouterr().out
    assert f"REGRESSION: {NGINX}: 2.500, recorded 2.000 (2026-01-01, 0.1.0 (abc), 2 cores of a CPU)" in out
    assert "25% worse" in out
    assert "make bench ARGS=--record" in out


@pytest.mark.usefixtures("no_lanes_section")
def test_a_regression_can_be_recorded_and_is_none_then(tmp_path: Path) -> None:
    assert show(tmp_path, data_of(), "--record") == 0
    assert show(tmp_path, data_of(cpu_s=0.6), "--record") == 0
    assert show(tmp_path, data_of(cpu_s=0.6)) == 0


@pytest.mark.usefixtures("no_lanes_section")
def test_a_quick_run_is_not_judged_unless_it_is_asked_to(tmp_path: Path) -> None:
    assert show(tmp_path, data_of(), "--record") == 0
    assert show(tmp_path, data_of(cpu_s=0.6), "--quick") == 0
    assert show(tmp_path, data_of(cpu_s=0.6), "--quick", "--guard") == 1
    assert show(tmp_path, data_of(cpu_s=0.6), "--no-guard") == 0


@pytest.mark.usefixtures("no_lanes_section")
def test_a_run_against_nothing_says_that_nothing_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(tmp_path, data_of(cpu_s=5.0)) == 0
    assert "no ratios are recorded" in capsys.readouterr().out


def test_a_quick_run_cannot_be_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench._parse(["--quick", "--record"])
    assert "nothing to record" in capsys.readouterr().err


def test_the_recorded_ratios_in_the_repository_are_ratios_that_a_run_measures() -> None:
    entries = guard.recorded(Path(__file__).parents[2] / "docs/bench-ratios.json")
    assert set(entries) <= guard.known()
    for entry in entries.values():
        assert entry["value"] > 0
        assert entry["better"] in {"less", "more"}
