"""`python -m batch`: runs one batch process. `penstock batch-worker` is the same."""

from __future__ import annotations

import socket
import sys

import uvloop

from batch.app import BatchProcess
from batch.settings import BatchSettings
from shared.errors import ConfigurationError
from shared.ops import listen
from shared.process import tune_collector
from shared.settings import read_settings
from shared.storage import Storage, open_storage
from shared.telemetry import setup_logging


def main(argv: list[str]) -> int:
    """Works until SIGTERM or SIGINT. Returns the exit status: 2 wrong settings, 1 failure."""
    try:
        settings = read_settings(BatchSettings, argv, "penstock batch-worker")
        setup_logging(settings.log_level, settings.log_format, service="penstock-batch", secrets=settings.secrets)
        if not settings.storage_url:
            raise ConfigurationError("--storage-url is needed: batches are files. Name a folder, or a bucket.")  # noqa: TRY301
        storage = open_storage(settings.storage_url)
        listener = listen(settings.ops_host, settings.ops_port)
        return uvloop.run(_run(settings, storage, listener))
    except ConfigurationError as error:
        sys.stderr.write(f"penstock batch-worker: {error}\n")
        return 2


async def _run(settings: BatchSettings, storage: Storage, listener: socket.socket) -> int:
    tune_collector()
    return await BatchProcess(settings, storage, listener).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
