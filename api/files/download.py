"""Downloads: the whole of a file or one range of it (RFC 9110, sections 13 and 14), with its length, streamed.

A file never changes under its id, so the id is its validator.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import formatdate
from urllib.parse import quote

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from api.observe import DIRECT_SEND
from api.transport import hang_up, hang_up_watch
from shared import file_errors
from shared.errors import ObjectMissingError, StorageUnavailableError
from shared.file_index import FileFacts
from shared.metrics import FILE_BYTES, FILE_TRANSFERS, child

log = logging.getLogger(__name__)

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._ ()-]")
_WHOLE, _PART, _UNCHANGED = 200, 206, 304


def etag(facts: FileFacts) -> str:
    """The validator of a file, in quotes."""
    return f'"{facts.id}"'


def wanted(facts: FileFacts, headers: Mapping[str, str]) -> tuple[int, int, int]:
    """Status, first byte and the one behind the last, of what a request asks for.

    What is no range, several ranges, and a range of something else (`If-Range`) is the whole, as the RFC wants it.
    Raises RequestError (416).
    """
    if {etag(facts), "*"} & {tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")}:
        return _UNCHANGED, 0, 0
    asked = _RANGE.fullmatch(headers.get("range", "").replace(" ", "").lower())
    if asked is None or headers.get("if-range", etag(facts)) not in {etag(facts), _modified(facts)}:
        return _WHOLE, 0, facts.bytes
    first, last = asked.groups()
    if not first and not last:
        return _WHOLE, 0, facts.bytes
    if first and last and int(first) > int(last):
        return _WHOLE, 0, facts.bytes
    start = int(first) if first else max(0, facts.bytes - int(last))
    end = min(facts.bytes, int(last) + 1) if first and last else facts.bytes
    if start >= end:
        raise file_errors.range_not_satisfiable(facts.bytes)
    return _PART, start, end


def headers_of(facts: FileFacts, status: int, start: int, end: int) -> dict[str, str]:
    """What the response to a download says. The name is the client's own: no browser shall run or path contain it."""
    told = {
        "accept-ranges": "bytes",
        "etag": etag(facts),
        "last-modified": _modified(facts),
        "content-disposition": disposition(facts.filename),
        "x-content-type-options": "nosniff",
        "cache-control": "private, no-cache",
    }
    if status == _PART:
        told["content-range"] = f"bytes {start}-{end - 1}/{facts.bytes}"
    if status != _UNCHANGED:
        told |= {"content-length": str(end - start), "content-type": "application/octet-stream"}
    return told


def disposition(filename: str) -> str:
    """`Content-Disposition` for a name that somebody has chosen (RFC 6266): plain for old clients, whole for others."""
    name = filename.replace("\\", "/").rpartition("/")[2] or "file"
    plain = _NOT_PLAIN.sub("_", name)
    whole = quote(name.encode("utf-8", "replace"), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{whole}"


def _modified(facts: FileFacts) -> str:
    return formatdate(facts.created_at, usegmt=True)


class Download(Response):
    """A response of known length whose bytes come from the storage."""

    def __init__(
        self, facts: FileFacts, chunks: AsyncIterator[bytes], length: int, status: int, headers: dict[str, str]
    ) -> None:
        """`length`: of all `chunks` together."""
        super().__init__(None, status)
        self._length = length
        self.init_headers(headers)
        self._facts = facts
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point. A storage that fails in the middle cuts the connection: no shorter body looks whole."""
        del receive
        direct: Send = scope.get(DIRECT_SEND, send)
        with child(FILE_TRANSFERS, "out").track_inprogress():
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                whole = await self._send(send, hang_up_watch(direct))
            except (StorageUnavailableError, ObjectMissingError) as error:
                log.warning("a download of %s is cut: %s", self._facts.id, error)
                whole = False
            if whole:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await hang_up(direct)

    async def _send(self, send: Send, gone: Callable[[], bool] | None) -> bool:
        """Sends what the storage gives while somebody listens. False when it was not all."""
        counted, left = child(FILE_BYTES, "out"), self._length
        async for chunk in self._chunks:
            if gone is not None and gone():
                return False
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            counted.inc(len(chunk))
            left -= len(chunk)
        if left:
            log.warning("a download of %s is cut: the storage has %d bytes less", self._facts.id, left)
        return not left
