"""GET /livez, /readyz and /metrics of a process that serves nothing else, on a port of its own.

An engine's metrics are among those of its worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared.errors import ConfigurationError


def create_ops_app(readiness: Callable[[], str]) -> FastAPI:
    """`readiness` returns `ready`, or the word that says why not."""
    app = FastAPI(title="Penstock", openapi_url=None)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        status = readiness()
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(generate_latest), media_type=CONTENT_TYPE_LATEST)

    return app


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ConfigurationError when the port is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        msg = f"cannot listen on {host}:{port}: {error.strerror}. Choose another --ops-port."
        raise ConfigurationError(msg) from error
    return listener


class _Server(uvicorn.Server):
    """A server that leaves the process's signals to the process itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class OpsServer:
    """Serves the operations endpoints. A service: see `services.py`."""

    name = "ops"

    def __init__(self, readiness: Callable[[], str], listener: socket.socket) -> None:
        """`listener` is bound already, so that a port in use is known before a model is loaded."""
        app = create_ops_app(readiness)
        self._listener = listener
        self._server = _Server(uvicorn.Config(app, access_log=False, log_config=None, ws="none", lifespan="off"))

    async def run(self, started: asyncio.Event) -> None:
        """Serves until cancelled."""
        started.set()
        await self._server.serve(sockets=[self._listener])
