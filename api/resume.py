"""Going on with a stream: from the cursor that a client has seen to a place in the log.

One frame can hold several events, so a cursor may lie inside a frame; then the relay starts behind that frame, with the
events that the client does not have yet. The log is read from its beginning: it has no index, and that a cursor is an
event's end, and whose event, cannot be seen otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from api.cursors import Cursor, behind, is_event_stream, suffix_of, with_cursors
from shared import errors
from shared.frames import read_log
from shared.hot import HotClient
from shared.keys import Keys
from shared.wire import END, HEAD, Frame, Meta


@dataclass(frozen=True, slots=True)
class Position:
    """Where a relay starts.

    Attributes:
        start: a frame's end, bytes; what follows it is read.
        rest: events of that frame that the client does not have, ready to be sent.
        head: of the answer, if it lies before `start`.
        attempt: who wrote the last frame before `start`; a script is nobody.
        end: of the request, if it lies before `start`.
    """

    start: int = 0
    rest: bytes = b""
    head: Meta | None = None
    attempt: str = ""
    end: Meta | None = None


async def seek(client: HotClient, keys: Keys, rid: str, cursor: Cursor) -> Position:
    """Where to go on behind `cursor`.

    Raises RequestError: 400 when no event ends there, 500 when another attempt than the client has read wrote there.
    Raises BrokerUnavailableError.
    """
    at = Position()
    while at.start < cursor.offset:
        try:
            part = await read_log(client, keys, rid, at.start)
        except msgspec.MsgspecError as error:  # a failover has changed the log between two reads
            raise errors.history_lost() from error
        if not part.frames:
            raise errors.invalid_cursor(f"The cursor {cursor.offset} lies behind the end of this stream.")
        for end, frame in part.frames:
            if end >= cursor.offset:
                return _reached(at, end, frame, cursor)
            at = _behind(at, end, frame)
    return at


def _behind(at: Position, end: int, frame: Frame) -> Position:
    return Position(
        start=end,
        head=frame.meta if frame.kind & HEAD else at.head,
        attempt=frame.attempt or at.attempt,
        end=frame.meta if frame.kind & END else at.end,
    )


def _reached(at: Position, end: int, frame: Frame, cursor: Cursor) -> Position:
    """The cursor lies in this frame, or at its end."""
    if not cursor.written_by(frame.attempt):
        raise errors.history_lost()
    at = _behind(at, end, frame)
    if end == cursor.offset:
        return at
    rest = behind(frame.data, end, cursor.offset)
    if rest is None or at.head is None or not is_event_stream(at.head):
        raise errors.invalid_cursor(f"The cursor {cursor.offset} is not the end of an event of this stream.")
    return replace(at, rest=with_cursors(rest, end, suffix_of(frame.attempt)))
