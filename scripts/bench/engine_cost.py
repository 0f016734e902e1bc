"""What the simulated engine itself costs: its ASGI application, driven in process with nobody behind it.

Penstock's worker runs its engine in its own process, so the engine's cost is inside the worker's figure, while the
peers' engine is a process that is not counted. This program measures what is to be taken off. It is the one place of
the benchmark that looks inside a process's package.

Prints one JSON object: CPU seconds, tokens and requests of the window.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import uvloop

from scripts.bench.connection import PROMPT
from worker.engines import sim
from worker.engines.base import current_journal
from worker.settings import WorkerSettings


class _Sink:
    """A client and a journal that only count."""

    attempt = "bench"
    priority = 0
    resume = None

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.count = 0
        self.requests = 0

    def tokens(self, token_ids: list[int], text_chars: int) -> None:
        """See Journal."""
        del text_chars
        self.count += len(token_ids)

    def usage(self, prompt_tokens: int, completion_tokens: int) -> None:
        """See Journal."""

    def replayed(self) -> None:
        """See Journal."""

    def diverged(self, why: str) -> None:
        """See Journal."""

    def cannot_continue(self) -> None:
        """See Journal."""

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        self.requests += message["type"] == "http.response.body" and not message.get("more_body", False)


async def _stream(engine: sim.SimEngine, sink: _Sink, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    headers = [(b"x-request-id", b"req_bench"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    current_journal.set(sink)
    while True:
        await engine.app(scope, sink.receive, sink.send)  # type: ignore[arg-type] # plain dicts are what ASGI is
        await asyncio.sleep(0)


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    flags = ["--text", "clock", "--ttft-ms", str(options.ttft_ms), "--itl-ms", str(options.itl_ms), "--slots", "4096"]
    engine = sim.create(WorkerSettings(), flags)
    messages = [{"role": "user", "content": PROMPT}]
    fields = {"model": "sim", "messages": messages, "max_tokens": options.tokens, "stream": options.stream}
    sink = _Sink(json.dumps(fields).encode())
    streams = [
        asyncio.create_task(_stream(engine, sink, options.ramp * number / options.concurrency))
        for number in range(options.concurrency)
    ]
    await asyncio.sleep(options.warmup)
    cpu_s, count, requests = time.process_time(), sink.count, sink.requests
    await asyncio.sleep(options.seconds)
    figures = {
        "cpu_s": round(time.process_time() - cpu_s, 4),
        "tokens": sink.count - count,
        "requests": sink.requests - requests,
        "seconds": options.seconds,
    }
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    return figures


def main() -> None:
    """Measures once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ttft-ms", type=float, default=0)
    parser.add_argument("--itl-ms", type=float, default=0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--no-stream", dest="stream", action="store_false")
    parser.add_argument("--ramp", type=float, default=0)
    parser.add_argument("--warmup", type=float, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    print(json.dumps(uvloop.run(_measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
