"""Trends and their noise, the slices of a long run, and thousands of open streams: from samples to figures."""

from __future__ import annotations

import json
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import __main__ as bench
from scripts.bench import endurance, files, long_report, open_streams, procs, report
from scripts.bench.groups import BenchError
from scripts.bench.sampling import Sample, Sampler
from scripts.bench.trend import since, trend
from scripts.bench.window import Window


def line(per_hour: float, noise: float, count: int = 90, spikes: int = 0) -> tuple[list[float], list[float]]:
    """A value around 100 that grows by `per_hour` an hour, each 10 s, with a few spikes."""
    dice = random.Random(7)
    times_s = [10.0 * at for at in range(count)]
    values = [100 + per_hour * at_s / 3600 + dice.gauss(0, noise) for at_s in times_s]
    for at in dice.sample(range(count), spikes):
        values[at] += 500
    return times_s, values


def test_a_slope_is_told_in_per_cent_an_hour_with_the_interval_that_holds_it() -> None:
    found = trend(*line(60, 0.5))
    assert found is not None
    assert found.low <= 60 / 1.075 <= found.high  # the median is 7.5 higher than the start
    assert found.high - found.low < 10
    assert found.verdict(10) == "**grows**"


def test_what_does_not_grow_is_flat_and_a_few_spikes_do_not_move_it() -> None:
    for spikes in (0, 5):
        found = trend(*line(0, 0.5, spikes=spikes))
        assert found is not None
        assert found.low < 0 < found.high
        assert abs(found.slope) < 2
        assert found.verdict(10) == "flat"


def test_what_shrinks_is_flat() -> None:
    found = trend(*line(-60, 0.5))
    assert found is not None
    assert found.verdict(10) == "flat"


def test_where_the_noise_could_hide_growth_nothing_is_claimed() -> None:
    found = trend(*line(0, 20))
    assert found is not None
    assert found.verdict(10).startswith("not clear")
    assert trend(*line(0, 0.5, count=7)) is None


def test_a_part_of_a_series_begins_when_it_is_said_to() -> None:
    times_s, values = since(10.0, [0.0, 10.0, 20.0, 30.0, 40.0], [9.0, 1.0, 2.0, 3.0, 4.0])
    assert (times_s, values) == ([10.0, 20.0, 30.0, 40.0], [1.0, 2.0, 3.0, 4.0])
    assert since(0.0, [], []) == ([], [])


def test_what_grows_until_redis_drops_as_much_as_it_gets_is_not_judged_where_the_run_is_long_enough() -> None:
    filling = [
        Sample(1_000.0 + at_s, {"redis": 40 + min(at_s, endurance.LEVEL_S - 20)}, {}) for at_s in range(0, 1_800, 10)
    ]
    long = endurance.figures(700, run_of(seconds=1_800.0, slices=slices_of(0)), filling)
    assert verdicts(long)["memory of redis"] == "flat"
    short = endurance.figures(700, run_of(slices=slices_of(0)), filling[:90])
    assert verdicts(short)["memory of redis"] == "**grows**"
    machine = {"date": "2026-01-01", "cores": "2", "cpu": "a CPU"}
    for found, said in (
        (long, "the first 11.5 minutes."),
        (short, "the first 3.75 minutes, which is too soon for Redis"),
    ):
        assert said in long_report.endurance({"endurance": found, "machine": machine, "versions": {}})


def test_a_window_tells_the_figures_of_each_of_its_slices() -> None:
    window = Window()
    window.mark(100.0)
    window.ttft.extend([0.030, 0.040])
    window.tokens, window.done = 20.0, 2
    window.mark(110.0)
    window.ttft.append(0.050)
    window.zero_gaps, window.tokens, window.done = 3, 70.0, 7
    window.errors["cut"] += 1
    window.mark(120.0)
    first, second = window.slices()
    assert (first["at_s"], first["tok_s"], first["req_s"], first["errors"]) == (110.0, 2, 0.2, 0)
    assert first["ttft_ms"] == {"p50": 40.0, "p99": 40.0}
    assert (second["tok_s"], second["req_s"], second["errors"]) == (5, 0.5, 1)
    assert second["ttft_ms"]["p99"] == 50.0
    assert second["itl_ms"]["p99"] == 0.0  # only tokens that came together
    assert second["relay_ms"]["p99"] is None


