"""Deadlines: what clients say about their time, and what comes of it."""

from __future__ import annotations

import pytest

from api.deadlines import ENDLESS, Limits, Patience, patience_of
from shared.errors import RequestError

NOW_MS = 1_900_000_000_000
TIMEOUT, DEADLINE = "x-request-timeout-ms", "x-request-deadline"


@pytest.mark.parametrize(
    ("headers", "patience"),
    [
        ({}, ENDLESS),
        ({TIMEOUT: "1500"}, Patience(timeout_ms=1500)),
        ({TIMEOUT: " 1 "}, Patience(timeout_ms=1)),
        ({DEADLINE: "1900000000000"}, Patience(until_ms=1_900_000_000_000)),
        ({DEADLINE: "2030-03-17T17:46:40Z"}, Patience(until_ms=1_900_000_000_000)),
        ({DEADLINE: "2030-03-17T19:46:40.250+02:00"}, Patience(until_ms=1_900_000_000_250)),
        ({TIMEOUT: "7", DEADLINE: "1900000000000"}, Patience(7, 1_900_000_000_000)),
    ],
)
def test_a_span_is_milliseconds_and_a_moment_is_unix_milliseconds_or_rfc_3339(
    headers: dict[str, str], patience: Patience
) -> None:
    assert patience_of(headers) == patience


@pytest.mark.parametrize(
    ("header", "text", "says"),
    [
        *((TIMEOUT, text, "whole number of milliseconds") for text in ("", "0", "-5", "1.5", "1e3", "5s", "inf", "٣")),
        (TIMEOUT, "9" * 16, "whole number of milliseconds"),
        (DEADLINE, "1900000000", "looks like seconds"),
        (DEADLINE, "5000", "looks like seconds"),
        (DEADLINE, "tomorrow", "RFC 3339"),
        (DEADLINE, "2030-03-17T17:46:40", "with a time zone"),
        (DEADLINE, "2030-03-17", "with a time zone"),
        (DEADLINE, "-1900000000000", "RFC 3339"),
        (DEADLINE, "", "RFC 3339"),
    ],
)
def test_nonsense_is_a_400_that_names_the_header_and_says_what_it_wants(header: str, text: str, says: str) -> None:
    with pytest.raises(RequestError) as refused:
        patience_of({header: text})
    error = refused.value
    assert (error.status, error.code, str(error.param).lower()) == (400, "invalid_request_error", header)
    assert says in error.message
    assert error.should_retry is False


@pytest.mark.parametrize(
    ("patience", "start_s", "finish_s"),
    [
        (ENDLESS, 10, 60),
        (Patience(timeout_ms=30_000), 10, 30),
        (Patience(timeout_ms=5_000), 5, 5),
        (Patience(timeout_ms=90_000), 10, 60),
        (Patience(until_ms=NOW_MS + 7_000), 7, 7),
        (Patience(30_000, NOW_MS + 20_000), 10, 20),
        (Patience(until_ms=NOW_MS - 1_000), -1, -1),
    ],
)
def test_the_earliest_of_client_and_lane_counts_for_the_start_and_for_the_end(
    patience: Patience, start_s: int, finish_s: int
) -> None:
    assert patience.limits(NOW_MS, 10, 60) == Limits(NOW_MS + start_s * 1000, NOW_MS + finish_s * 1000)


@pytest.mark.parametrize("long_ago", ["1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59"])
def test_a_deadline_at_or_before_the_epoch_has_passed_and_does_not_stand_for_none(long_ago: str) -> None:
    limits = patience_of({DEADLINE: long_ago}).limits(NOW_MS, 10, 60)
    assert 0 < limits.start_by_ms < NOW_MS
    assert 0 < limits.finish_by_ms < NOW_MS


def test_a_lane_that_lets_requests_wait_longer_than_they_may_take_has_them_start_in_time() -> None:
    assert ENDLESS.limits(NOW_MS, 600, 60) == Limits(NOW_MS + 60_000, NOW_MS + 60_000)
