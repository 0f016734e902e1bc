"""Cursors: the `id:` lines of a stream's events, and what a client sends to go on behind one.

A cursor is the log offset of an event's end.
"""

from __future__ import annotations

import re

from shared import errors
from shared.wire import Meta

_CURSOR = re.compile(r"\d{1,15}")


def is_event_stream(head: Meta) -> bool:
    """Whether an answer with this head is Server-Sent Events."""
    return any(name == "content-type" and value.startswith("text/event-stream") for name, value in head.headers)


def with_cursors(data: bytes, end: int) -> bytes:
    r"""Puts an `id:` line in front of each event of `data`.

    `end` is the log's length after the frame, which is where `data` ends. An event's id is the log offset of its own
    end, so a client that saw only some of the events of a frame can go on behind the last one. Events end with a blank
    line, and JSON never holds a raw one.
    """
    if data.count(b"\n\n") == 1:
        return b"id: %d\n%b" % (end, data)
    out = []
    offset = end - len(data)
    for event in data.split(b"\n\n")[:-1]:
        offset += len(event) + 2
        out.append(b"id: %d\n%b\n\n" % (offset, event))
    return b"".join(out)


def cursor_of(sent: str | None) -> int:
    """The cursor that a client sent; 0 for none. Raises RequestError (400)."""
    if sent is None or sent == "":
        return 0
    if not _CURSOR.fullmatch(sent):
        raise errors.invalid_cursor(f"`{sent[:40]}` is not a cursor. Send the last event's `id` as it was received.")
    return int(sent)
