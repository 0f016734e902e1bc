"""What a benchmark run is asked to do, and what it does when time or a peer is missing."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

import pytest

from scripts.bench import __main__ as bench
from scripts.bench import installs, options, transport
from scripts.bench.gateways import GATEWAYS, PEERS
from scripts.bench.groups import BenchError, Group, free_ports
from scripts.bench.options import Budget
from scripts.bench.ramp import Ramp, in_time
from scripts.bench.scenarios import COMPARED_STREAMS, SCENARIOS


def parsed(*argv: str) -> argparse.Namespace:
    return bench._parse(list(argv))


def test_a_full_run_writes_the_page_and_a_partial_one_does_not_unless_it_is_asked_to() -> None:
    assert parsed().page
    for flags in (["--quick"], ["--only", "idle"], ["--scenarios", "S2"], ["--peers", "none"]):
        assert not parsed(*flags).page
    assert parsed("--quick", "--page").page
    assert not parsed("--no-page").page


def test_an_earlier_runs_figures_can_be_shown_again_without_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("it measured"))
    empty: dict[str, object] = {name: {} for name in ("runs", "engine", "ramps", "idle", "missing", "versions")}
    machine = dict.fromkeys(("date", "cores", "cpu", "memory", "system"), "some")
    earlier = {**empty, "machine": machine, "options": {"seconds": 5, "repeat": 1, "aof": True}, "serving": None}
    saved = tmp_path / "bench.json"
    saved.write_text(json.dumps({**earlier, "failures": {"nginx": "it ended"}, "skipped": []}), encoding="utf-8")
    assert bench.main(["--report", str(saved)]) == 1
    assert "- nginx: failed: it ended" in capsys.readouterr().out


def test_a_quick_run_has_one_repeat_and_few_scenarios_and_flags_win_over_it() -> None:
    quick = bench._options(parsed("--quick"))
    assert (quick.repeat, quick.scenarios, quick.streams) == (1, ("S2", "S3"), (64,))
    assert bench._options(parsed("--quick", "--scenarios", "S4", "--repeat", "3")).scenarios == ("S4",)


def test_a_full_run_has_every_part_but_the_long_one_and_a_quick_one_neither_ramp_nor_thousands_of_streams() -> None:
    assert set(options.PARTS) - set(bench._options(parsed()).parts) == {"endurance"}
    assert set(options.PARTS) - set(bench._options(parsed("--quick")).parts) == {"endurance", "streams", "ramp"}
    assert bench._options(parsed("--only", "endurance", "--minutes", "5")).minutes == 5
    full = bench._options(parsed())
    assert (full.repeat, full.streams) == (3, (64, 128))


def test_a_slow_gateway_is_spared_scenarios_that_nobody_asked_for(tmp_path: Path) -> None:
    def fit(name: str, *flags: str) -> list[str]:
        wanted = bench._options(parsed(*flags))
        each = transport.Transport(wanted, Budget(1000, 0, 0.3), [name], tmp_path)
        return [scenario.name for scenario in each._fit(name, [SCENARIOS[name] for name in wanted.scenarios])]

    assert fit("nginx") == list(SCENARIOS)
    assert fit("litellm") == ["S2", "S1", "S3"]
    assert fit("litellm", "--scenarios", "S4") == ["S4"]


def test_the_steps_of_the_ramp_hold_the_one_at_which_gateways_are_compared_and_can_be_cut_off(tmp_path: Path) -> None:
    def steps(*flags: str) -> list[int]:
        return Ramp(bench._options(parsed(*flags)), Budget(1000, 0, 0.3), [], tmp_path)._streams()

    assert COMPARED_STREAMS in steps()
    assert steps("--streams", "200") == [64, 128]
    assert steps("--streams", "16") == [16]


def test_a_step_of_the_ramp_is_in_time_at_the_engines_pace_without_errors_and_within_100_ms() -> None:
    good = {"tok_s": 3_190, "relay_ms": {"p99": 99.0}, "errors": 0}
    assert in_time(good, 64)
    assert not in_time({**good, "tok_s": 2_900}, 64)
    assert not in_time({**good, "relay_ms": {"p99": 101.0}}, 64)
    assert not in_time({**good, "errors": 1}, 64)


def ramp_of(reached: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ramp:
    """A ramp of a gateway that is in time up to so many streams, without processes."""
    ramp = Ramp(bench._options(parsed()), Budget(1000, 0, 0.3), ["nginx"], tmp_path)
    monkeypatch.setattr("scripts.bench.ramp.opened", lambda *_: contextlib.nullcontext((1, {})))
    monkeypatch.setattr(
        ramp, "_step", lambda _name, _port, _groups, streams: {"streams": streams, "in_time": streams <= reached}
    )
    ramp.measure()
    return ramp


def test_a_ramp_ends_at_the_first_step_that_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = ramp_of(64, tmp_path, monkeypatch)
    assert [step["streams"] for step in ramp.steps["nginx"]] == [64, 128]
    assert ramp.most("nginx") == 64


def test_a_gateway_that_came_near_is_measured_where_gateways_are_compared_though_it_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = ramp_of(256, tmp_path, monkeypatch)
    assert [step["streams"] for step in ramp.steps["nginx"]] == [64, 128, 256, 512, 768]
    assert ramp.most("nginx") == 256
    assert ramp_of(1_024, tmp_path, monkeypatch).steps["nginx"][-1]["streams"] == 1_280


def test_peers_can_be_all_none_or_named() -> None:
    assert bench._options(parsed("--peers", "all")).peers == PEERS
    assert bench._options(parsed("--peers", "none")).peers == ()
    assert bench._options(parsed("--peers", "nginx,litellm")).peers == ("nginx", "litellm")


def test_an_unknown_name_is_refused_with_those_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--scenarios", "S9")
    assert "unknown: S9; known: S2" in capsys.readouterr().err


def test_a_budget_that_is_spent_says_what_it_skipped() -> None:
    budget = Budget(100, 0, 0.3)
    assert budget.allows("nginx", 60)
    assert not budget.allows("litellm", 160)
    assert budget.skipped == ["litellm"]
    budget.extend(100)
    assert budget.allows("litellm", 160)


def test_repeating_what_others_spoilt_ends_with_the_patience() -> None:
    budget = Budget(1000, 20, 0.3)
    assert budget.patience(15)
    assert not budget.patience(15)


def test_waiting_for_a_quiet_machine_ends_with_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_LOOK_S", 0.01)
    readings = iter(range(10_000))
    monkeypatch.setattr(options.procs, "machine_busy_s", lambda: float(next(readings)))
    budget = Budget(100, 0.05, 0.3)
    budget.wait_quiet(10)
    assert budget._patience_s <= 0
    spent = next(readings)
    budget.wait_quiet(10)
    assert next(readings) == spent + 1


def test_every_gateway_is_explained_and_every_requirement_is_pinned() -> None:
    for gateway in GATEWAYS.values():
        assert gateway.title
        assert gateway.install is None or gateway.install in installs.INSTALLS
    for install in installs.INSTALLS.values():
        assert all("==" in requirement for requirement in install.requirements)


def test_a_peer_whose_program_is_missing_is_reported_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.shutil, "which", lambda _: None)
    wanted = bench._options(parsed("--peers", "nginx", "--only", "transport"))
    monkeypatch.setattr(bench, "redis_program", lambda: None)
    names, missing = bench._present(wanted, Budget(100, 0, 0.3))
    assert names == ["direct"]
    assert missing == {"nginx": "nginx is not installed", "penstock": "no Redis or Valkey server is installed"}


def test_a_peer_that_may_not_be_installed_is_missing_and_an_installed_one_is_not(tmp_path: Path) -> None:
    why = installs.ensure(tmp_path, "seed", may_install=False)
    assert why is not None
    assert "not installed" in why
    folder = tmp_path / "seed"
    folder.mkdir()
    (folder / "bench-requirements.txt").write_text("\n".join(installs.INSTALLS["seed"].requirements), encoding="utf-8")
    assert installs.ensure(tmp_path, "seed", may_install=False) is None


def test_a_gateway_that_fails_is_noted_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = bench._options(parsed("--peers", "nginx", "--scenarios", "S2"))
    measured: list[str] = []

    def session(_: transport.Transport, name: str, *__: object) -> None:
        if name == "nginx":
            msg = "it did not start"
            raise BenchError(msg)
        measured.append(name)

    monkeypatch.setattr(transport.Transport, "_session", session)
    monkeypatch.setattr(transport.Transport, "_engine_cost", lambda *_: None)
    each = transport.Transport(wanted, Budget(1000, 0, 0.3), ["direct", "nginx", "penstock"], tmp_path)
    each.measure(0)
    assert measured == ["direct", "penstock"]
    assert each.failures == {"nginx": "it did not start"}


def test_a_process_that_ends_early_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    group = Group(tmp_path, "peer")
    group.start("gateway", ["sh", "-c", "echo no config; exit 3"])
    group.processes["gateway"].wait(10)
    with pytest.raises(BenchError, match="gateway of peer ended with 3: no config"):
        group.check()
    group.stop()
    assert group.processes == {}


def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be started"):
        Group(tmp_path, "peer").start("gateway", ["/nonexistent/program"])


def test_free_ports_differ() -> None:
    assert len(set(free_ports(3))) == 3


def test_the_free_running_scenarios_need_no_ramp() -> None:
    assert "--ramp" in SCENARIOS["S2"].shape_flags()
    assert "--ramp" not in SCENARIOS["S3"].shape_flags()
