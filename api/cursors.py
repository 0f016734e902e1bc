"""Cursors: the `id:` lines of a stream's events, and what a client sends to go on behind one.

A cursor is the log offset of an event's end and the mark of the attempt that wrote the event: `4711-9f3a01`. The offset
is enough to find the place. The mark is there for a log that was rolled back by a failover and written on by others:
what ends at the same place in another history is another text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared import errors
from shared.wire import Meta

_CURSOR = re.compile(r"([0-9]{1,15})(?:-([0-9a-z]{1,6}))?")
_MARK_CHARS = 6
"""Of an attempt id, which is random: that two attempts at one place have the same mark happens once in 16 million."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a client has read. `mark` is empty for one written by hand: whoever wrote there is then right."""

    offset: int = 0
    mark: str = ""

    def written_by(self, attempt: str) -> bool:
        """Whether a frame of this attempt is what the client has read last."""
        return self.mark in {"", _mark(attempt)}


def is_event_stream(head: Meta) -> bool:
    """Whether an answer with this head is Server-Sent Events."""
    return any(name == "content-type" and value.startswith("text/event-stream") for name, value in head.headers)


def suffix_of(attempt: str) -> bytes:
    """What follows the offset in the ids of an attempt's events."""
    return b"-%b" % _mark(attempt).encode() if attempt else b""


def with_cursors(data: bytes, end: int, suffix: bytes) -> bytes:
    r"""Puts an `id:` line in front of each event of `data`. `suffix` is that of the attempt that wrote it.

    `end` is the log's length after the frame, which is where `data` ends. An event's id says the log offset of its own
    end, so a client that saw only some of the events of a frame can go on behind the last one. Events end with a blank
    line, and JSON never holds a raw one.
    """
    if data.count(b"\n\n") == 1:
        return b"id: %d%b\n%b" % (end, suffix, data)
    out = []
    offset = end - len(data)
    for event in data.split(b"\n\n")[:-1]:
        offset += len(event) + 2
        out.append(b"id: %d%b\n%b\n\n" % (offset, suffix, event))
    return b"".join(out)


def behind(data: bytes, end: int, offset: int) -> bytes | None:
    """The events of `data`, which ends at `end`, behind the one that ends at `offset`; None when none ends there."""
    seen = len(data) - (end - offset)
    return data[seen:] if 0 < seen <= len(data) and data.endswith(b"\n\n", 0, seen) else None


def cursor_of(sent: str | None) -> Cursor:
    """The cursor that a client sent; the beginning for none. Raises RequestError (400)."""
    if sent is None or sent == "":
        return Cursor()
    found = _CURSOR.fullmatch(sent)
    if found is None:
        raise errors.invalid_cursor(f"`{sent[:40]}` is not a cursor. Send the last event's `id` as it was received.")
    return Cursor(int(found[1]), found[2] or "")


def _mark(attempt: str) -> str:
    return attempt[:_MARK_CHARS]
