"""What batch processes say of all batches that have not ended."""

from __future__ import annotations

import json

import pytest
from prometheus_client import REGISTRY

from batch.bridge import measure
from shared.batches import Batch

NOW_MS = 1_774_000_000_000
HOUR_MS = 3_600_000


def batch(**facts: object) -> Batch:
    """One that has an hour left and half of it to do."""
    usual: dict[str, object] = {
        "status": "in_progress",
        "created_at_ms": NOW_MS - HOUR_MS,
        "expires_at_ms": NOW_MS + HOUR_MS,
        "total": 10,
        "completed": 4,
        "left_s": "1800.0",
    }
    return Batch("batch_1", {name: str(value) for name, value in {**usual, **facts}.items()})


def late(*batches: Batch) -> float | None:
    measure(list(batches), NOW_MS)
    return REGISTRY.get_sample_value("penstock_batches_late")


def test_a_batch_with_more_left_than_time_is_late() -> None:
    assert late() == 0
    assert late(batch()) == 0
    assert late(batch(), batch(left_s="3700.0"), batch(left_s="9999.9")) == 2


@pytest.mark.parametrize(
    "facts",
    [
        {"left_s": ""},
        {"completed": 10},
        {"status": "finalizing"},
        {"start_after": NOW_MS // 1000 + 60},
        {"start_window": json.dumps({"from": "20:00", "to": "21:00", "timezone": "UTC"})},
    ],
    ids=[
        "its pace is not known",
        "all rows are done",
        "it is being put together",
        "it waits to start",
        "its hours are over",
    ],
)
def test_a_batch_is_not_late_when(facts: dict[str, object]) -> None:
    assert late(batch(**{"left_s": "9999.9", **facts})) == 0


def test_the_first_webhook_that_is_lost_is_an_increase() -> None:
    import batch.hooks  # noqa: F401, PLC0415 - counts from its import on

    for outcome in ("given_up", "refused"):
        labels = {"outcome": outcome}
        assert REGISTRY.get_sample_value("penstock_webhook_attempts_total", labels) is not None, outcome
