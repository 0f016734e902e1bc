"""A pure ASGI middleware that counts requests by route. Nothing is done per chunk of a stream."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.metrics import HTTP_REQUESTS

_NO_ROUTE = "unmatched"


class CountRequests:
    """Counts each HTTP request once its status is known."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", _NO_ROUTE)
                HTTP_REQUESTS.labels(route=route, method=scope["method"], code=message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)
