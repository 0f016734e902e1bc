"""The outermost layer of a replica: names and counts requests, and keeps the way to the socket short.

Every layer between a route and the server wraps `send`, and a wrapper costs a coroutine per chunk. The head of a
response must pass through them; the chunks of a stream need not. So the server's own `send` is put into the scope,
where the streaming response finds it.
"""

from __future__ import annotations

import os
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.metrics import HTTP_REQUESTS

_NO_ROUTE = "unmatched"
_REQUEST_ID = b"x-request-id"
_USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
DIRECT_SEND = "penstock.send"
"""Key of the scope under which the server's own `send` stands."""


class Outermost:
    """Counts each HTTP request once its status is known, and gives each response an `x-request-id`.

    The id is the client's own if it sent one, else the one that the route set, else a random one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[DIRECT_SEND] = send

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", _NO_ROUTE)
                HTTP_REQUESTS.labels(route=route, method=scope["method"], code=message["status"]).inc()
                message["headers"] = _with_request_id(list(message["headers"]), _sent_id(scope))
            await send(message)

        await self._app(scope, receive, watched)


def _sent_id(scope: Scope) -> bytes | None:
    """The client's `X-Request-Id`, if it may stand in a header of the response."""
    for name, value in scope["headers"]:
        if name == _REQUEST_ID and _USABLE_ID.fullmatch(value):
            return bytes(value)
    return None


def _with_request_id(headers: list[Any], sent: bytes | None) -> list[Any]:
    if sent is not None:
        headers = [header for header in headers if header[0] != _REQUEST_ID]
        headers.append((_REQUEST_ID, sent))
    elif all(header[0] != _REQUEST_ID for header in headers):
        headers.append((_REQUEST_ID, os.urandom(16).hex().encode()))
    return headers
