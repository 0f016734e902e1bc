"""The form in which a reader wants an answer that another request has asked for.

The log holds the answer as it was first asked for: as a stream or whole, with the usage or without. Whoever joins may
want the other form. An answer in the same form passes through byte for byte.
"""

from __future__ import annotations

from typing import Any

import msgspec

from api import assembly, dialects, problems
from api.cursors import is_event_stream, with_cursors
from api.relay import Relay
from api.timing import Timing
from shared import errors
from shared.wire import Meta

_OK = 200


class Shape:
    """Turns one answer into the form that one reader wants."""

    stays = False
    """Whether it stays when its reader is given another request to follow."""

    def __init__(self, relay: Relay, *, stream: bool, usage: bool | None = None, timing: Timing | None = None) -> None:
        """`usage`: whether the reader of a stream wants it; None: as it is. `timing`: its last event says the times."""
        self._relay = relay
        self._stream = stream
        self._usage = usage
        self._timing = timing
        self._whole: list[bytes] = []
        self._counted = False
        self._last: dict[str, Any] = {}
        self._done = b""

    def streams(self, head: Meta) -> bool:
        """Whether the reader gets events for an answer that opens with `head`. A refusal stays what it is."""
        return self._stream and (is_event_stream(head) or head.status == _OK)

    def piece(self, data: bytes) -> bytes:
        """What the reader of a stream gets for a piece of the answer; may be empty."""
        head = self._relay.head
        if head is not None and not is_event_stream(head):
            self._whole.append(data)
            return b""
        if self._timing is not None and data:
            self._timing.seen()
        elif self._usage is None:
            return data
        return b"".join(map(self._event, data.split(b"\n\n")))

    def _event(self, block: bytes) -> bytes:
        for data in assembly.events_of(block):
            if data == b"[DONE]" and (self._timing is not None or (self._usage and not self._counted)):
                self._done = block + b"\n\n"  # what comes before it is known at the end
                return b""
            if assembly.is_usage_chunk(data):
                self._counted = True
                if self._usage is False:
                    return b""
            elif not self._last and (self._usage or self._timing is not None):
                self._last = msgspec.json.decode(data)
        return block + b"\n\n" if block else b""

    def end(self, end: Meta) -> bytes:
        """What the reader of a stream gets once the request has succeeded; may be empty."""
        if self._whole:
            head = self._relay.head
            if head is not None and head.status != _OK:
                return dialects.event(problems.of_refusal(head.status, b"".join(self._whole)), "")
            if not _is_json(head):
                return dialects.event(
                    errors.invalid_request("This answer is not text: it cannot be read as events."), ""
                )
            events = assembly.to_chunks(b"".join(self._whole), usage=bool(self._usage))
            # one cursor for all of them, at the end: there is no place between them in the log
            if not self._relay.plain:
                events[-1] = with_cursors(events[-1], self._relay.cursor, self._relay.id_suffix)
            return b"".join(events)
        if not self._done:
            return b""
        added = []
        if self._usage and not self._counted and end.usage is not None:
            added.append(assembly.usage_chunk(self._last, end.usage))
        if self._timing is not None:
            added.append(assembly.timing_chunk(self._last, self._timing.facts(self._relay.head, end)))
        return b"".join([*added, self._done])

    def whole(self, body: bytes) -> bytes:
        """The whole answer for a reader that wants it so. Raises RequestError when the stream holds an error."""
        head, end = self._relay.head, self._relay.end
        if head is None or head.status != _OK or not is_event_stream(head):
            return body
        fault = next((data for data in assembly.events_of(body) if data.startswith(b'{"error":')), None)
        if fault is not None and (refusal := problems.of_first_event(b"data: %b\n\n" % fault)) is not None:
            raise refusal
        return assembly.to_whole(body, end.usage if end is not None else None)


def _is_json(head: Meta | None) -> bool:
    kinds = [value for name, value in head.headers if name == "content-type"] if head is not None else []
    return bool(kinds) and kinds[0].startswith("application/json")