def test_an_error_outside_the_window_is_counted_apart() -> None:
    window = Window()
    window.from_s, window.to_s = 10.0, 20.0
    window.error("cut", 15.0)
    window.error("cut", 25.0)
    figures = window.figures()
    assert (figures["errors"], figures["errors_outside"]) == (1, 1)


def run_of(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "from_s": 1_000.0,
        "seconds": 900.0,
        "requests": 22_000,
        "tokens": 2_800_000,
        "tok_s": 3_200,
        "open": 4_000,
        "errors": 0,
        "error_kinds": {},
        "errors_outside": 0,
        "unfinished": 0,
        "relay_ms": {"p50": 3.0, "p99": 20.0},
        "cpu_s": {"replica": 90.0, "worker": 90.0, "redis": 45.0},
        "cpu_client_s": 45.0,
        "cpu_other_s": 9.0,
    }
    return {**base, **changes}


def samples_of(per_hour_mb: float) -> list[Sample]:
    return [
        Sample(1_000.0 + at_s, {"replica": 100 + per_hour_mb * at_s / 3600, "redis": 40.0}, {})
        for at_s in range(0, 900, 10)
    ]


def slices_of(slower: float) -> list[dict[str, Any]]:
    dice = random.Random(7)
    times_ms = [(at_s, 30 + slower * at_s / 3600 + dice.gauss(0, 0.2)) for at_s in range(10, 901, 10)]
    return [
        {"at_s": 1_000.0 + at_s, **{key: {"p50": ms, "p99": ms} for key in ("ttft_ms", "itl_ms", "relay_ms")}}
        for at_s, ms in times_ms
    ]


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {name: each["verdict"] for name, each in found["series"].items()}


def test_a_long_run_whose_memory_or_latency_grows_is_told_from_one_that_is_flat() -> None:
    flat = verdicts(endurance.figures(700, run_of(slices=slices_of(0)), samples_of(0)))
    assert set(flat.values()) == {"flat"}
    assert set(flat) == {"memory of replica", "memory of redis", "TTFT p99", "ITL p99", "token's way p99"}
    leaking = verdicts(endurance.figures(700, run_of(slices=slices_of(0)), samples_of(50)))
    assert (leaking["memory of replica"], leaking["memory of redis"]) == ("**grows**", "flat")
    slowing = verdicts(endurance.figures(700, run_of(slices=slices_of(30)), samples_of(0)))
    assert slowing["TTFT p99"] == "**grows**"


def test_the_long_runs_section_says_where_it_comes_from_and_what_its_slopes_are() -> None:
    found = endurance.figures(700, run_of(slices=slices_of(0), errors_outside=2), samples_of(50), found=1_000)
    machine = {"date": "2026-01-01", "cores": "2", "cpu": "a CPU"}
    text = long_report.endurance({"endurance": found, "machine": machine, "versions": {"penstock": "0.1.0"}})
    assert "### A long run: 15 minutes" in text
    assert "700 streams of 128 tokens as in S2, 70 % of the 1000 that were relayed in time" in text
    assert "2 errors" in text
    assert "| memory of replica, MB | 104.7 | 110.9 | +46.4 (+46.4 to +46.4) | ≤ 10 | **grows** |" in text
    assert long_report.endurance({"endurance": None}) == ""


