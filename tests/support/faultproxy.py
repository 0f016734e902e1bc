"""A TCP proxy in front of Redis that does to one process what networks do: delay, cut, swallow, hold, drop.

It runs in a thread of its own, so that a test may block while its processes talk through it. Faults are counted where
they happen: a drill proves by `hits` that its fault did happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Action = Literal["hold", "hold_reply", "cut_before", "cut_reply", "delay_reply"]
_SETTLE_S = 0.05
_READ_BYTES = 65_536


@dataclass
class Rule:
    """What happens to a connection whose client sends `match`; `times` often.

    hold: it goes no further. hold_reply: the server has it, its reply goes no further. cut_before: the connection ends
    and the server never hears of it. cut_reply: the server has done it, the connection ends before the reply.
    delay_reply: the replies come `delay_s` later.

    `before` is called before what matched goes on, in the proxy's thread: so something happens in the server just
    before a command, however slow the machine is.
    """

    match: bytes
    action: Action
    times: int = 1
    delay_s: float = 0.0
    before: Callable[[], None] | None = None
    hits: int = 0
    hit: threading.Event = field(default_factory=threading.Event)

    def takes(self, data: bytes) -> bool:
        if self.hits >= self.times or self.match not in data:
            return False
        self.hits += 1
        self.hit.set()
        return True

    def wait(self, within_s: float, what: str) -> None:
        """Returns once the fault has happened. Raises TimeoutError."""
        if not self.hit.wait(within_s):
            raise TimeoutError(f"not within {within_s} s: {what}")


class _Link:
    """One connection through the proxy."""

    def __init__(self) -> None:
        self.dead = False  # half-open: what is sent is swallowed, and nobody is told
        self.cut_reply = False
        self.hold_reply = False
        self.delay_until_s = 0.0
        self.pubsub = False
        self.rest = b""


class FaultProxy:
    """`port` is where clients connect."""

    def __init__(self, upstream_port: int) -> None:
        self.port = 0
        self.rules: list[Rule] = []
        self.connections = 0
        self.swallowed_bytes = 0
        self.held_bytes = 0
        self.dropped_messages = 0
        self.drop_messages_ratio = 0.0
        self.latency_s = 0.0
        self._upstream_port = upstream_port
        self._blackhole = False
        self._links: set[_Link] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._rnd = random.Random(7)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def rule(
        self,
        match: str | bytes,
        action: Action,
        *,
        times: int = 1,
        delay_s: float = 0.0,
        before: Callable[[], None] | None = None,
    ) -> Rule:
        """From now on."""
        made = Rule(match.encode() if isinstance(match, str) else match, action, times, delay_s, before)
        self.rules.append(made)
        return made

    def partition(self) -> None:
        """Nothing gets through any more, and nobody is told; until `heal`, when what was sent arrives late."""
        self._blackhole = True

    def heal(self) -> None:
        self._blackhole = False

    def half_open(self) -> int:
        """Every connection that is open now swallows what is sent, for ever. Returns how many."""
        links = list(self._links)
        for link in links:
            link.dead = True
        return len(links)

    def switch(self, upstream_port: int) -> None:
        """From now on this is the server; connections to the one before are cut. A failover behind a fixed address."""
        self._upstream_port = upstream_port
        self._blackhole = False
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in list(self._pumps)])

    # ---- the thread

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(5)

    def stop(self) -> None:
        if self._loop is not None and self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(5)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link()
        self._links.add(link)
        try:
            await self._passable()
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            self._links.discard(link)
            return
        pumps = [
            asyncio.create_task(self._up(link, reader, up_writer)),
            asyncio.create_task(self._down(link, up_reader, writer)),
        ]
        self._pumps.update(pumps)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # asyncio's streams log a handler that ends cancelled
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._pumps.difference_update(pumps)
            writer.transport.abort()
            up_writer.transport.abort()
            self._links.discard(link)

    async def _passable(self) -> None:
        while self._blackhole:
            await asyncio.sleep(0.02)

    async def _up(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                if link.dead:
                    self.swallowed_bytes += len(data)
                    continue
                if self._blackhole:
                    self.held_bytes += len(data)
                    await self._passable()
                if not await self._allowed(link, data):
                    return
                writer.write(data)
                await writer.drain()

    async def _allowed(self, link: _Link, data: bytes) -> bool:
        """Whether `data` may go on to the server; sets what is to happen to its reply."""
        link.pubsub = link.pubsub or b"SUBSCRIBE" in data
        for rule in self.rules:
            if not rule.takes(data):
                continue
            if rule.before is not None:
                rule.before()
            if rule.action == "hold":
                await asyncio.Event().wait()
            if rule.action == "cut_before":
                return False
            link.hold_reply = link.hold_reply or rule.action == "hold_reply"
            link.cut_reply = link.cut_reply or rule.action == "cut_reply"
            if rule.action == "delay_reply":
                link.delay_until_s = time.monotonic() + rule.delay_s
        return True

    async def _down(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                if link.hold_reply:
                    await asyncio.Event().wait()
                if link.cut_reply:
                    await asyncio.sleep(_SETTLE_S)  # a reply to something earlier: what matched is done by now as well
                    return
                await asyncio.sleep(max(self.latency_s, link.delay_until_s - time.monotonic(), 0))
                if self._blackhole:
                    self.held_bytes += len(data)
                    await self._passable()
                if link.dead:
                    self.swallowed_bytes += len(data)
                    continue
                writer.write(self._thinned(link, data))
                await writer.drain()

    def _thinned(self, link: _Link, data: bytes) -> bytes:
        """Without some of the live messages."""
        if not link.pubsub or not self.drop_messages_ratio:
            return data
        kept, link.rest = [], link.rest + data
        while (size := _reply_bytes(link.rest)) > 0:
            reply, link.rest = link.rest[:size], link.rest[size:]
            if reply.startswith(b"*3\r\n$7\r\nmessage\r\n") and self._rnd.random() < self.drop_messages_ratio:
                self.dropped_messages += 1
            else:
                kept.append(reply)
        return b"".join(kept)


def _reply_bytes(data: bytes, start: int = 0) -> int:
    """Where the RESP reply that begins at `start` ends; 0 while it is incomplete."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return 0
    kind, end = data[start : start + 1], line_end + 2
    if kind == b"$":
        size = int(data[start + 1 : line_end])
        end += size + 2 if size >= 0 else 0
        return end if end <= len(data) else 0
    if kind == b"*":
        for _ in range(int(data[start + 1 : line_end])):
            end = _reply_bytes(data, end)
            if not end:
                return 0
    return end


@contextlib.contextmanager
def proxied(upstream_port: int) -> Iterator[FaultProxy]:
    """A proxy while the block runs."""
    proxy = FaultProxy(upstream_port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
