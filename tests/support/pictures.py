"""A small image, and a server of images on the loopback that says what a test wants."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
DATA = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
URL = "https://images.example.com/one.png"

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes = PNG, kind: str = "image/png", status: str = "200 OK", **headers: str) -> bytes:
    """A whole HTTP answer; underscores of header names stand for dashes."""
    given = {"content_type": kind, "content_length": str(len(body)), "connection": "close", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items() if value)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def redirect(where: str) -> bytes:
    """A redirect."""
    return answer(b"", "", "302 Found", location=where)


@dataclass
class ImageServer:
    """A server and what it was asked.

    Attributes:
        answers: by path.
        asked: heads of the requests.
        names: the names that TLS clients asked for.
    """

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head)
            found = self.answers.get(head.split(" ")[1], answer(b"", "", "404 Not Found"))
            if isinstance(found, bytes):
                writer.write(found)
                await writer.drain()
            else:
                await found(writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, which is its right; or the test is over
        finally:
            writer.close()


@asynccontextmanager
async def image_server(
    tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[ImageServer]:
    """A running server."""
    server = ImageServer(answers={"/one.png": answer()})
    if tls is not None:
        tls.sni_callback = lambda _, name, __: server.names.append(name)  # type: ignore[assignment, misc]
    listening = await asyncio.start_server(server.serve, host, port, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
