"""From the benchmark's runs to its figures, its tables and its page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import procs, report
from scripts.bench.figures import engine_cost, summarise
from scripts.bench.targets import Target, targets


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


def target(data: dict[str, Any], what: str) -> Target:
    (found,) = [each for each in targets(data) if what in each.what]
    return found


def test_the_cpu_target_is_judged_without_the_engine_and_times_over_direct() -> None:
    data = data_of()
    assert target(data, "worker + replica + Redis").measured == pytest.approx(40)
    assert target(data, "worker + replica + Redis").met
    assert target(data, "TTFT over direct at the median (S2)").measured == pytest.approx(2)
    assert target(data, "TTFT p99 over").measured == pytest.approx(2)
    assert target(data, "ITL p99 over").met
    assert target(data, "(S2s)").met is None
    assert target(data, "nothing happens").measured == pytest.approx(0.4)


def test_a_time_that_is_shorter_than_that_of_no_gateway_was_spoilt_by_the_machine_and_meets_nothing() -> None:
    runs = data_of()["runs"]
    runs["direct"] = {"S2": [{**run_of(0.0, 180.0), "cpu_s": {}}]}
    assert target(data_of(runs=runs), "TTFT p99 over").met is None
    runs["direct"] = {"S2": [{**run_of(0.0, 33.5), "cpu_s": {}}]}
    assert target(data_of(runs=runs), "TTFT p99 over").met  # 0.5 ms is what clocks differ by


def test_a_missed_target_is_called_missed() -> None:
    runs = data_of()["runs"]
    runs["penstock"] = {"S2": [run_of(0.6, 37.0)]}
    missed = [each.what for each in targets(data_of(runs=runs)) if each.met is False]
    assert len(missed) == 4  # CPU, TTFT p50 and p99, ITL p99
    assert report.sections(data_of(runs=runs)).count("**missed**") == 4


def test_ratios_over_peers_have_targets_of_their_own() -> None:
    runs = data_of()["runs"]
    runs["vllm-router"] = {"S2": [run_of(0.25)], "S3": [{**run_of(), "req_s": 100.0}]}
    runs["penstock"]["S3"] = [{**run_of(), "req_s": 30.0}]
    data = data_of(runs=runs)
    assert target(data, "CPU per token over vllm-router's (S2)").measured == pytest.approx(1.6)
    assert target(data, "CPU per token over vllm-router's (S2)").met
    over = target(data, "requests of one token over vllm-router's (S3)")
    assert over.measured == pytest.approx(0.3)
    assert over.met is False
    assert over.text == "≥ 0.4 x"
    assert target(data, "over litellm's").met is None


def test_the_real_engine_is_compared_at_64_and_128_streams_with_its_core() -> None:
    def run(tok_s: float, core_s: float) -> dict[str, Any]:
        return {**run_of(0.5), "tok_s": tok_s, "cpu_engine_core_s": core_s}

    runs = {"vllm": {"64": [run(1000, 1.5)]}, "penstock": {"64": [run(1100, 2.0)]}}
    data = data_of(serving={"model": "m", "runs": runs, "idle": {}})
    assert target(data, "tokens/s over vLLM's own server, 64").measured == pytest.approx(1.1)
    assert target(data, "stack over vLLM's own server, 64").measured == pytest.approx(1.25)
    assert target(data, "stack over vLLM's own server, 64").met is False
    assert target(data, "tokens/s over vLLM's own server, 128").met is None


def test_a_ramp_that_was_cut_off_is_not_compared_and_one_that_ended_is() -> None:
    def steps(*in_time: int, missed: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        good = [{**run_of(), "streams": streams, "in_time": True} for streams in in_time]
        return good + [{**run_of(0.3), "streams": streams, "in_time": False} for streams in missed]

    rate, cost = "most paced tokens/s", "at 768 paced streams"
    ended = data_of(ramps={"penstock": steps(64, 128, missed=(256,)), "vllm-router": steps(64, missed=(128,))})
    assert target(ended, rate).measured == pytest.approx(2)
    cut = data_of(ramps={"penstock": steps(64, 128), "vllm-router": steps(64, missed=(128,))})
    assert target(cut, rate).met is None
    engine = {"ramp-768": [{"cpu_s": 0.1, "tokens": 10_000, "requests": 78, "seconds": 4}]}
    ramps = {"penstock": steps(512, missed=(640, 768)), "vllm-router": steps(768, missed=(896,))}
    assert target(data_of(ramps=ramps, engine=engine), cost).measured == pytest.approx(20 / 50)
    assert target(data_of(ramps=ramps), cost).met is None  # the engine's cost was not measured


def test_fewer_open_streams_than_were_promised_are_not_judged() -> None:
    found = {"streams": 4000, "errors": 1, "kb_a_stream": {"replica": 20.0}, "relay_ms": {"p50": 4.0, "p99": 51.0}}
    verdicts = [target(data_of(open_streams=found), what).met for what in ("memory of a", "errors of", "token's way")]
    assert verdicts == [True, False, False]
    assert target(data_of(open_streams={**found, "streams": 400}), "memory of a").met is None


def test_a_run_of_one_part_does_not_list_what_nobody_asked_for() -> None:
    data = data_of(runs={}, options={**data_of()["options"], "parts": ("idle",)})
    assert "not measured" not in report.sections(data)
    assert "not measured" in report.sections(data_of())


def test_the_tables_give_both_figures_and_the_ratio_without_the_engine() -> None:
    text = report.sections(data_of())
    assert "penstock, with its engine | 50.0" in text
    assert "without it: 40.0 CPU-s/Mtok" in text
    assert "| S2 | 2.00 |" in text  # 40 over nginx' 20


def test_a_time_that_there_is_none_of_is_a_dash_also_over_direct() -> None:
    runs = data_of()["runs"]
    for each in (run for by in runs.values() for run in by["S2"]):
        each["itl_ms"] = {"p50": None, "p99": None}  # answers of one token
    text = report.sections(data_of(runs=runs))
    assert "nan" not in text
    assert "| +2.00 / +2.00 | +2.00 / +2.00 | - | 1.00 |" in text


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


def test_the_long_runs_section_is_written_without_touching_the_other(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(
        f"{report.BEGIN}\nold\n{report.END}\n{report.ENDURANCE_BEGIN}\n{report.ENDURANCE_END}\n", encoding="utf-8"
    )
    report.write_page(page, "long", report.ENDURANCE_BEGIN, report.ENDURANCE_END)
    assert page.read_text(encoding="utf-8") == (
        f"{report.BEGIN}\nold\n{report.END}\n{report.ENDURANCE_BEGIN}\n\nlong\n\n{report.ENDURANCE_END}\n"
    )


def test_a_page_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("by hand", encoding="utf-8")
    with pytest.raises(ValueError, match="no section"):
        report.write_page(page, "new")
    assert page.read_text(encoding="utf-8") == "by hand"


def test_the_page_in_the_repository_has_the_sections() -> None:
    text = (Path(__file__).parents[2] / "docs/performance.md").read_text(encoding="utf-8")
    assert text.index(report.BEGIN) < text.index(report.END)
    assert text.index(report.ENDURANCE_BEGIN) < text.index(report.ENDURANCE_END)


def test_cpu_of_processes_that_match_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = {1: "python -m worker", 2: "VLLM::EngineCore", 3: "VLLM::Worker"}
    monkeypatch.setattr(procs, "title", titles.__getitem__)
    before, after = {1: 1.0, 2: 5.0}, {1: 1.5, 2: 7.0, 3: 1.0}
    assert procs.spent_s(before, after, apart=r"VLLM::(EngineCore|Worker)") == (0.5, 3.0)
    assert procs.spent_s(before, after) == (3.5, 0.0)
