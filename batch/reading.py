"""Reads rows out of the input file, in the order in which they are run: neighbours in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batch.order import Order
from shared.file_index import FileFacts
from shared.files import Files

AT_ONCE = 256
_MOST_BYTES = 4 << 20
_GAP_BYTES = 32_768
"""What is read and not wanted, rather than asked for twice."""


@dataclass(frozen=True, slots=True)
class Read:
    """A row's line, and its position in the order."""

    position: int
    row: int
    text: bytes


async def read_rows(files: Files, facts: FileFacts, order: Order, positions: Sequence[int]) -> list[Read]:
    """The rows at the first of these positions, as many as fit into some megabytes, at least one.

    Raises ObjectMissingError, StorageUnavailableError.
    """
    taken: list[int] = []
    size = 0
    for position in positions[:AT_ONCE]:
        start, end = order.span(position)
        size += end - start
        if taken and size > _MOST_BYTES:
            break
        taken.append(position)
    found: list[Read] = []
    run: list[int] = []
    for position in taken:
        if run and not 0 <= order.span(position)[0] - order.span(run[-1])[1] <= _GAP_BYTES:
            found += await _read_run(files, facts, order, run)
            run = []
        run.append(position)
    return found + (await _read_run(files, facts, order, run) if run else [])


async def _read_run(files: Files, facts: FileFacts, order: Order, run: list[int]) -> list[Read]:
    """Rows that stand near each other, by one request."""
    start, end = order.span(run[0])[0], order.span(run[-1])[1]
    data = b"".join([chunk async for chunk in files.open(facts, start, end)])
    spans = [(position, *order.span(position)) for position in run]
    return [Read(position, order.row(position), data[low - start : high - start]) for position, low, high in spans]
