"""multipart/form-data, read as it comes: one part after the other, whichever way the body is cut into chunks.

Nothing is kept but what is left of one chunk. Whatever a client sends that is no form is a RequestError (400).
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from shared.errors import RequestError, invalid_request
from shared.http_errors import unsupported_media_type

_KIND = b"multipart/form-data"
_MOST_PARTS = 32
_MOST_TEXT_BYTES = 4_096
_SHOWN_CHARS = 60

Event = tuple[Literal["part", "data", "end", "over"], bytes]


@dataclass(frozen=True, slots=True)
class Part:
    """The head of a part; `filename` is None when it is a field."""

    name: str
    filename: str | None


class Form:
    """The parts of one body. Ask for a `part`, then for its `text` or its `chunks`, until there is none."""

    def __init__(self, body: AsyncIterator[bytes], content_type: str) -> None:
        """`content_type`: the header. Raises RequestError (400, 415)."""
        kind, options = parse_options_header(content_type)
        if kind != _KIND:
            raise unsupported_media_type(content_type[:_SHOWN_CHARS], "a form (`multipart/form-data`)")
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise invalid_request("The `Content-Type` of the form names no boundary.", param="Content-Type")
        self._body = body
        self._events: deque[Event] = deque()
        self._parts = 0
        self._in_part = False
        try:
            self._parser = _Parser(boundary, self._events)
        except FormParserError as error:
            raise _broken(str(error)) from error

    async def part(self) -> Part | None:
        """The head of the next part, None after the last one. What was not read of the one before is passed over."""
        while self._in_part:
            await self._data()
        kind, disposition = await self._next()
        if kind == "over":
            return None
        self._in_part = True
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise invalid_request(f"The form has more than {_MOST_PARTS} parts.")
        return _head(disposition)

    async def text(self, name: str) -> str:
        """The whole of this part, which is the field `name`."""
        value = b""
        async for data in self.chunks():
            value += data
            if len(value) > _MOST_TEXT_BYTES:
                raise invalid_request(f"`{name}` is longer than {_MOST_TEXT_BYTES} bytes.", param=name)
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise invalid_request(f"`{name}` is no UTF-8 text.", param=name) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of this part, as they come."""
        while self._in_part:
            if data := await self._data():
                yield data

    async def _data(self) -> bytes:
        kind, data = await self._next()
        self._in_part = kind == "data"
        return data

    async def _next(self) -> Event:
        while not self._events:
            chunk = await anext(self._body, None)
            if chunk is None:
                raise _broken("it ends before its last boundary" if self._parts else "it has no parts")
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _broken(str(error)) from error
        return self._events.popleft()


class _Parser(MultipartParser):
    """python-multipart's parser, telling what it finds as events."""

    def __init__(self, boundary: bytes, events: deque[Event]) -> None:
        self._events = events
        self._name = self._value = self._disposition = b""
        super().__init__(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": lambda: events.append(("part", self._disposition)),
                "on_part_data": lambda data, start, end: events.append(("data", data[start:end])),
                "on_part_end": lambda: events.append(("end", b"")),
                "on_end": lambda: events.append(("over", b"")),
            },
        )

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""


def _head(disposition: bytes) -> Part:
    kind, options = parse_options_header(disposition)
    name = options.get(b"name")
    if kind != b"form-data" or name is None:
        raise _broken("a part has no `Content-Disposition: form-data` with a name")
    filename = options.get(b"filename")
    return Part(name.decode(errors="replace"), None if filename is None else filename.decode(errors="replace"))


def _broken(why: str) -> RequestError:
    return invalid_request(f"The form could not be read: {why}.")
