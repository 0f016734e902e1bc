"""Refusals: what each answer of `admit` becomes for the client."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest

from api import problems
from api.refusals import FALLBACK_S, refusal
from shared.errors import RequestError
from shared.outcomes import Admitted


def told(admitted: Admitted, *, ended: bool = False) -> RequestError:
    return refusal(admitted, lane="batch", tenant_cap=7, ended=ended)


@pytest.mark.parametrize(
    ("admitted", "status", "code", "says"),
    [
        (Admitted("FULL", "", 9, 3200), 429, "queue_full", "9 requests are waiting"),
        (Admitted("SHARE", "", 9, 3200), 429, "queue_full", "You hold your share of the queue: 9 of your requests"),
        (Admitted("BUSY", "", 9, 3200), 429, "no_free_slot", "the lane `batch` lets nobody wait"),
        (Admitted("LATE", "", 9500, 3200), 429, "deadline_unachievable", "about 9.5 s"),
        (Admitted("TENANT", "", 7), 429, "rate_limit_exceeded", "You have 7 requests in progress"),
        (Admitted("CLOSED"), 503, "lane_draining", "The lane `batch` is being drained"),
        (Admitted("EXPIRED"), 503, "queue_timeout", "No worker could start"),
    ],
)
def test_every_refusal_has_its_status_its_code_and_says_when_to_come_again(
    admitted: Admitted, status: int, code: str, says: str
) -> None:
    error = told(admitted)
    assert (error.status, error.code) == (status, code)
    assert says in error.message
    headers = problems.headers(error)
    assert 1 <= int(headers["Retry-After"]) <= 30
    assert "x-should-retry" not in headers, "the SDK decides by the status, and tries again"


@pytest.mark.parametrize("outcome", ["FULL", "SHARE", "BUSY"])
def test_a_turn_that_admit_gave_is_passed_on_exactly(outcome: str) -> None:
    assert problems.headers(told(Admitted(outcome, "", 9, 3217)))["retry-after-ms"] == "3217"  # type: ignore[arg-type]


def test_how_much_too_long_a_wait_is_is_nobodys_own_turn() -> None:
    assert len({problems.headers(told(Admitted("LATE", "", 9500, 3217)))["retry-after-ms"] for _ in range(50)}) > 20


@pytest.mark.parametrize("outcome", sorted(FALLBACK_S))
def test_where_no_turn_is_known_the_fallback_is_told_with_jitter(outcome: str) -> None:
    told_ms = {int(problems.headers(told(Admitted(outcome)))["retry-after-ms"]) for _ in range(50)}  # type: ignore[arg-type]
    assert len(told_ms) > 20
    assert all(0.8 <= ms / 1000 / FALLBACK_S[outcome] <= 1.21 for ms in told_ms)


def test_a_tenant_at_its_cap_is_told_the_limit_what_is_left_and_when() -> None:
    headers = problems.headers(told(Admitted("TENANT", "", 7)))
    limits = {name: value for name, value in headers.items() if name.startswith("x-ratelimit-")}
    assert limits == {
        "x-ratelimit-limit-requests": "7",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "2s",
    }


def test_a_deadline_that_has_passed_at_the_door_is_not_to_be_tried_again() -> None:
    error = told(Admitted("EXPIRED"), ended=True)
    assert (error.status, error.code, error.should_retry) == (504, "deadline_exceeded", False)


def test_no_answer_of_admit_is_forgotten() -> None:
    outcomes = set(get_args(get_type_hints(Admitted)["outcome"]))
    assert outcomes == {"OK", "DUP", "CONFLICT", "EXPIRED", *FALLBACK_S}
