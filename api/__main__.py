"""`python -m api`: runs one replica. `penstock api` is the same."""

from __future__ import annotations

import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from api.app import create_app
from api.exchange import Watched
from api.observe import Outermost
from api.protocol import Protocol
from api.routes import completions, responses
from api.settings import ApiSettings
from shared.errors import ConfigurationError
from shared.process import tune_collector
from shared.settings import read_settings
from shared.telemetry import setup_logging
from shared.tracing import open_tracing

_SERVICE = "penstock-api"
_AFTER_DRAIN_S = 5
"""What streams that were sent away get to close before they are cut."""
_KEEP_ALIVE_S = 75
"""Longer than clients and load balancers keep an idle connection (httpx 5 s, nginx and ALB 60 s): whoever closes it
must not be the one towards whom a request may be on its way."""
_UNSENT_BYTES = 65_536
"""Bytes that the kernel takes for a connection beyond what is on its way."""


def main(argv: list[str]) -> int:
    """Serves until SIGTERM or SIGINT, or until a background service fails. Returns the exit status."""
    try:
        settings = read_settings(ApiSettings, argv, "penstock api")
    except ConfigurationError as error:
        sys.stderr.write(f"penstock api: {error}\n")
        return 2
    setup_logging(
        settings.log_level, settings.log_format, service=_SERVICE, secrets=settings.secrets, access=settings.access_log
    )
    try:
        tracing = open_tracing(settings, _SERVICE)
        app = create_app(settings)
    except ConfigurationError as error:
        sys.stderr.write(f"penstock api: {error}\n")
        return 2
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        sys.stderr.write(
            f"penstock api: cannot listen on {where}: {error.strerror}. Choose another --port, or stop what uses it.\n"
        )
        return 1
    tune_collector()
    served: ASGIApp = Outermost(app, {**completions.DIRECT, **responses.DIRECT})
    if tracing is not None or settings.access_log:
        served = Watched(served, tracing, access_log=settings.access_log)
    server = _Server(server_config(served, settings.drain_s), app)
    server.run(sockets=[listener])
    if tracing is not None:
        tracing.close()
    return int(server.failed)


def server_config(served: ASGIApp, drain_s: float) -> uvicorn.Config:
    """How uvicorn serves an application here."""
    return uvicorn.Config(
        served,
        loop="uvloop",
        http=Protocol,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(drain_s) + _AFTER_DRAIN_S,
        backlog=4096,
        reset_contextvars=True,  # a pipelined request would have the id of the one before in its log lines
    )


class _Server(uvicorn.Server):
    """Tells the application that it is to stop; uvicorn itself only closes what nobody uses and waits."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self.failed = False
        app.state.on_failure = self._fail

    def _fail(self) -> None:
        self.failed = self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn.Server. Called for each signal; a second one ends the wait.

        The signal is not kept: uvicorn would raise it again at the end, and a replica that has drained exits with 0.
        """
        del sig, frame
        drain = getattr(self._app.state, "drain", None)
        if drain is not None:
            drain.begin()
        self.force_exit = self.should_exit
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    # Without it the kernel takes megabytes for every client that does not read; connections inherit it.
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    listener.set_inheritable(True)
    return listener


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
