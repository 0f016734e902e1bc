"""How long what took, for a client that asks for it with `stream_options.include_timing`.

Waiting is what the worker says; the rest is measured where the client is served. Tokens are the engine's count.
"""

from __future__ import annotations

import time
from typing import Any

from shared.wire import Meta

_QUEUE = "x-penstock-queue-ms"


class Timing:
    """The times of one stream."""

    def __init__(self, accepted_at_s: float) -> None:
        """`accepted_at_s`: when the request came, of the monotonic clock."""
        self._accepted_at_s = accepted_at_s
        self._first_at_s: float | None = None

    def seen(self) -> None:
        """Something of the answer has come."""
        if self._first_at_s is None:
            self._first_at_s = time.monotonic()

    def facts(self, head: Meta | None, end: Meta) -> dict[str, Any]:
        """What the client is told at the end: milliseconds, and tokens a second from the first token on."""
        now_s = time.monotonic()
        first_at_s = now_s if self._first_at_s is None else self._first_at_s
        waited = next((value for name, value in head.headers if name == _QUEUE), "") if head is not None else ""
        queue_ms = int(waited) if waited.isdecimal() else 0
        first_ms = (first_at_s - self._accepted_at_s) * 1000
        tokens, decode_s = end.usage.completion_tokens if end.usage is not None else 0, now_s - first_at_s
        return {
            "queue_ms": queue_ms,
            "prefill_ms": round(max(0.0, first_ms - queue_ms), 1),
            "first_token_ms": round(first_ms, 1),
            "total_ms": round((now_s - self._accepted_at_s) * 1000, 1),
            "tokens_per_second": round((tokens - 1) / decode_s, 1) if tokens > 1 and decode_s > 0 else None,
        }
