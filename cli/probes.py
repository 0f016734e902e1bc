"""Asks a replica, or a batch process, how it is."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from dataclasses import dataclass

_TIMEOUT_S = 3.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
_WORDS = {
    "no_worker": "waiting for a worker",
    "broker_unavailable": "waiting for Redis",
    "draining": "draining",
}


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a replica says: whether it would serve a request now, what it waits for, and the models it knows."""

    ready: bool
    detail: str
    models: tuple[str, ...] = ()


def base_url(host: str, port: int) -> str:
    """How a client on this machine reaches a replica that listens on `host`."""
    address = _WILDCARDS.get(host, host)
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses now; nobody else is told about them."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def ask_replica(host: str, port: int) -> Readiness:
    """GET /readyz. Blocks, at most a few seconds; raises nothing."""
    connection = http.client.HTTPConnection(_WILDCARDS.get(host, host), port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        report = json.loads(response.read())
        models = tuple(map(str, report.get("models", ())))
        status = str(report.get("status", response.status))
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return Readiness(ready=False, detail="starting")
    finally:
        connection.close()
    if response.status == http.HTTPStatus.OK:
        return Readiness(ready=True, detail=base_url(host, port), models=models)
    return Readiness(ready=False, detail=_WORDS.get(status, status))
