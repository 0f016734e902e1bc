"""One client connection: sends a request, reads the answer, sends the next. Parses no JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any, cast

from scripts.bench.window import Window, overlap_ratio

PROMPT = "Explain in plain words how a broker between web clients and a batch engine keeps order. " * 10
_TAIL_BYTES = 600
_REFUSED_PAUSE_S = 0.02
_CLOCK_DIGITS = 13
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


class Connection(asyncio.Protocol):
    """One client connection: one request at a time."""

    transport: asyncio.Transport

    def __init__(
        self,
        options: argparse.Namespace,
        window: Window,
        request: bytes,
        on_free: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
        *,
        timed: bool = True,
    ) -> None:
        """`on_free` is called after each answer, `on_lost` when the connection is gone.

        Times are only kept of connections that are `timed`.
        """
        self._options = options
        self._window = window
        self._request = request
        self._on_free = on_free
        self._on_lost = on_lost
        self._timed = timed
        self._clock: bool = options.count == "clock"
        self._marker = b"~" if self._clock else b"data: {"
        self.busy = False
        self.sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast("asyncio.Transport", transport)

    def close(self) -> None:
        """Closes once everything is written."""
        self.transport.close()

    def abort(self) -> None:
        """Closes at once; what was under way counts no more."""
        self.busy = False
        self.transport.abort()

    def send(self) -> None:
        """Sends the request."""
        self.busy = True
        self.got = 0
        self.head = b""
        self.status = 0
        self.left_bytes = -1  # of a body with content-length; -1 when chunked or until close
        self.tail = b""
        self.last_s = self.sent_s = time.monotonic()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        now_s = time.monotonic()
        if not self.busy:
            return
        if not self.status:
            data = self._read_head(data)
            if not self.status:
                return
        count = data.count(self._marker)
        if count:
            self._count(count, data, now_s)
        self.tail = (self.tail + data)[-_TAIL_BYTES:]
        if self.left_bytes >= 0:
            self.left_bytes -= len(data)
            if self.left_bytes <= 0:
                self._end(now_s)
        elif self.tail.endswith(b"\r\n0\r\n\r\n"):
            self._end(now_s)

    def _read_head(self, data: bytes) -> bytes:
        self.head += data
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return b""
        self.status = int(self.head[9:12])
        head = self.head[:end].lower()
        at = head.find(b"content-length:")
        if at >= 0:
            self.left_bytes = int(head[at + 15 :].split(b"\r\n", 1)[0])
        return self.head[end + 4 :]

    def _count(self, count: int, data: bytes, now_s: float) -> None:
        window = self._window
        if window.from_s <= now_s < window.to_s:
            window.reads += 1
            if self._clock:
                window.tokens += count
            if self._timed:
                self._time(count, data, now_s)
        self.got += count
        self.last_s = now_s

    def _time(self, count: int, data: bytes, now_s: float) -> None:
        window = self._window
        window.zero_gaps += count - 1
        if self.got:
            window.itl.append(now_s - self.last_s)
        else:
            window.ttft.append(now_s - self.sent_s)
        if self._clock:
            stamp = data[data.rfind(b"~") + 1 :][:_CLOCK_DIGITS]
            if len(stamp) == _CLOCK_DIGITS:
                window.relay.append(now_s - int(stamp, 16) / 1e6)

    def _fault(self) -> str | None:
        """What is wrong with the answer that has just ended."""
        options = self._options
        if self.status != 200:
            return f"http_{self.status}"
        if options.stream and b"[DONE]" not in self.tail:
            return "no_done"
        return None if self._tokens() == options.tokens else "tokens"

    def _tokens(self) -> int:
        if self._clock:
            return self.got
        found = _USAGE.findall(self.tail)
        return int(found[-1]) if found else -1

    def _end(self, now_s: float) -> None:
        window = self._window
        self.busy = False
        if fault := self._fault():
            window.error(fault, now_s)
        else:
            if not self._clock:
                window.tokens += self._options.tokens * overlap_ratio(self.sent_s, now_s, window.from_s, window.to_s)
            if window.inside(now_s):
                window.done += 1
                if self._timed:
                    window.total.append(now_s - self.sent_s)
        if self.transport.is_closing():
            return
        if self.status != 200:  # do not spin on a gateway that refuses
            asyncio.get_running_loop().call_later(_REFUSED_PAUSE_S, self._on_free, self)
        else:
            self._on_free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        window, now_s = self._window, time.monotonic()
        if self.busy:
            self.busy = False
            if exc is None and self.status and self.left_bytes < 0 and self._fault() is None:
                window.done += window.inside(now_s)  # a body that ends with its connection
            else:
                window.error("cut", now_s)
        self._on_lost(self)


def build_request(options: argparse.Namespace) -> bytes:
    """The request, as it goes over the wire each time."""
    fields: dict[str, Any] = {
        "model": options.model,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": PROMPT[: options.prompt_chars]},
        ],
        "max_tokens": options.tokens,
        "stream": options.stream,
        "temperature": 0,
    }
    if options.count == "usage":
        fields |= {"ignore_eos": True, "min_tokens": options.tokens}
        if options.stream:
            fields["stream_options"] = {"include_usage": True}
    body = json.dumps(fields).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: %b\r\nAuthorization: Bearer %b\r\n"
        b"Content-Type: application/json\r\nAccept: */*\r\nContent-Length: %d\r\n\r\n%b"
    ) % (options.target.encode(), options.key.encode(), len(body), body)
