"""ids: how they look."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import (
    MAX_SHARDS,
    is_file_id,
    new_attempt_id,
    new_file_id,
    new_request_id,
    new_worker_id,
    shard_of,
)


@given(st.integers(0, MAX_SHARDS - 1))
def test_a_request_id_carries_its_shard(shard: int) -> None:
    assert shard_of(new_request_id(shard)) == shard


def test_a_request_id_has_31_plain_characters() -> None:
    rid = new_request_id(31)
    assert len(rid) == 31
    assert rid.startswith("req_z")
    assert rid.isascii()
    assert rid == rid.lower()
    assert rid.replace("_", "").isalnum()


def test_request_ids_sort_by_the_time_of_their_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for now_ns in (1, 10**6, 10**12, 10**18, 17 * 10**17):
        monkeypatch.setattr(time, "time_ns", lambda now_ns=now_ns: now_ns)
        ids.append(new_request_id())
    assert ids == sorted(ids)


def test_file_ids_sort_by_the_time_of_their_creation_and_are_known_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for now_ns in (1, 10**6, 10**12, 10**18, 17 * 10**17):
        monkeypatch.setattr(time, "time_ns", lambda now_ns=now_ns: now_ns)
        ids.append(new_file_id())
    assert ids == sorted(ids)
    assert all(is_file_id(each) and len(each) == 29 for each in ids)


@pytest.mark.parametrize("junk", ["", "req_", "req_0", "chat_" + "0" * 26, "req_" + "0" * 28, "req_u" + "0" * 26])
def test_what_is_no_request_id_is_a_value_error(junk: str) -> None:
    with pytest.raises(ValueError, match=r"not a request id|substring not found"):
        shard_of(junk)


@pytest.mark.parametrize(
    "junk", ["", "file-", "file-" + "0" * 23, "0" * 29, "file-" + "u" * 24, "file-" + "A" * 24, "file-../" + "0" * 21]
)
def test_what_is_no_file_id_is_known_as_none(junk: str) -> None:
    assert not is_file_id(junk)


@pytest.mark.parametrize("new", [new_request_id, new_worker_id, new_attempt_id, new_file_id])
def test_ids_do_not_repeat(new: object) -> None:
    assert len({new() for _ in range(1_000)}) == 1_000  # type: ignore[operator]
