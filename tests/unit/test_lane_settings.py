"""lane_settings: what an operator may set, and what is said about the rest."""

from __future__ import annotations

import pytest

from shared.errors import RequestError
from shared.lane_settings import SETTINGS, parse_assignments, parse_changes, parse_lane
from shared.lanes import QUARANTINE, Lane


@pytest.mark.parametrize("lane", Lane)
def test_a_lane_is_known_by_its_name(lane: Lane) -> None:
    assert parse_lane(f" {lane.upper()} ") is lane


@pytest.mark.parametrize("name", [QUARANTINE, "", "bulk", "standard.weight"])
def test_whatever_is_no_lane_is_refused_with_the_lanes_that_there_are(name: str) -> None:
    with pytest.raises(RequestError, match="interactive, standard, batch") as refused:
        parse_lane(name)
    assert refused.value.status == 400


def test_quarantine_is_said_to_have_no_settings() -> None:
    with pytest.raises(RequestError, match="is no lane: it holds requests that kill workers"):
        parse_lane(QUARANTINE)


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("weight", 5, "5"),
        ("weight", "5", "5"),
        ("weight", 0.5, "0.5"),
        ("weight", "2.50", "2.5"),
        ("weight", "0.001", "0.001"),
        ("weight", 1_000, "1000"),
        ("age_limit_ms", 0, "0"),
        ("age_limit_ms", " 1500 ", "1500"),
        ("max_requests", "007", "7"),
        ("max_bytes", 1 << 34, str(1 << 34)),
        ("max_tokens", 10**12, "1000000000000"),
        ("max_tokens", None, ""),
    ],
)
def test_a_setting_is_kept_as_a_plain_number_and_none_takes_it_back(name: str, given: object, kept: str) -> None:
    assert parse_changes({name: given}) == {name: kept}


@pytest.mark.parametrize("given", [0, -1, "nan", "inf", "1e3", "", "0x10", "1_0", "٣", True, [], 0.0001, 1_001, "5 5"])
def test_no_weight_that_a_script_could_stumble_over(given: object) -> None:
    with pytest.raises(RequestError, match=r"weight must be a number from 0\.001 to 1000, not"):
        parse_changes({"weight": given})


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.whole])
@pytest.mark.parametrize("given", [-1, 1.5, "1.0", 10**12 + 1, "many", False, {}])
def test_what_is_counted_is_a_whole_number_in_bounds(name: str, given: object) -> None:
    with pytest.raises(RequestError, match=f"{name} must be a whole number from [01] to 1000000000000, not") as refused:
        parse_changes({name: given})
    assert (refused.value.status, refused.value.param) == (400, name)


@pytest.mark.parametrize("name", ["paused", "draining", "wait", "", "batch.weight"])
def test_an_unknown_setting_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(RequestError, match="Settings: weight, age_limit_ms, max_requests, max_bytes, max_tokens"):
        parse_changes({name: 1})


def test_assignments_are_read_from_words() -> None:
    assert parse_assignments(["weight=0.5", "max_requests=10"]) == {"weight": "0.5", "max_requests": "10"}
    with pytest.raises(RequestError, match="Say <setting>=<value>, not 'weight'"):
        parse_assignments(["weight"])
    with pytest.raises(RequestError, match="weight must be"):
        parse_assignments(["weight="])


def test_one_wrong_setting_spoils_them_all_and_none_is_too_few() -> None:
    with pytest.raises(RequestError, match="max_bytes"):
        parse_changes({"weight": 1, "max_bytes": 0})
    with pytest.raises(RequestError, match="No setting is named"):
        parse_changes({})
