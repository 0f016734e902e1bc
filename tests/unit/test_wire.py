"""wire: the bytes that processes exchange."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cursors import with_cursors
from shared.wire import (
    DELTA,
    END,
    HEAD,
    MESSAGE_HEADER_BYTES,
    RESUME,
    Counting,
    Frame,
    Meta,
    Request,
    Usage,
    WorkerCard,
    decode_card,
    decode_frame,
    decode_message,
    decode_request,
    encode,
    end_frame,
    split_log,
)

GOLDEN = Path(__file__).parent.parent / "golden"

REQUEST = Request(
    "POST", "/v1/chat/completions", [("content-type", "application/json")], b'{"model":"m"}', "interactive", 2
)
CARD = WorkerCard("w0123456789abcdef", "sim", "1.0", 8, [b'{"id":"m"}'], "draining", "host", 42, 1_700_000_000_000)
HEADERS = [("content-type", "text/event-stream")]
FRAMES = {
    "frame_head": Frame(HEAD, "0a1b2c3d4e5f", 0, [1, 300], 5, Meta(status=200, headers=HEADERS), b'data: {"a":1}\n\n'),
    "frame_delta": Frame(DELTA, "0a1b2c3d4e5f", 2, [70_000], 9, None, b'data: {"b":2}\n\n'),
    "frame_end": Frame(
        END,
        "0a1b2c3d4e5f",
        3,
        [],
        9,
        Meta(state="succeeded", reason="completed", usage=Usage(7, 3)),
        b"data: [DONE]\n\n",
    ),
    "frame_resume": Frame(RESUME, "f0e1d2c3b4a5", 3, [300], 14, Meta(after="0a1b2c3d4e5f"), b'data: {"c":3}\n\n'),
    "frame_script_end": decode_frame(end_frame("failed", "worker_lost", "why")),
}

metas = st.none() | st.builds(
    Meta,
    status=st.integers(0, 599),
    headers=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=3),
    state=st.text(max_size=9),
    reason=st.text(max_size=9),
    message=st.text(max_size=20),
    usage=st.none() | st.builds(Usage, st.integers(0, 2**31), st.integers(0, 2**31)),
    after=st.text(max_size=12),
)
frames = st.builds(
    Frame,
    kind=st.integers(0, 7),
    attempt=st.text(max_size=12),
    index=st.integers(-1, 2**31),
    token_ids=st.lists(st.integers(0, 2**31), max_size=5),
    text_len=st.integers(0, 2**31),
    meta=metas,
    data=st.binary(max_size=300),
)


@pytest.mark.parametrize(("name", "frame"), FRAMES.items(), ids=FRAMES.keys())
def test_frames_have_the_bytes_that_running_processes_know(name: str, frame: Frame) -> None:
    golden = (GOLDEN / f"{name}.msgpack").read_bytes()
    assert encode(frame) == golden
    assert decode_frame(golden) == frame


@pytest.mark.parametrize(
    ("name", "request_"), [("request", REQUEST), ("request_stays", msgspec.structs.replace(REQUEST, stays=True))]
)
def test_requests_have_the_bytes_that_running_processes_know(name: str, request_: Request) -> None:
    golden = (GOLDEN / f"{name}.msgpack").read_bytes()
    assert encode(request_) == golden
    assert decode_request(golden) == request_


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("worker_card", CARD),
        ("worker_card_counting", msgspec.structs.replace(CARD, counting=Counting("0a1b2c3d", 3, 5, 90))),
    ],
)
def test_cards_have_the_bytes_that_running_processes_know(name: str, card: WorkerCard) -> None:
    golden = (GOLDEN / f"{name}.msgpack").read_bytes()
    assert encode(card) == golden
    assert decode_card(golden) == card


def test_a_field_that_a_later_release_adds_is_ignored() -> None:
    later = msgspec.msgpack.decode(encode(REQUEST)) | {"added_later": [1, 2], "version": 2}
    assert decode_request(msgspec.msgpack.encode(later)).body == REQUEST.body
    meta = msgspec.msgpack.decode(encode(FRAMES["frame_end"]))
    meta[5]["added_later"] = "x"
    assert decode_frame(msgspec.msgpack.encode(meta)) == FRAMES["frame_end"]


def test_fields_that_an_earlier_release_does_not_send_have_defaults() -> None:
    body = {"method": "POST", "path": "/", "headers": [], "body": b"", "lane": "batch"}
    assert decode_request(msgspec.msgpack.encode(body)).width == 1


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x97", b"hello", encode({"a": 1}), encode([1, 2, 3])])
def test_junk_is_an_error_and_never_a_frame(junk: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_frame(junk)


def test_the_data_of_a_frame_are_its_last_bytes() -> None:
    for frame in FRAMES.values():
        assert encode(frame).endswith(frame.data)


def test_a_live_message_is_a_header_of_six_bytes_and_the_frame() -> None:
    frame = encode(FRAMES["frame_delta"])
    header = struct.pack(">BBI", 0x92, 0xCE, 1_234_567)  # what shared/lua/finish.lua puts in front
    assert len(header) == MESSAGE_HEADER_BYTES
    assert decode_message(header + frame) == (1_234_567, FRAMES["frame_delta"])


@given(frames)
def test_any_frame_survives_encoding(frame: Frame) -> None:
    assert decode_frame(encode(frame)) == frame


@given(st.lists(frames, max_size=8), st.integers(0, 2**40))
def test_any_sequence_of_frames_survives_a_log(sequence: list[Frame], offset: int) -> None:
    pieces = [encode(frame) for frame in sequence]
    got = list(split_log(b"".join(pieces), offset))
    assert [frame for _, frame in got] == sequence
    assert [end for end, _ in got] == [offset + len(b"".join(pieces[: i + 1])) for i in range(len(pieces))]


@given(st.lists(frames, min_size=1, max_size=5), st.data())
def test_a_frame_that_is_cut_off_is_left_for_the_next_slice(sequence: list[Frame], data: st.DataObject) -> None:
    log = b"".join(encode(frame) for frame in sequence)
    cut = data.draw(st.integers(0, len(log)))
    first = list(split_log(log[:cut], 0))
    cursor = first[-1][0] if first else 0
    rest = list(split_log(log[cursor:], cursor))
    assert [frame for _, frame in (*first, *rest)] == sequence


@given(st.binary(max_size=60))
def test_what_is_no_log_ends_or_raises_one_kind_of_error(junk: bytes) -> None:
    with contextlib.suppress(msgspec.MsgspecError):
        list(split_log(junk, 0))


@given(
    st.lists(st.lists(st.integers(0, 9).map(lambda n: b"data: %d" % n), min_size=1, max_size=4), min_size=1, max_size=5)
)
def test_an_events_cursor_is_the_log_offset_of_its_own_end(steps: list[list[bytes]]) -> None:
    log, client = b"", b""
    for events in steps:
        data = b"".join(event + b"\n\n" for event in events)
        log += encode(Frame(DELTA, "a", 0, [], 0, None, data))
        client += with_cursors(data, len(log), b"")
    seen = [tuple(event.split(b"\n", 1)) for event in client.split(b"\n\n")[:-1]]
    assert [event for _, event in seen] == [event for events in steps for event in events]
    for cursor, event in seen:
        offset = int(cursor.removeprefix(b"id: "))
        assert log[:offset].endswith(event + b"\n\n")