def test_the_long_run_alone_writes_only_its_own_section_of_the_page(tmp_path: Path) -> None:
    found = endurance.figures(700, run_of(slices=slices_of(0)), samples_of(0))
    empty: dict[str, Any] = {name: {} for name in ("runs", "engine", "ramps", "idle", "missing", "failures")}
    machine = dict.fromkeys(("date", "cores", "cpu", "memory", "system"), "some")
    options = {"seconds": 5, "repeat": 3, "aof": True, "parts": ["endurance"]}
    data = {**empty, "machine": machine, "versions": {}, "skipped": [], "options": options, "endurance": found}
    saved, page = tmp_path / "bench.json", tmp_path / "page.md"
    marks = f"{report.BEGIN}\nas it was\n{report.END}\n{report.ENDURANCE_BEGIN}\n{report.ENDURANCE_END}\n"
    page.write_text(marks, encoding="utf-8")
    saved.write_text(json.dumps(data), encoding="utf-8")
    flags = ["--report", str(saved), "--recorded", str(tmp_path / "ratios.json"), "--page", "--page-file", str(page)]
    assert bench.main(flags) == 0
    text = page.read_text(encoding="utf-8")
    assert "as it was" in text
    assert "### A long run" in text
    saved.write_text(json.dumps({**data, "options": {**options, "parts": ["idle"]}, "endurance": None}), "utf-8")
    assert bench.main(flags) == 0
    text = page.read_text(encoding="utf-8")
    assert "as it was" not in text
    assert "### A long run" in text


def test_a_run_that_is_too_short_claims_nothing() -> None:
    found = endurance.figures(64, run_of(slices=slices_of(0)[:5]), samples_of(0)[:5])
    assert set(verdicts(found).values()) == {"not clear: too short"}


@pytest.mark.parametrize("streams", [1, 64, 800, 4_000, 10_000])
def test_all_streams_are_open_during_the_window_and_all_end_before_the_client_gives_up(streams: int) -> None:
    plan = open_streams.Plan(streams)
    fastest_s, slowest_s = plan.tokens * 2.0, plan.tokens * 2.45
    assert fastest_s > plan.warmup_s + 20.0  # the first that was opened outlasts the window
    assert plan.opening_s + slowest_s < plan.warmup_s + 20.0 + plan.drain_s  # the last ends while it is waited for
    assert plan.opening_s < plan.warmup_s


def streams_of(**changes: Any) -> dict[str, Any]:
    before = Sample(0.0, {"replica": 80.0, "redis": 10.0, "worker0": 60.0, "worker1": 60.0}, {})
    during = [
        Sample(1.0, {"replica": mb, "redis": 30.0, "worker0": 70.0, "worker1": 70.0}, {}) for mb in (150, 160, 400)
    ]
    return open_streams.figures(open_streams.Plan(4_000), run_of(**changes), before, during)


def test_memory_per_stream_is_what_a_replica_has_grown_by_while_they_were_open() -> None:
    found = streams_of()
    assert found["kb_a_stream"] == {"replica": 20.5, "redis": 5.1, "workers": 5.1}  # 80 MB, 20 MB and 20 MB over 4,000
    assert found["errors"] == 0
    assert "4,000 of 4,000" in long_report.open_streams(found)
    assert long_report.open_streams(None) == ""


def test_streams_that_were_not_open_or_did_not_end_well_are_errors() -> None:
    assert streams_of(open=3_990)["errors"] == 10
    assert streams_of(errors=1, errors_outside=2, unfinished=3)["errors"] == 6


def test_too_few_open_files_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, 4_096))
    with pytest.raises(
        BenchError, match=r"4000 open streams need 4500 open files.*hard limit is 4096.*ulimit -Hn 4500"
    ):
        files.check_limit(4_000)
    files.check_limit(500)


def test_the_limit_of_open_files_is_raised_as_far_as_the_hard_one_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits in ((1_024, 4_096), (1_024, resource.RLIM_INFINITY), (4_096, 4_096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        files.raise_limit()
    assert asked == [(4_096, 4_096), (65_536, resource.RLIM_INFINITY)]


def test_processes_are_sampled_while_a_block_runs() -> None:
    mine = {"me": os.getpid()}
    with Sampler(mine, 0.01) as sampler:
        end_s = time.monotonic() + 10
        while len(sampler.samples) < 3 and time.monotonic() < end_s:
            time.sleep(0.01)
    first, *_, last = sampler.samples
    assert first.at_s < last.at_s
    assert first.rss_mb["me"] == pytest.approx(procs.own_rss_mb(os.getpid()), rel=0.5)
    assert sampler.between(first.at_s, last.at_s)[0] == first
    assert last not in sampler.between(first.at_s, last.at_s)
    assert procs.own_rss_mb(2**30) == 0  # a process that is gone
