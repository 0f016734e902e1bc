"""The replica's end of a connection: uvicorn's, with bounds on what a client can make it hold, and our errors.

uvicorn's own takes heads of any length, waits for the rest of a request for ever, and answers what is no HTTP with
plain text, even into the middle of an answer. Costs a timer per chunk that arrives, and nothing per chunk that is sent.
"""

from __future__ import annotations

import asyncio
import os
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api import dialects, problems
from shared import http_errors
from shared.errors import RequestError

MOST_HEAD_BYTES = 65_536
"""Of a request's target and headers together."""
MOST_HEADERS = 200
STALL_S = 60.0
"""How long nothing may come of a request that has begun."""


class _HeadTooLargeError(Exception):
    """Stops the parser."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    stall_s = STALL_S

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.url = b""
        self._chunk_bytes = 0
        self._request_bytes = 0
        self._in_head = False
        self._open = False
        self._refusal: RequestError | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """See asyncio.Protocol. Who says nothing at all goes after the time of an idle connection."""
        super().connection_made(transport)
        wait_s = self.timeout_keep_alive
        self.timeout_keep_alive_task = self.loop.call_later(wait_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.transport.is_closing():
            return
        self._chunk_bytes = len(data)
        self._request_bytes += self._chunk_bytes
        super().data_received(data)
        if self._in_head and self._request_bytes > MOST_HEAD_BYTES:
            self._refuse(http_errors.head_too_large(MOST_HEAD_BYTES, MOST_HEADERS))
        self._stop_waiting()
        # an answer that is being made is waited for; everything else is for the client to send
        if self._open or not self._answering():
            self._stall = self.loop.call_later(self.stall_s, self._stalled)

    def on_message_begin(self) -> None:
        """See uvicorn."""
        self._open = self._in_head = True
        self._request_bytes = self._chunk_bytes
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See uvicorn. What it raises becomes a refusal."""
        self._in_head = False
        if len(self.headers) > MOST_HEADERS or (
            self._request_bytes > MOST_HEAD_BYTES and self._head_bytes() > MOST_HEAD_BYTES
        ):
            self._refusal = http_errors.head_too_large(MOST_HEAD_BYTES, MOST_HEADERS)
            raise _HeadTooLargeError
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See uvicorn."""
        self._open = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn: what came is no HTTP, or a callback has refused it."""
        del msg
        self._refuse(self._refusal or http_errors.not_http())

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _stop_waiting(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stalled(self) -> None:
        if self.flow.read_paused:  # what the client has sent waits for us
            self._stall = self.loop.call_later(self.stall_s, self._stalled)
        elif self._open:
            self._refuse(http_errors.request_stalled(self.stall_s))
        else:
            self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Answers with an error and closes. An answer that has begun is only cut: nothing belongs into that."""
        if self.transport.is_closing():
            return
        path = self.url.partition(b"?")[0].decode("latin-1")
        problems.note(error, path)
        answering = self._answering()
        if not answering or not self.cycle.response_started:
            self.transport.write(_response(error, path))
        if answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete


def _response(error: RequestError, path: str) -> bytes:
    """The whole answer."""
    body = dialects.envelope(error, path)
    fields = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "x-request-id": os.urandom(16).hex(),
        **problems.headers(error),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{lines}\r\n".encode("ascii") + body
