"""What scripts really touch, as the server's MONITOR tells it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import redis.asyncio

_LINE = re.compile(r"^\+\d+\.\d+ \[\d+ ([^\]]+)\] (.*)$")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')
_KEYLESS = frozenset({"TIME"})


@dataclass
class Touched:
    """What was seen.

    Attributes:
        shas: hashes of the scripts that ran.
        commands: how many commands they called.
        undeclared: (command, key) that were not among the KEYS of their call.
    """

    shas: set[str] = field(default_factory=set)
    commands: int = 0
    undeclared: set[tuple[str, str]] = field(default_factory=set)
    _declared: frozenset[str] = frozenset()

    def read(self, line: str) -> None:
        """One line of MONITOR."""
        match = _LINE.match(line)
        if match is None:
            return
        words = _WORD.findall(match.group(2))
        name = words[0].upper()
        if match.group(1) != "lua":
            if name in {"EVALSHA", "EVAL"}:
                self.shas.add(words[1])
                self._declared = frozenset(words[3 : 3 + int(words[2])])
            return
        self.commands += 1
        self.undeclared |= {(name, key) for key in _keys_of(name, words) if key not in self._declared}


def _keys_of(name: str, words: list[str]) -> list[str]:
    if name in _KEYLESS:
        return []
    if name == "XREADGROUP":
        streams = words[[word.upper() for word in words].index("STREAMS") + 1 :]
        return streams[: len(streams) // 2]
    if name == "XGROUP":
        return [words[2]]
    return [words[1]]


@contextlib.asynccontextmanager
async def watching(url: str) -> AsyncIterator[Touched]:
    """What happens on the server while the block runs."""
    touched = Touched()
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**24)
    writer.write(b"MONITOR\r\n")
    await reader.readline()
    task = asyncio.create_task(_read(reader, touched))
    try:
        yield touched
        async with redis.asyncio.Redis.from_url(url) as client:
            await client.echo("that was all")
        await asyncio.wait_for(task, 20)
    finally:
        task.cancel()
        writer.close()
        await writer.wait_closed()


async def _read(reader: asyncio.StreamReader, touched: Touched) -> None:
    while line := (await reader.readline()).decode("latin-1").rstrip("\r\n"):
        if line.endswith('"ECHO" "that was all"'):
            return
        touched.read(line)
