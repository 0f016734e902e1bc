"""From the benchmark's runs to its figures, its tables and its page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import procs, report
from scripts.bench.figures import engine_cost, summarise, targets


def run_of(
    cpu_s: float = 0.5, ttft_ms: float = 31.0, tokens: int = 10_000, *, errors: int = 0, roles: int = 2
) -> dict[str, Any]:
    pair = {"p50": ttft_ms, "p99": ttft_ms + 5}
    return {
        "seconds": 5.0,
        "requests": tokens // 128,
        "tokens": tokens,
        "req_s": 25.0,
        "tok_s": tokens / 5,
        "ttft_ms": pair,
        "itl_ms": pair,
        "relay_ms": pair,
        "tokens_per_read": 1.0,
        "errors": errors,
        "unfinished": 0,
        "cpu_s": {f"role{number}": cpu_s / roles for number in range(roles)},
        "rss_mb": {"role0": 50.0},
        "cpu_other_s": 0.5,
    }


def data_of(**changes: Any) -> dict[str, Any]:
    engine = {"S2": [{"cpu_s": 0.1, "tokens": 10_000, "requests": 78, "seconds": 4}]}
    base: dict[str, Any] = {
        "machine": {"cpu": "a CPU", "cores": "2", "memory": "8 GiB", "system": "Linux", "date": "2026-01-01"},
        "versions": {"penstock": "0.1.0"},
        "options": {"seconds": 5.0, "repeat": 1, "aof": True, "idle_s": 20.0},
        "missing": {},
        "failures": {},
        "skipped": [],
        "runs": {
            "direct": {"S2": [{**run_of(0.0), "cpu_s": {}}]},
            "nginx": {"S2": [run_of(0.2)]},
            "penstock": {"S2": [run_of(0.5, 33.0)]},
        },
        "engine": engine,
        "ramps": {},
        "idle": {"redis": 0.3, "worker": 0.4},
        "serving": None,
    }
    return {**base, **changes}


def test_a_figure_is_the_median_of_its_repeats_and_the_spread_is_dearest_over_cheapest() -> None:
    summary = summarise([run_of(0.4), run_of(0.5), run_of(0.9)])
    assert summary.cpu_s_per_mtok == pytest.approx(50)
    assert summary.spread_ratio == pytest.approx(2.25)
    assert summary.roles_cpu_s_per_mtok == {"role0": 25.0, "role1": 25.0}


def test_errors_of_all_repeats_are_added_up() -> None:
    assert summarise([run_of(errors=1), run_of(errors=2)]).errors == 3


def test_a_percentile_that_no_repeat_has_is_no_number() -> None:
    run = run_of()
    run["relay_ms"] = {"p50": None, "p99": None}
    assert math.isnan(summarise([run]).relay_p50_ms)


def test_a_gateway_that_ended_no_request_has_no_cost_per_request() -> None:
    assert math.isnan(summarise([{**run_of(), "requests": 0}]).cpu_s_per_kreq)


def test_the_engines_cost_is_told_per_token_and_per_request() -> None:
    cost = engine_cost([{"cpu_s": 0.1, "tokens": 10_000, "requests": 100, "seconds": 4}])
    assert cost.cpu_s_per_mtok == pytest.approx(10)
    assert cost.cpu_s_per_kreq == pytest.approx(1)


def test_the_cpu_target_is_judged_without_the_engine_and_ttft_over_direct() -> None:
    cpu, ttft, few, idle = targets(data_of())
    assert cpu.measured == pytest.approx(40)
    assert cpu.met
    assert ttft.measured == pytest.approx(2)
    assert ttft.met
    assert few.met is None
    assert idle.measured == pytest.approx(0.4)


def test_a_missed_target_is_called_missed() -> None:
    runs = data_of()["runs"]
    runs["penstock"] = {"S2": [run_of(0.6, 35.0)]}
    cpu, ttft, *_ = targets(data_of(runs=runs))
    assert not cpu.met
    assert not ttft.met
    assert report.sections(data_of(runs=runs)).count("**missed**") == 2


def test_the_tables_give_both_figures_and_the_ratio_without_the_engine() -> None:
    text = report.sections(data_of())
    assert "penstock, with its engine | 50.0" in text
    assert "without it: 40.0 CPU-s/Mtok" in text
    assert "| S2 | 2.00 |" in text  # 40 over nginx' 20


def test_what_was_not_measured_is_listed_with_its_reason() -> None:
    text = report.sections(
        data_of(
            missing={"litellm": "not installed"},
            failures={"nginx": "it ended\nlong"},
            skipped=["penstock S4", "nginx S4"],
        )
    )
    assert "- litellm: not installed" in text
    assert "- nginx: failed: it ended\n" in text
    assert "- no time was left for: penstock S4; nginx S4" in text


def test_the_vllm_table_tells_the_engine_core_apart() -> None:
    serving = {
        "model": "a model",
        "runs": {"vllm": {"32": [{**run_of(0.5), "cpu_engine_core_s": 2.0}]}},
        "idle": {"vllm": [{"server": 0.2}]},
    }
    text = report.sections(data_of(serving=serving))
    assert "| vLLM's own server | 32 | 2,000 | 31.0 / 36.0 | 50.0 | 200.0 |" in text


def test_a_ramp_reports_the_last_step_that_was_in_time() -> None:
    steps = [
        {**run_of(), "streams": 64, "in_time": True},
        {**run_of(), "streams": 128, "in_time": True},
        {**run_of(), "streams": 256, "in_time": False},
    ]
    assert "| penstock | 128 |" in report.sections(data_of(ramps={"penstock": steps}))
    assert "| penstock | < 256 |" in report.sections(data_of(ramps={"penstock": steps[2:]}))


def test_only_the_marked_section_of_the_page_is_written(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    report.write_page(page, "new")
    assert page.read_text(encoding="utf-8") == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"


def test_a_page_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("by hand", encoding="utf-8")
    with pytest.raises(ValueError, match="no section"):
        report.write_page(page, "new")
    assert page.read_text(encoding="utf-8") == "by hand"


def test_the_page_in_the_repository_has_the_section() -> None:
    text = (Path(__file__).parents[2] / "docs/performance.md").read_text(encoding="utf-8")
    assert text.index(report.BEGIN) < text.index(report.END)


def test_cpu_of_processes_that_match_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = {1: "python -m worker", 2: "VLLM::EngineCore", 3: "VLLM::Worker"}
    monkeypatch.setattr(procs, "title", titles.__getitem__)
    before, after = {1: 1.0, 2: 5.0}, {1: 1.5, 2: 7.0, 3: 1.0}
    assert procs.spent_s(before, after, apart=r"VLLM::(EngineCore|Worker)") == (0.5, 3.0)
    assert procs.spent_s(before, after) == (3.5, 0.0)
