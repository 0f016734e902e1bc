"""The parts of a batch process that need nobody: lines, order, windows, pace."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.answers import usage_of
from batch.lines import Line, lines_of
from batch.order import ENTRY_BYTES, OrderBuilder, unpacked
from batch.pace import Pace
from batch.rows import FaultError, line_out, prefix_of, row_of
from shared.batch_windows import hours_of, window_s
from shared.ids import batch_file_id, created_ms, new_batch_id, row_request_id, shard_of


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for first in range(0, len(data), size):
        yield data[first : first + size]


async def read(data: bytes, size: int, most: int = 100) -> list[Line]:
    return [line async for some in lines_of(pieces(data, size), most) for line in some]


@given(
    st.lists(st.sampled_from([b"a", b"bb\r", b"", b"  ", b"x" * 30]), max_size=12), st.integers(1, 40), st.booleans()
)
async def test_lines_are_those_of_an_editor_however_the_file_comes(lines: list[bytes], size: int, ends: bool) -> None:  # noqa: FBT001
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    found = await read(data, size)
    assert [(line.number, line.text) for line in found] == [
        (number, text) for number, text in enumerate(data.split(b"\n"), 1) if text.strip()
    ]
    assert all(data[line.offset : line.offset + line.length] == line.text for line in found)


@pytest.mark.parametrize("size", [1, 7, 64, 1_000])
async def test_a_line_that_is_too_long_is_told_and_skipped(size: int) -> None:
    data = b"a\n" + b"x" * 200 + b"\nb\n" + b"y" * 150
    found = await read(data, size)
    assert [(line.number, line.length, line.text) for line in found] == [
        (1, 1, b"a"),
        (2, 200, None),
        (3, 1, b"b"),
        (4, 150, None),
    ]


def test_rows_that_begin_alike_run_one_after_the_other_and_the_order_survives_storage() -> None:
    builder = OrderBuilder()
    for row, prefix in enumerate((7, 8, 7, 0, 8, 7)):
        builder.add(100 * row, 50 + row, prefix)
    order = unpacked(builder.built().packed())
    assert [order.row(position) for position in range(len(order))] == [0, 2, 5, 1, 4, 3]
    assert order.held_bytes == len(order.packed()) == 6 * ENTRY_BYTES
    assert order.span(2) == (500, 555)
    with pytest.raises(ValueError, match="cut off"):
        unpacked(b"x" * 17)


def test_what_begins_alike_is_what_the_cache_can_share() -> None:
    system = b'{"messages":[{"role":"system","content":"S"},{"role":"user","content":"%b"}]}'
    assert prefix_of(system % b"one") == prefix_of(system % b"two") != 0
    other = b'{"messages":[{"role":"system","content":"T"},{"role":"user","content":"one"}]}'
    assert prefix_of(other) != prefix_of(system % b"one")
    assert prefix_of(b'{"messages":[{"role":"user","content":"one"}]}') == 0
    assert prefix_of(b'{"input":"x","instructions":"I"}') == prefix_of(b'{"input":"y","instructions":"I"}') != 0
    assert prefix_of(b"[]") == 0


@pytest.mark.parametrize(("text", "seconds"), [("1h", 3_600), ("24h", 86_400), ("7d", 604_800), ("168h", 604_800)])
def test_a_window_is_whole_hours_or_days(text: str, seconds: int) -> None:
    assert window_s(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "0h", "169h", "8d", "1.5h", "24 h", "-1h", "24H", None, 24])
def test_other_windows_are_none(text: object) -> None:
    assert window_s(text) is None


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def test_hours_may_span_midnight_and_follow_the_clocks_of_a_place() -> None:
    night = hours_of({"from": "22:00", "to": "06:00", "timezone": "Europe/Berlin"})
    assert night.opens_in_s(at("2026-01-10T22:30:00")) == 0  # 23:30 there
    assert night.opens_in_s(at("2026-01-10T04:59:00")) == 0
    assert night.opens_in_s(at("2026-01-10T05:00:00")) == 16 * 3_600
    assert night.opens_in_s(at("2026-07-10T20:00:00")) == 0  # summer
    day = hours_of({"from": "09:00", "to": "17:00"})
    assert day.opens_in_s(at("2026-01-10T08:59:30")) == 30
    assert day.opens_in_s(at("2026-01-10T17:00:00")) == 16 * 3_600


def test_the_ids_of_a_batchs_rows_and_files_are_always_the_same() -> None:
    batch, made = new_batch_id(), 1_790_000_000_000
    rid = row_request_id(batch, made, 7, 0)
    assert rid == row_request_id(batch, made, 7, 0)
    assert len({rid, row_request_id(batch, made, 8, 0), row_request_id(batch, made, 7, 1)}) == 3
    assert (shard_of(rid), created_ms(rid)) == (0, made)
    assert batch_file_id(batch, made, "output") != batch_file_id(batch, made, "error")
    assert len(batch_file_id(batch, made, "output")) == len("file-") + 24


def test_a_line_out_is_one_line_whatever_the_body_is() -> None:
    line = line_out('a"b', "req_1", 200, b'{\n "x": 1}', None)
    assert line == (
        b'{"id":"batch_req_1","custom_id":"a\\"b","response":{"status_code":200,"request_id":"req_1",'
        b'"body":{"x":1}},"error":null}\n'
    )


def test_usage_is_what_the_answer_says_in_either_dialect() -> None:
    chat = b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}'
    response = b'{"usage":{"input_tokens":5,"output_tokens":6,"output_tokens_details":{"reasoning_tokens":1}}}'
    names = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
    assert [usage_of(chat)[name] for name in names] == [3, 4, 2, 0]
    assert [usage_of(response)[name] for name in names] == [5, 6, 0, 1]
    assert usage_of(b'{"usage":null}') == usage_of(b"[]") == {}


@pytest.mark.parametrize("depth", [2, 100_000])
def test_a_line_of_nonsense_is_a_fault_and_no_crash(depth: int) -> None:
    with pytest.raises(FaultError):
        row_of(b"[" * depth)


def test_the_pace_is_unknown_before_anything_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    pace = Pace()
    assert pace.left_s(10) is None
    for _ in range(20):
        now_s += 0.5
        pace.done()
    assert pace.rows_per_s == pytest.approx(2, rel=0.1)
    assert pace.left_s(10) == pytest.approx(5, rel=0.1)
