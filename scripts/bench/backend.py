"""The engine behind the peers: simulated, with an OpenAI API, on a bare protocol; about 6 µs of CPU per token.

It makes "steps", as a batching engine does. A request's first token leaves TTFT after the request has arrived; then
the stream joins the engine's step (one timer for all), and every step writes one token to every running stream, each
as its own event and its own write, as vLLM's server does. With `--itl-ms 0` the next step starts as soon as the loop
has looked at its sockets. A token's text is `~` and the microsecond in which it was written (see `load.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any, cast

import uvloop

MODEL = "sim"
_SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_WRITE_BUFFER_BYTES = 64 << 20
_HEALTH = frozenset({b"/health", b"/ping", b"/get_server_info", b"/get_model_info", b"/server_info", b"/model_info"})
_TOKEN_BYTES = 14


def _token() -> bytes:
    return b"~%013x" % (time.monotonic_ns() // 1000)


class Engine:
    """All running streams; one step writes one token to each."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ttft_s: float, itl_s: float) -> None:
        self._loop = loop
        self._ttft_s = ttft_s
        self._itl_s = itl_s
        self._running: dict[Stream, None] = {}
        self._ticking = False
        self._due_s = 0.0
        self.requests = 0

    def add(self, stream: Stream) -> None:
        """Starts a stream."""
        self.requests += 1
        if self._ttft_s > 0:
            self._loop.call_later(self._ttft_s, self._first, stream)
        else:
            self._first(stream)

    def _first(self, stream: Stream) -> None:
        if stream.emit(_token()):
            self._running[stream] = None
            if not self._ticking:
                self._ticking = True
                self._due_s = self._loop.time()
                self._schedule()

    def _schedule(self) -> None:
        if self._itl_s <= 0:
            self._loop.call_soon(self._tick)
            return
        self._due_s = max(self._due_s + self._itl_s, self._loop.time())  # missed steps are skipped, not made up for
        self._loop.call_at(self._due_s, self._tick)

    def _tick(self) -> None:
        text = _token()
        for stream in [stream for stream in self._running if not stream.emit(text)]:
            del self._running[stream]
        if self._running:
            self._schedule()
        else:
            self._ticking = False


class Stream:
    """One chat completion: streamed, or gathered into one body."""

    __slots__ = ("_back", "_front", "_left", "_parts", "connection", "rid", "sse", "total", "usage")

    def __init__(self, connection: Connection, rid: str, fields: dict[str, Any], default_tokens: int) -> None:
        self.connection = connection
        self.rid = rid
        self.total: int = fields.get("max_completion_tokens") or fields.get("max_tokens") or default_tokens
        self.sse = bool(fields.get("stream"))
        self.usage = bool((fields.get("stream_options") or {}).get("include_usage"))
        self._left = self.total
        self._parts: list[bytes] = []
        choice = b'"choices":[{"index":0,"delta":{"content":"'
        front = b"data: {%b%b" % (_outline(rid, "chat.completion.chunk"), choice)
        back = b'"},"logprobs":null,"finish_reason":null}]}\n\n'
        self._front = b"%x\r\n%b" % (len(front) + _TOKEN_BYTES + len(back), front)
        self._back = back + b"\r\n"

    def emit(self, text: bytes) -> bool:
        """Writes one token; False when the stream has ended, or its client has gone."""
        connection = self.connection
        if connection.stream is not self or connection.transport.is_closing():
            return False
        self._left -= 1
        if self.sse:
            connection.transport.write(b"".join((self._front, text, self._back)))
        else:
            self._parts.append(text)
        if not self._left:
            self._finish()
        return self._left > 0

    def _finish(self) -> None:
        usage = b'"usage":{"prompt_tokens":10,"completion_tokens":%d,"total_tokens":%d}' % (self.total, self.total + 10)
        if not self.sse:
            choice = b'{"index":0,"message":{"role":"assistant","content":"%b"},"finish_reason":"length"}' % b"".join(
                self._parts
            )
            outline = _outline(self.rid, "chat.completion")
            self.connection.finish(_reply(b'{%b"choices":[%b],%b}' % (outline, choice, usage)))
            return
        outline = _outline(self.rid, "chat.completion.chunk")
        end = b'data: {%b"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n' % outline
        if self.usage:
            end += b'data: {%b"choices":[],%b}\n\n' % (outline, usage)
        end += b"data: [DONE]\n\n"
        self.connection.finish(b"%x\r\n%b\r\n0\r\n\r\n" % (len(end), end))


def _outline(rid: str, kind: str) -> bytes:
    made_at_s = int(time.time())
    return f'"id":"chatcmpl-{rid}","object":"{kind}","created":{made_at_s},"model":"{MODEL}",'.encode()


def _reply(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection."""

    transport: asyncio.Transport

    def __init__(self, engine: Engine, default_tokens: int) -> None:
        self._engine = engine
        self._default_tokens = default_tokens
        self._buffer = b""
        self.stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        del exc
        self.stream = None

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._buffer += data
        while self._buffer and self.stream is None:
            request = self._take()
            if request is None:
                return
            self._route(*request)

    def finish(self, data: bytes) -> None:
        """Writes the last bytes of an answer and goes on with the next request."""
        self.stream = None
        self.transport.write(data)
        if self._buffer:
            self.data_received(b"")

    def _take(self) -> tuple[bytes, bytes] | None:
        """The next request's path and body; None when it is not complete."""
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        low = head.lower()
        if b"transfer-encoding: chunked" in low:
            chunks, ended, rest = rest.partition(b"0\r\n\r\n")
            if not ended:
                return None
            body = _dechunk(chunks)
        else:
            at = low.find(b"content-length:")
            size = int(low[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(rest) < size:
                if b"expect: 100-continue" in low:
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return None
            body, rest = rest[:size], rest[size:]
        self._buffer = rest
        return head.split(b" ", 2)[1].split(b"?", 1)[0], body

    def _route(self, path: bytes, body: bytes) -> None:
        engine = self._engine
        if path == b"/v1/chat/completions":
            self.stream = Stream(self, f"{engine.requests:016x}", json.loads(body), self._default_tokens)
            if self.stream.sse:
                self.transport.write(_SSE_HEAD)
            engine.add(self.stream)
        elif path == b"/v1/models":
            card = {"id": MODEL, "object": "model", "created": 1, "owned_by": "sim", "max_model_len": 32768}
            self.transport.write(_reply(json.dumps({"object": "list", "data": [card]}).encode()))
        elif path in _HEALTH:
            self.transport.write(_reply(json.dumps({"model_path": MODEL, "served_model_name": MODEL}).encode()))
        else:
            self.transport.write(_reply(b'{"error":{"message":"not found","code":404}}', b"404 Not Found"))


def _dechunk(raw: bytes) -> bytes:
    parts = []
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        parts.append(raw[: int(size, 16)])
        raw = raw[int(size, 16) + 2 :]
    return b"".join(parts)


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    engine = Engine(loop, options.ttft_ms / 1e3, options.itl_ms / 1e3)
    server = await loop.create_server(
        lambda: Connection(engine, options.tokens), "127.0.0.1", options.port, backlog=4096
    )
    await server.serve_forever()


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ttft-ms", type=float, default=0)
    parser.add_argument("--itl-ms", type=float, default=0)
    parser.add_argument("--tokens", type=int, default=128, help="when the request names no max_tokens")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
