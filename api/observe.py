"""The outermost layer of a replica: names and counts requests, and keeps the ways to the route and the socket short.

A generation does not go through FastAPI's middleware, router and dependencies, which cost more per request than
admission does: its path is looked up here and its endpoint called directly. FastAPI knows the same endpoints, for its
OpenAPI document and for servers that are given the application without this layer.

Every layer between a route and the server wraps `send`, and a wrapper costs a coroutine per chunk. The head of a
response must pass through them; the chunks of a stream need not. So the server's own `send` is put into the scope,
where the streaming response finds it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from api import problems
from api.exchange import ANSWERED, REQUEST_ID, sent_id
from shared import errors
from shared.errors import BrokerUnavailableError, RequestError
from shared.metrics import HTTP_DURATION, HTTP_REQUESTS, child

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

_NO_ROUTE = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER_METHOD = "other"
"""A client may send any word as a method; a label must not be the client's to choose."""
_CLIENT_GONE = 499
DIRECT_SEND = "penstock.send"
"""Key of the scope under which the server's own `send` stands."""


class Outermost:
    """Counts each HTTP request once its status is known, and gives each response an `x-request-id`.

    The id is the client's own if it sent one, else the one that the route set, else a random one.
    """

    def __init__(self, app: FastAPI, direct: dict[str, Endpoint]) -> None:
        """`direct`: endpoints of POST requests by path."""
        self._app = app
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        scope[DIRECT_SEND] = send
        endpoint = self._direct.get(scope["path"]) if scope["method"] == "POST" else None

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope["path"] if endpoint is not None else getattr(scope.get("route"), "path", _NO_ROUTE)
                method = scope["method"] if scope["method"] in _METHODS else _OTHER_METHOD
                child(HTTP_REQUESTS, route, method, str(message["status"])).inc()
                scope[ANSWERED] = (route, message["status"])
                message["headers"] = _with_request_id(list(message["headers"]), sent_id(scope))
            await send(message)

        try:
            if endpoint is None:
                await self._app(scope, receive, watched)
                return
            scope["app"] = self._app
            request = Request(scope, receive)
            response = await _answered(endpoint, request)
            await response(scope, receive, watched)
        finally:
            scope.pop(DIRECT_SEND, None)  # it knows the scope, and both would wait for the rare full collection
            route = scope["path"] if endpoint is not None else getattr(scope.get("route"), "path", _NO_ROUTE)
            child(HTTP_DURATION, route).observe(time.perf_counter() - began_s)


async def _answered(endpoint: Endpoint, request: Request) -> Response:
    """The endpoint's response, or that of the error which it raised."""
    try:
        return await endpoint(request)
    except RequestError as error:
        return await problems.on_request_error(request, error)
    except BrokerUnavailableError as error:
        return await problems.on_broker_error(request, error)
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)
    except Exception:
        log.exception("%s %s", request.method, request.url.path)
        return await problems.on_request_error(request, errors.internal_error())


def _with_request_id(headers: list[Any], sent: bytes | None) -> list[Any]:
    if sent is not None:
        headers = [header for header in headers if header[0] != REQUEST_ID]
        headers.append((REQUEST_ID, sent))
    elif all(header[0] != REQUEST_ID for header in headers):
        headers.append((REQUEST_ID, os.urandom(16).hex().encode()))
    return headers
