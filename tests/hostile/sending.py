"""How the hostile inputs are sent: requests as they stand, and bytes on a connection of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from urllib.parse import urlsplit

import httpx

from tests.hostile.rows import Hostile
from tests.hostile.sockets import Raw

_PATIENCE_S = 30.0


async def send(client: httpx.AsyncClient, row: Hostile) -> httpx.Response:
    """The answer to one row; its target goes out as it is written."""
    url = client.base_url.copy_with(raw_path=row.target.encode())
    return await client.request(row.method, url, content=row.content or None, headers=list(row.headers))


async def talk(url: str, row: Raw) -> list[tuple[int, dict[str, str], bytes]]:
    """Every answer to the bytes of one row until the connection is closed: status, headers, body."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    answers = []
    try:
        async with asyncio.timeout(_PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                writer.write(row.sent)
                await writer.drain()
                if row.hang_up:
                    writer.write_eof()
            while (answer := await _answer(reader)) is not None:
                answers.append(answer)
                if answer[1].get("connection") != "close" and not row.hang_up:
                    break
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answers


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes] | None:
    """The next answer; None when the connection has been closed instead."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(first.split()[1]), headers, body


def code_of(body: bytes) -> str:
    """The code in an error's envelope; empty when it is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["code"])
    return ""
