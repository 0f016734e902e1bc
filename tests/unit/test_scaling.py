"""How many workers are wanted, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from api.scaling import Load, Targets, wanted_workers

TARGETS = Targets(least=0, most=50, drain_s=60, age_s=2)
BUSY = Load(waiting=600, waiting_tokens=600_000, running=20, mean_cost=1_000, per_worker=2_000, live=4, slots=8)


def test_the_backlog_is_to_be_done_within_the_target() -> None:
    assert wanted_workers(BUSY, TARGETS) == 6  # 620 000 tokens at 120 000 each
    assert wanted_workers(BUSY, replace(TARGETS, drain_s=30)) == 11
    assert wanted_workers(replace(BUSY, per_worker=4_000), TARGETS) == 3


def test_what_runs_keeps_a_worker_though_nothing_waits() -> None:
    assert wanted_workers(Load(running=1, mean_cost=10, per_worker=2_000, live=3, slots=8), TARGETS) == 1


def test_a_pool_without_work_may_have_no_worker_if_that_is_allowed() -> None:
    idle = Load(per_worker=2_000, live=3, slots=8)
    assert wanted_workers(idle, TARGETS) == 0
    assert wanted_workers(idle, replace(TARGETS, least=2)) == 2
    assert wanted_workers(Load(), TARGETS) == 0


def test_a_long_queue_of_nothing_but_short_work_is_not_many_workers() -> None:
    assert wanted_workers(replace(BUSY, waiting=5_000, waiting_tokens=50_000), TARGETS) == 1


def test_steady_arrivals_keep_the_workers_that_they_need() -> None:
    steady = Load(running=8, mean_cost=1_000, arriving=7_000, per_worker=2_000, live=4, slots=8)
    assert wanted_workers(steady, TARGETS) == 4
    assert wanted_workers(replace(steady, arriving=8_150), TARGETS) == 4, "a waver of the measurement"
    assert wanted_workers(replace(steady, arriving=8_500), TARGETS) == 5


@pytest.mark.parametrize(("age_s", "wanted"), [(1.9, 6), (2.1, 9)])
def test_an_interactive_request_that_waits_too_long_asks_for_one_more(age_s: float, wanted: int) -> None:
    assert wanted_workers(replace(BUSY, live=8, oldest_interactive_s=age_s), TARGETS) == wanted


def test_nothing_asks_for_more_than_the_most() -> None:
    flood = replace(BUSY, waiting_tokens=1e9, live=50, oldest_interactive_s=60)
    assert wanted_workers(flood, TARGETS) == 50
    assert wanted_workers(Load(), Targets(least=9, most=5)) == 5


def test_as_long_as_no_backlog_has_shown_the_pace_slots_decide_one_worker_at_a_time() -> None:
    unknown = Load(waiting=40, waiting_tokens=40_000, running=8, live=1, slots=8)
    assert wanted_workers(unknown, TARGETS) == 2
    assert wanted_workers(replace(unknown, live=5), TARGETS) == 6
    assert wanted_workers(replace(unknown, waiting=0), TARGETS) == 1
    assert wanted_workers(replace(unknown, live=0, slots=0), TARGETS) == 1
