"""cursors: the ids of events, what a client may send, and what lies behind one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cursors import Cursor, behind, cursor_of, suffix_of, with_cursors
from shared.errors import RequestError
from shared.ids import new_attempt_id

EVENTS = st.lists(st.integers(0, 999).map(lambda number: b"data: %d\n\n" % number), min_size=1, max_size=5)


def test_an_events_id_is_its_end_and_the_mark_of_the_attempt_that_wrote_it() -> None:
    suffix = suffix_of("a1b2c3d4e5f6")
    assert with_cursors(b"data: x\n\n", 100, suffix) == b"id: 100-a1b2c3\ndata: x\n\n"
    two = b"id: 90-a1b2c3\ndata: x\n\nid: 100-a1b2c3\ndata: yz\n\n"
    assert with_cursors(b"data: x\n\ndata: yz\n\n", 100, suffix) == two


def test_without_an_attempt_an_id_is_a_plain_offset() -> None:
    assert with_cursors(b"data: x\n\n", 100, suffix_of("")) == b"id: 100\ndata: x\n\n"


@given(EVENTS)
def test_every_id_is_a_cursor_of_its_attempt_and_of_no_other(events: list[bytes]) -> None:
    writer, other = new_attempt_id(), new_attempt_id()
    for line in with_cursors(b"".join(events), 1_000, suffix_of(writer)).decode().splitlines():
        if line.startswith("id: "):
            cursor = cursor_of(line.removeprefix("id: "))
            assert cursor.written_by(writer)
            assert not cursor.written_by(other)
            assert not cursor.written_by("")


def test_a_bare_offset_is_a_cursor_of_whoever_wrote_there() -> None:
    assert cursor_of("4711") == Cursor(4711, "")
    assert cursor_of("4711").written_by(new_attempt_id())


@pytest.mark.parametrize("sent", [None, ""])
def test_no_cursor_is_the_beginning(sent: str | None) -> None:
    assert cursor_of(sent) == Cursor(0, "")


@pytest.mark.parametrize(
    "sent",
    ["abc", "-1", "1e3", "-a1b2c3", "12-", "12-a1b2c3d", "12-A1B2C3", "12-a1-b2", "12 -a1", "9" * 16, "\u0664", "12\n"],
)
def test_what_is_no_cursor_is_a_clients_error(sent: str) -> None:
    with pytest.raises(RequestError) as raised:
        cursor_of(sent)
    assert (raised.value.status, raised.value.code) == (400, "invalid_cursor")


@given(EVENTS, st.integers(0, 10_000))
def test_behind_each_events_end_comes_the_rest_and_behind_anything_else_nothing(events: list[bytes], gap: int) -> None:
    data = b"".join(events)
    start, end = gap, gap + len(data)
    ends = {start + len(b"".join(events[: count + 1])): count + 1 for count in range(len(events))}
    for offset in range(max(0, start - 5), end + 1):
        expected = b"".join(events[ends[offset] :]) if offset in ends else None
        assert behind(data, end, offset) == expected
