"""Going on with a stream: from the cursor that a client has seen to a place in the log.

A cursor is the log offset of an event's end. One frame can hold several events, so a cursor may lie inside a frame;
then the relay starts at that frame and the events up to the cursor are left out. The log is read from its beginning:
it has no index, and that a cursor is an event's end cannot be seen otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from api.cursors import is_event_stream, with_cursors
from shared import errors
from shared.frames import read_log
from shared.hot import HotClient
from shared.keys import Keys
from shared.wire import END, HEAD, Frame, Meta

_ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a relay starts.

    Attributes:
        start: a frame's end, bytes; what follows it is read.
        after: cursor of the last event that the client has; 0 when `start` says it all.
        head: of the answer, if it lies before `start`.
        attempt: whose text the client has.
        end: of the request, if it lies before `start`.
    """

    start: int = 0
    after: int = 0
    head: Meta | None = None
    attempt: str = ""
    end: Meta | None = None


async def seek(client: HotClient, keys: Keys, rid: str, cursor: int) -> Position:
    """Where to go on behind `cursor`. Raises RequestError (400, 500), BrokerUnavailableError."""
    at = Position()
    while at.start < cursor:
        try:
            part = await read_log(client, keys, rid, at.start)
        except msgspec.MsgspecError as error:  # a failover has changed the log between two reads
            raise errors.history_lost() from error
        if not part.frames:
            raise errors.invalid_cursor(f"The cursor {cursor} lies behind the end of this stream.")
        for end, frame in part.frames:
            if end > cursor:
                return _inside(at, end, frame, cursor)
            at = _behind(at, end, frame)
            if end == cursor:
                break
    return at


def _behind(at: Position, end: int, frame: Frame) -> Position:
    return Position(
        start=end,
        head=frame.meta if frame.kind & HEAD else at.head,
        attempt=frame.attempt or at.attempt,
        end=frame.meta if frame.kind & END else at.end,
    )


def _inside(at: Position, end: int, frame: Frame, cursor: int) -> Position:
    head = frame.meta if frame.kind & HEAD else at.head
    known = []
    if head is not None and is_event_stream(head):
        known = [int(number) for number in _ID.findall(with_cursors(frame.data, end))] if frame.data else []
    if cursor not in known:
        raise errors.invalid_cursor(f"The cursor {cursor} is not the end of an event of this stream.")
    return Position(at.start, cursor, at.head, at.attempt, at.end)
