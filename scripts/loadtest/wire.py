"""HTTP/1.1 by hand: one request on one connection, and its answer as it comes. Cheap enough for a thousand at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.loadtest.target import Target

_BUFFER_BYTES = 1 << 20
_OK = 200


class BrokenOffError(Exception):
    """The connection could not be made, or ended before the answer did."""


@dataclass
class Answer:
    """An answer whose head has come. `lines()` or `body()` reads the rest."""

    status: int
    headers: dict[str, str]
    _reader: asyncio.StreamReader

    @property
    def ok(self) -> bool:
        """Whether it is a 200."""
        return self.status == _OK

    async def body(self) -> bytes:
        """All of it. Raises BrokenOffError."""
        return b"".join([piece async for piece in self._pieces()])

    async def json(self) -> Any:
        """All of it, as JSON; None where it is none. Raises BrokenOffError."""
        try:
            return json.loads(await self.body())
        except ValueError:
            return None

    async def lines(self) -> AsyncIterator[str]:
        """Line by line, as they come. Raises BrokenOffError."""
        rest = b""
        async for piece in self._pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.decode().rstrip("\r")

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(await self._reader.readuntil(b"\r\n"), 16):
                    yield (await self._reader.readexactly(size + 2))[:-2]
            else:
                yield await self._reader.readexactly(int(self.headers.get("content-length", "0")))
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise BrokenOffError(str(error) or repr(error)) from error


@contextlib.asynccontextmanager
async def exchange(
    target: Target, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Answer]:
    """Sends a request with a JSON body, or none. Raises BrokenOffError when no answer begins."""
    payload = b"" if body is None else json.dumps(body).encode()
    sent = {"Host": f"{target.host}:{target.port}", "Connection": "close", "Content-Length": str(len(payload))}
    if body is not None:
        sent["Content-Type"] = "application/json"
    if target.key:
        sent["Authorization"] = f"Bearer {target.key}"
    head = "".join(f"{name}: {value}\r\n" for name, value in {**sent, **(headers or {})}.items())
    writer = None
    try:
        try:
            reader, writer = await asyncio.open_connection(
                target.host, target.port, ssl=target.tls, limit=_BUFFER_BYTES
            )
            writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + payload)
            answer = await _head(reader)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise BrokenOffError(str(error) or repr(error)) from error
        yield answer
    finally:
        if writer is not None:
            writer.transport.abort()


async def _head(reader: asyncio.StreamReader) -> Answer:
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in rest if line)
    return Answer(int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}, reader)
