"""The header Prefer."""

from __future__ import annotations

import time

import pytest

from api.idempotency import terms_of
from api.preferences import responds_async


@pytest.mark.parametrize(
    "prefer",
    [
        "respond-async",
        "Respond-Async",
        " respond-async ,wait=10",
        "wait=10, respond-async",
        'foo="a, b";c="d", respond-async;x=1',
        'respond-async=""',
        ",,respond-async,",
    ],
)
def test_respond_async_is_found_among_preferences(prefer: str) -> None:
    assert responds_async(prefer)


@pytest.mark.parametrize(
    "prefer",
    ["", "wait=10", "respond-asynchronously", "respond-async=1", 'foo="respond-async"', 'foo="a, respond-async, b"'],
)
def test_what_only_looks_like_it_is_not_it(prefer: str) -> None:
    assert not responds_async(prefer)


@pytest.mark.parametrize("prefer", ['"' * 100_000, '"\\' * 50_000, "," * 100_000, "=" * 100_000])
def test_a_hostile_header_is_read_at_once(prefer: str) -> None:
    began_s = time.monotonic()
    assert not responds_async(prefer)
    assert time.monotonic() - began_s < 1


def test_who_wants_the_request_to_end_with_the_connection_cannot_come_back_for_it() -> None:
    assert terms_of({"prefer": "respond-async"}).later
    assert terms_of({"prefer": "respond-async", "x-on-disconnect": "continue"}).later
    assert not terms_of({"prefer": "respond-async", "x-on-disconnect": "cancel"}).later
    assert not terms_of({}).later
