"""`penstock gpu-exporter`: the GPUs of this machine as metrics. Needs nvidia-ml-py (`pip install penstock[gpu]`)."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from cli.nvml import Gpus
from shared.metrics import BUILD
from shared.process import version
from shared.telemetry import setup_logging

_PORT = 9835
_LAST_PORT = 65_535


def main(argv: list[str]) -> int:
    """Serves /metrics until SIGTERM or SIGINT. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="penstock gpu-exporter", description=__doc__.partition("\n")[0])
    host = os.environ.get("PENSTOCK_GPU_EXPORTER_HOST", "127.0.0.1")
    port = os.environ.get("PENSTOCK_GPU_EXPORTER_PORT", str(_PORT))
    parser.add_argument("--host", default=host, help="address to listen on (PENSTOCK_GPU_EXPORTER_HOST)")
    parser.add_argument("--port", default=port, type=_port, help="port to listen on (PENSTOCK_GPU_EXPORTER_PORT)")
    arguments = parser.parse_args(argv)
    setup_logging("INFO")
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # before the server's thread, which inherits it
    try:
        server, thread = start_http_server(arguments.port, arguments.host, registry())
    except OSError as error:
        where = f"{arguments.host}:{arguments.port}"
        sys.stderr.write(f"penstock gpu-exporter: cannot listen on {where}: {error.strerror}. Choose another --port.\n")
        return 1
    print(f"GPU metrics on http://{arguments.host}:{server.server_port}/metrics", flush=True)
    signal.sigwait(stops)
    server.shutdown()
    server.server_close()
    thread.join()
    return 0


def registry() -> CollectorRegistry:
    """What is exposed: the GPUs, and what runs here."""
    found = CollectorRegistry()
    found.register(Gpus())
    build = Gauge(BUILD._name, BUILD._documentation, BUILD._labelnames, registry=found)  # noqa: SLF001 - declared once
    build.labels(role="gpu-exporter", version=version()).set(1)
    return found


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= _LAST_PORT:
        raise ValueError(text)
    return port
