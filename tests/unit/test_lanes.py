"""lanes: how a request gets into one."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import RequestError
from shared.lanes import _BY_SERVICE_TIER, ENGINE_PRIORITY, QUEUES, SERVICE_TIER, Lane, asked_lane, at_most


@pytest.mark.parametrize(
    ("header", "tier", "lane"),
    [
        (None, None, None),
        (None, "auto", None),
        (None, "default", Lane.STANDARD),
        (None, "priority", Lane.INTERACTIVE),
        (None, "flex", Lane.BATCH),
        ("interactive", None, Lane.INTERACTIVE),
        (" Batch ", None, Lane.BATCH),
        ("interactive", "flex", Lane.INTERACTIVE),
    ],
)
def test_the_header_wins_over_the_tier_and_who_sends_neither_asks_for_none(
    header: str | None, tier: Any, lane: Lane | None
) -> None:
    assert asked_lane(header, tier) is lane


@pytest.mark.parametrize(
    ("header", "tier", "param"),
    [("retry", None, "X-Priority-Lane"), ("", None, "X-Priority-Lane"), (None, "gold", "service_tier")]
    + [(None, odd, "service_tier") for odd in (3, ["flex"], {"a": 1}, True)],
)
def test_what_is_no_lane_is_a_400_that_names_the_parameter(header: str | None, tier: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        asked_lane(header, tier)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_lane_is_never_higher_than_the_highest_one_allowed() -> None:
    assert [at_most(lane, Lane.INTERACTIVE) for lane in Lane] == list(Lane)
    assert [at_most(lane, Lane.STANDARD) for lane in Lane] == [Lane.STANDARD, Lane.STANDARD, Lane.BATCH]
    assert [at_most(lane, Lane.BATCH) for lane in Lane] == [Lane.BATCH] * 3


def test_the_tier_that_was_served_leads_to_the_lane_that_served_it() -> None:
    assert {lane: _BY_SERVICE_TIER[tier] for lane, tier in SERVICE_TIER.items()} == {lane: lane for lane in Lane}


def test_workers_take_from_the_lanes_and_from_nowhere_else() -> None:
    assert [queue.name for queue in QUEUES] == [*Lane]


def test_an_earlier_lane_weighs_more_and_waits_less() -> None:
    assert [queue.weight for queue in QUEUES] == [8, 3, 1]
    assert [queue.age_limit_ms for queue in QUEUES] == sorted(queue.age_limit_ms for queue in QUEUES)
    assert ENGINE_PRIORITY["interactive"] < ENGINE_PRIORITY["standard"] < ENGINE_PRIORITY["batch"]
