"""The parts of a batch → its output file and its error file.

Their ids are made of the batch's, so a driver that goes on where another one was killed writes the same files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from batch.lines import lines_of
from batch.owned import Owned
from batch.rows import FaultError, line_without, row_of
from batch.tools import Tools
from shared.batches import Batch, Part, is_set
from shared.errors import ObjectMissingError
from shared.file_index import FileFacts
from shared.ids import batch_file_id, row_request_id

_EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
_MARGIN_BYTES = 65_536
_LOOKS_AT_ONCE = 32


class Finalizing:
    """Of one batch."""

    def __init__(self, tools: Tools, owned: Owned, folder: str) -> None:
        self._tools = tools
        self._owned = owned
        self._folder = folder
        self._expired = 0

    async def run(self, source: FileFacts | None, bitmap: bytes, *, expired: bool) -> dict[str, str | int]:
        """Writes the files. Returns the facts with which the batch ends. Raises what storage and Redis raise.

        `source`: the input file, for the rows that are left; None when it is gone.
        """
        parts = await self._owned.parts()
        await self._check(parts)
        facts: dict[str, str | int] = {}
        left = self._left(source, bitmap) if expired and source is not None else None
        if any(part.out_bytes for part in parts):
            facts["output_file_id"] = await self._file("output", self._lines(parts, "out"))
        if left is not None or any(part.err_bytes for part in parts):
            file_id = await self._file("error", self._lines(parts, "err", left))
            facts |= {"error_file_id": file_id} if file_id else {}
        if self._expired:
            facts["failed"] = self._owned.batch.number("failed") + self._expired
        return facts

    async def _check(self, parts: list[Part]) -> None:
        """Raises ObjectMissingError when a part is not whole, before what an earlier driver has written is touched."""
        names = [
            (f"{self._folder}/{part.name}.{suffix}", size)
            for part in parts
            for suffix, size in (("out", part.out_bytes), ("err", part.err_bytes))
            if size
        ]
        for first in range(0, len(names), _LOOKS_AT_ONCE):
            some = names[first : first + _LOOKS_AT_ONCE]
            sizes = await asyncio.gather(*(self._tools.storage.size(name) for name, _ in some))
            for (name, size), found in zip(some, sizes, strict=True):
                if found != size:
                    raise ObjectMissingError(f"{name} should have {size} bytes, and has {found}")

    async def _file(self, what: str, lines: AsyncIterator[bytes]) -> str:
        """The id of a file of these lines; empty when there are none."""
        batch, files = self._owned.batch, self._tools.files
        tenant, file_id = batch.text("tenant"), batch_file_id(batch.id, batch.number("created_at_ms"), what)
        await self._owned.keep()  # whoever was thought dead deletes nothing of his successor's
        await files.delete(tenant, file_id)  # an earlier driver's, whose facts may be those of other bytes
        received = await files.receive(tenant, lines, file_id=file_id)
        if not received.bytes:
            await files.discard(received)
            return ""
        kept_s = batch.number("output_expires_s") or self._tools.settings.batch_output_ttl_s
        expires_at = self._owned.now_ms() // 1000 + kept_s
        await files.register(received, f"{batch.id}_{what}.jsonl", "batch_output", expires_at)
        return file_id

    async def _lines(
        self, parts: list[Part], suffix: str, more: AsyncIterator[bytes] | None = None
    ) -> AsyncIterator[bytes]:
        for part in parts:
            if part.out_bytes if suffix == "out" else part.err_bytes:
                async for chunk in self._tools.storage.chunks(f"{self._folder}/{part.name}.{suffix}"):
                    yield chunk
        if more is not None:
            async for chunk in more:
                yield chunk

    async def _left(self, source: FileFacts, bitmap: bytes) -> AsyncIterator[bytes]:
        """Lines for the rows that are not committed."""
        batch, number = self._owned.batch, -1
        most_bytes = self._tools.settings.max_body_bytes + _MARGIN_BYTES
        async for lines in lines_of(self._tools.files.open(source), most_bytes):
            found = []
            for line in lines:
                number += 1
                if not is_set(bitmap, number) and line.text is not None:
                    rid = row_request_id(batch.id, batch.number("created_at_ms"), number, 0)
                    found.append(line_without(_id_of(line.text), rid, *_EXPIRED))
            self._expired += len(found)
            yield b"".join(found)


def _id_of(text: bytes) -> str:
    try:
        return row_of(text).custom_id
    except FaultError:
        return ""


def input_gone(batch: Batch) -> str:
    """What is told of a batch whose input file is not there."""
    return f"Cannot find file '{batch.text('input_file_id')}'. It does not exist, has expired, or is somebody else's."
