"""`vllm serve`, the reference for what Penstock answers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.support.stack import Process, free_port, poll_until_ready

_START_S = 400.0
_ENTRY = "vllm.entrypoints.launchers.api_server.entry"  # `vllm serve` wants a distribution of the name vllm
_ENV = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""As this process began: an engine that ran in it since has left settings of its own."""


@contextlib.contextmanager
def vllm_serve(model: Path, flags: Sequence[str], folder: Path) -> Iterator[Callable[[], str]]:
    """Starts it, with its log in `folder`. Call what this yields for its address: that waits until it is ready."""
    port = free_port()
    command = [sys.executable, "-m", _ENTRY, "--model", str(model), *flags, "--host", "127.0.0.1", "--port", str(port)]
    server = Process("vllm-serve", command, _ENV, folder)
    url = f"http://127.0.0.1:{port}"

    def ready() -> str:
        poll_until_ready(server, f"{url}/health", _START_S)
        return url

    try:
        yield ready
    finally:
        server.stop()
        server.kill()
