"""`python -m api`: runs one replica. `penstock api` is the same."""

from __future__ import annotations

import socket
import sys

import uvicorn

from api.app import create_app
from api.observe import Outermost
from api.routes import completions
from api.settings import ApiSettings
from shared.errors import ConfigurationError
from shared.process import tune_collector
from shared.settings import read_settings
from shared.telemetry import setup_logging

_UNSENT_BYTES = 65_536
"""Bytes that the kernel takes for a connection beyond what is on its way."""


def main(argv: list[str]) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit status."""
    try:
        settings = read_settings(ApiSettings, argv, "penstock api")
    except ConfigurationError as error:
        sys.stderr.write(f"penstock api: {error}\n")
        return 2
    setup_logging(settings.log_level)
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        sys.stderr.write(
            f"penstock api: cannot listen on {where}: {error.strerror}. Choose another --port, or stop what uses it.\n"
        )
        return 1
    tune_collector()
    config = uvicorn.Config(
        Outermost(create_app(settings), completions.DIRECT),
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_s),
        backlog=4096,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


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
