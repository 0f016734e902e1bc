"""nginx of this machine with the configuration that compose mounts, and upstreams that count what reaches them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.validate.nginx_config import place
from tests.support.stack import free_port

_START_S = 30.0


def nginx_binary() -> str | None:
    """nginx, if it is installed; Debian has it where users' PATH does not reach."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def nginx_before(folder: Path, ports: Sequence[int], server: str = "server.conf", real_ip: str = "") -> Iterator[int]:
    """Runs nginx in front of replicas at these ports. Gives the port where it listens.

    `real_ip`: what stands in real_ip.conf instead of what is shipped.
    """
    binary, listen = nginx_binary(), free_port()
    assert binary
    main = place(folder, ports, listen, server)
    if real_ip:
        (folder / "real_ip.conf").write_text(real_ip, encoding="utf-8")
    with (folder / "nginx.log").open("wb") as log:
        command = [binary, "-p", str(folder), "-c", str(main), "-g", "daemon off;"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait(listen, process, folder)
        yield listen
    finally:
        process.terminate()
        process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError((folder / "nginx.log").read_text())


@dataclass
class Upstream:
    """A replica that only counts. `answers`: whether it answers what it has read, or hangs up."""

    answers: bool = False
    port: int = 0
    requests: list[str] = field(default_factory=list)
    body_bytes: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
            left = int(length[1]) if length else 0
            while left and (piece := await reader.read(min(left, 65_536))):
                left -= len(piece)
                self.body_bytes += len(piece)
            if self.answers:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def upstreams(*made: Upstream) -> AsyncIterator[list[int]]:
    """Runs them. Gives their ports."""
    servers = [await asyncio.start_server(one.serve, "127.0.0.1", 0) for one in made]
    for one, server in zip(made, servers, strict=True):
        one.port = server.sockets[0].getsockname()[1]
    try:
        yield [one.port for one in made]
    finally:
        for server in servers:
            server.close()
