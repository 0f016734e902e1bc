"""The lines of a file that comes in pieces: one line and one piece in memory, never more."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import NamedTuple

_BLANK = b" \t\r"


class Line(NamedTuple):
    """One line that is not blank.

    Attributes:
        number: from 1 on; blank lines count, as in an editor.
        offset: byte at which it begins.
        length: bytes, without the line's end.
        text: None for one that is too long.
    """

    number: int
    offset: int
    length: int
    text: bytes | None


async def lines_of(chunks: AsyncIterable[bytes], most_bytes: int) -> AsyncIterator[list[Line]]:
    """The lines of a file, those that end in one piece at a time. A longer one than `most_bytes` comes without text."""
    rest, skipped = b"", 0
    number, offset = 1, 0
    async for chunk in chunks:
        found = []
        *whole, rest = (rest + chunk).split(b"\n")
        for text in whole:
            length = skipped + len(text)
            if skipped or length > most_bytes:
                found.append(Line(number, offset, length, None))
            elif text.strip(_BLANK):
                found.append(Line(number, offset, length, text))
            number, offset, skipped = number + 1, offset + length + 1, 0
        if skipped or len(rest) > most_bytes:
            skipped, rest = skipped + len(rest), b""
        yield found
    if skipped:
        yield [Line(number, offset, skipped + len(rest), None)]
    elif rest.strip(_BLANK):
        yield [Line(number, offset, len(rest), rest)]
