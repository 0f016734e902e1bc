"""What an engine's application is called with, and what is added to its answer."""

from __future__ import annotations

from starlette.types import Scope

from shared.outcomes import Claimed
from shared.wire import Request


def scope_of(request: Request) -> Scope:
    """The scope of one HTTP exchange, as if the client were connected to the engine itself."""
    headers = [(name.lower().encode(), value.encode()) for name, value in request.headers]
    headers.append((b"content-length", str(len(request.body)).encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "state": {},
    }


def own_headers(claimed: Claimed) -> list[tuple[str, str]]:
    """What the answer says about its way here."""
    queue_ms = claimed.started_at_ms - claimed.queued_at_ms
    return [("x-penstock-attempt", str(claimed.claims)), ("x-penstock-queue-ms", str(queue_ms))]
