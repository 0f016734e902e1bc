"""In which order rows are run, and where they stand in the input file: the index of a batch, an object on storage.

Rows that begin alike (one system prompt, the same instructions, the same first message) come one after the other, in
the order in which their kinds appear in the file: a worker that has just read a prefix has it in its KV cache.
"""

from __future__ import annotations

import struct
from array import array

_ENTRY = struct.Struct("<QII")
ENTRY_BYTES = _ENTRY.size


class Order:
    """Rows by position. 16 bytes each."""

    def __init__(self, offsets: array[int], lengths: array[int], rows: array[int]) -> None:
        self._offsets = offsets
        self._lengths = lengths
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, position: int) -> int:
        """The number of the row at a position, from 0 on, as in the file."""
        return self._rows[position]

    def span(self, position: int) -> tuple[int, int]:
        """Where it stands in the file: bytes from, and to before."""
        offset = self._offsets[position]
        return offset, offset + self._lengths[position]

    @property
    def held_bytes(self) -> int:
        """What it takes in memory."""
        return sum(column.itemsize * len(column) for column in (self._offsets, self._lengths, self._rows))

    def packed(self) -> bytes:
        """As an object."""
        columns = zip(self._offsets, self._lengths, self._rows, strict=True)
        return b"".join(_ENTRY.pack(*entry) for entry in columns)


def unpacked(data: bytes) -> Order:
    """From an object. Raises ValueError."""
    if len(data) % ENTRY_BYTES:
        raise ValueError("an index is cut off")
    offsets, lengths, rows = array("Q"), array("I"), array("I")
    for offset, length, row in _ENTRY.iter_unpack(data):
        offsets.append(offset)
        lengths.append(length)
        rows.append(row)
    return Order(offsets, lengths, rows)


class OrderBuilder:
    """Takes rows as they stand in the file."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []
        self._groups = array("I")
        self._known: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, offset: int, length: int, prefix: int) -> None:
        """The next row; `prefix` is a hash of what it begins with."""
        self._spans.append((offset, length))
        self._groups.append(self._known.setdefault(prefix, len(self._known)))

    def built(self) -> Order:
        """The order."""
        rows = sorted(range(len(self._spans)), key=self._groups.__getitem__)
        offsets = array("Q", (self._spans[row][0] for row in rows))
        lengths = array("I", (self._spans[row][1] for row in rows))
        return Order(offsets, lengths, array("I", rows))
