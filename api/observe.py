"""The outermost layer of a replica: counts requests by route, and keeps the way to the socket short.

Every layer between a route and the server wraps `send`, and a wrapper costs a coroutine per chunk. The head of a
response must pass through them; the chunks of a stream need not. So the server's own `send` is put into the scope,
where the streaming response finds it.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.metrics import HTTP_REQUESTS

_NO_ROUTE = "unmatched"
DIRECT_SEND = "penstock.send"
"""Key of the scope under which the server's own `send` stands."""


class CountRequests:
    """Counts each HTTP request once its status is known."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        scope[DIRECT_SEND] = send

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", _NO_ROUTE)
                HTTP_REQUESTS.labels(route=route, method=scope["method"], code=message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)
