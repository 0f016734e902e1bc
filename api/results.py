"""What a batch has done so far, a page at a time: read from the parts that are committed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from shared import errors
from shared.batches import Batch, Batches, Part
from shared.errors import ObjectMissingError
from shared.storage import Storage

_PLACE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")
_PARTS_AT_ONCE = 16
_MOST_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class At:
    """A place in the results: behind so many lines of part number `part`."""

    part: int = 0
    line: int = 0

    def __str__(self) -> str:
        return f"{self.part}-{self.line}"


@dataclass(slots=True)
class Results:
    """A page: lines of JSON, where the next one begins, and whether there is more by now."""

    place: At
    lines: list[bytes] = field(default_factory=list)
    more: bool = False


def place_of(after: str) -> At:
    """The place that a client names; empty is the beginning. Raises RequestError (400)."""
    if not after:
        return At()
    match = _PLACE.fullmatch(after)
    if match is None:
        raise errors.invalid_request("`after` must be the `next` of a page before.", param="after")
    return At(int(match[1]), int(match[2]))


async def page_of(storage: Storage, batches: Batches, batch: Batch, place: At, limit: int) -> Results:
    """The lines behind a place: `limit` of them at most, and some megabytes.

    Raises RequestError (410) when the parts are not kept any more: then the files have everything.
    """
    if batch.text("parts_gone"):
        raise errors.result_expired(batch.id)
    page, taken = Results(place), 0
    while True:
        parts = await batches.parts(batch.id, page.place.part, _PARTS_AT_ONCE)
        for part in parts:
            lines = (await _lines(storage, batch.id, part))[page.place.line :]
            room = lines[: limit - len(page.lines)]
            page.lines += room
            taken += sum(map(len, room))
            if len(room) < len(lines):
                page.place, page.more = At(page.place.part, page.place.line + len(room)), True
                return page
            page.place = At(page.place.part + 1)
            if len(page.lines) >= limit or taken >= _MOST_BYTES:
                page.more = bool(await batches.parts(batch.id, page.place.part, 1))
                return page
        if len(parts) < _PARTS_AT_ONCE:
            if not parts and (now := await batches.find(batch.id)) is not None and now.text("parts_gone"):
                raise errors.result_expired(batch.id)  # they went since `batch` was read
            return page


async def _lines(storage: Storage, batch: str, part: Part) -> list[bytes]:
    lines = []
    try:
        for suffix, size in (("out", part.out_bytes), ("err", part.err_bytes)):
            if size:
                lines += (await storage.read(f"{part_object(batch, part.name)}.{suffix}")).splitlines()
    except ObjectMissingError as error:
        raise errors.result_expired(batch) from error
    return lines


def part_object(batch: str, name: str) -> str:
    """Where a part lies, without `.out` and `.err`."""
    return f"batches/{batch}/parts/{name}"
