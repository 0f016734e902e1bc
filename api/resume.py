"""Going on with a stream: from the cursor that a client has seen to a place in the log.

One frame can hold several events, so a cursor may lie inside a frame; then the relay starts behind that frame, with the
events that the client does not have yet. The log is read from its beginning: it has no index, and that a cursor is an
event's end, and whose event, cannot be seen otherwise.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

import msgspec

from api.cursors import Cursor, behind, is_event_stream, suffix_of, with_cursors
from api.outlet import TICK_S
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
        ended_by: the attempt that wrote that end; empty for a script.
    """

    start: int = 0
    rest: bytes = b""
    head: Meta | None = None
    attempt: str = ""
    end: Meta | None = None
    ended_by: str = ""


async def seek(client: HotClient, keys: Keys, rid: str, cursor: Cursor, *, lost_grace_s: float) -> Position:
    """Where to go on behind `cursor`.

    A log that ends before it was rolled back by a failover, so its worker is waited for, `lost_grace_s`.

    Raises RequestError: 400 when no event ends there, 500 when another attempt than the client has read wrote there, or
    nobody has brought back what it has read. Raises BrokerUnavailableError.
    """
    at = Position()
    give_up_at_s = time.monotonic() + lost_grace_s
    while at.start < cursor.offset:
        try:
            part = await read_log(client, keys, rid, at.start)
        except msgspec.MsgspecError as error:  # a failover has changed the log between two reads
            raise errors.history_lost() from error
        if not part.frames:
            if not _was_there(cursor, at):
                raise errors.invalid_cursor(f"The cursor {cursor.offset} lies behind the end of this stream.")
            if part.terminal or time.monotonic() >= give_up_at_s:
                raise errors.history_lost()
            await asyncio.sleep(TICK_S)
        for end, frame in part.frames:
            if end >= cursor.offset:
                return _reached(at, end, frame, cursor)
            at = _behind(at, end, frame)
    return at


def _was_there(cursor: Cursor, at: Position) -> bool:
    """Whether something may have stood at a cursor that lies behind the log's end.

    The mark says that a replica has written the cursor, unless it is that of the attempt with whose end the log ends:
    `done` has compared the log's length with all that this attempt had published.
    """
    return cursor.mark != "" and not (at.ended_by and cursor.written_by(at.ended_by))


def _behind(at: Position, end: int, frame: Frame) -> Position:
    return Position(
        start=end,
        head=frame.meta if frame.kind & HEAD else at.head,
        attempt=frame.attempt or at.attempt,
        end=frame.meta if frame.kind & END else at.end,
        ended_by=frame.attempt if frame.kind & END else at.ended_by,
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
