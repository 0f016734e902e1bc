"""GET /livez, /readyz and /metrics of a worker, on a port of its own; the engine's metrics are among them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


def create_ops_app(readiness: Callable[[], str]) -> FastAPI:
    """`readiness` returns `ready`, or the word that says why not."""
    app = FastAPI(title="Penstock worker", openapi_url=None)

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


class _Server(uvicorn.Server):
    """A server that leaves the process's signals to the worker."""

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
