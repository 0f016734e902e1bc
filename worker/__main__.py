"""`python -m worker`: runs one worker. `penstock worker` is the same. Flags after `--` go to the engine."""

from __future__ import annotations

import importlib
import socket
import sys
from typing import TYPE_CHECKING

import uvloop

from shared.errors import ConfigurationError, EngineFailedError
from shared.ops import listen
from shared.process import tune_collector
from shared.settings import read_settings
from shared.telemetry import setup_logging
from shared.tracing import open_tracing
from worker.app import Worker
from worker.engines.base import Engine
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from shared.spans import Tracing

_SERVICE = "penstock-worker"


def main(argv: list[str]) -> int:
    """Works until SIGTERM or SIGINT. Returns the exit status: 2 wrong settings, 1 failure."""
    ours, engine_flags = _split(argv)
    try:
        settings = read_settings(WorkerSettings, ours, "penstock worker")
        setup_logging(settings.log_level, settings.log_format, service=_SERVICE, secrets=settings.secrets)
        tracing = open_tracing(settings, _SERVICE)
        engine = load_engine(settings, engine_flags)
        listener = listen(settings.ops_host, settings.ops_port)
        return uvloop.run(_run(settings, engine, listener, tracing))
    except ConfigurationError as error:
        sys.stderr.write(f"penstock worker: {error}\n")
        return 2
    except EngineFailedError as error:
        sys.stderr.write(f"penstock worker: {error}\n")
        return 1


async def _run(settings: WorkerSettings, engine: Engine, listener: socket.socket, tracing: Tracing | None) -> int:
    tune_collector()
    try:
        return await Worker(settings, engine, listener, tracing).run()
    finally:
        if tracing is not None:
            tracing.close()


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def load_engine(settings: WorkerSettings, flags: list[str]) -> Engine:
    """The engine that the settings name. Raises ConfigurationError when it is not installed or its flags are wrong."""
    try:
        module = importlib.import_module(f"worker.engines.{settings.engine}")
    except ImportError as error:
        msg = f"the engine {settings.engine} is not installed ({error}). `make setup` installs it."
        raise ConfigurationError(msg) from error
    engine: Engine = module.create(settings, flags)
    return engine


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
