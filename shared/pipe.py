"""A pipe between a task that has bytes and a reader that asks for them, as the upload of an object does.

Bounded: the writer waits while two blocks lie in it. Small chunks are joined into blocks. The reader is told when the
writer has failed, so that it takes half an object for nothing else. One writer, one reader, one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

_BLOCKS = 2


class BrokenOffError(Exception):
    """The writer has failed: what was read is not the whole."""


class Pipe:
    """An async iterator of blocks with a writing end."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._joining: list[bytes] = []
        self._joined_bytes = 0
        self._blocks: deque[bytes] = deque()
        self._moved = asyncio.Event()
        self._ended = self._failed = self._closed = False

    async def write(self, chunk: bytes) -> bool:
        """Takes a chunk, and waits while there is no room. False when nobody reads any more."""
        self._joining.append(chunk)
        self._joined_bytes += len(chunk)
        if self._joined_bytes < self._block_bytes:
            return not self._closed
        self._pass_on()
        while len(self._blocks) >= _BLOCKS and not self._closed:
            await self._wait()
        return not self._closed

    def end(self) -> None:
        """Nothing more comes."""
        self._pass_on()
        self._ended = True
        self._moved.set()

    def fail(self) -> None:
        """The whole will not come: the reader gets BrokenOffError, now."""
        self._failed = True
        self._moved.set()

    def close(self) -> None:
        """Nobody reads any more: neither end waits from now on."""
        self._closed = True
        self._moved.set()

    def _pass_on(self) -> None:
        if self._joining:
            self._blocks.append(b"".join(self._joining))
            self._joining.clear()
            self._joined_bytes = 0
            self._moved.set()

    async def _wait(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    def __aiter__(self) -> Pipe:
        return self

    async def __anext__(self) -> bytes:
        while not (self._blocks or self._ended or self._failed or self._closed):
            await self._wait()
        if self._failed:
            raise BrokenOffError
        if not self._blocks:
            raise StopAsyncIteration
        block = self._blocks.popleft()
        self._moved.set()
        return block
