"""The data folder of `penstock up`: the server's data, logs, files, and the lock that keeps a second one out."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import ConfigurationError


class DataFolder:
    """Paths below one folder. They are made when the folder is taken; `files`, by the first replica."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.redis = self.path / "redis"
        self.logs = self.path / "logs"
        self.files = self.path / "files"

    def log(self, name: str) -> Path:
        """The log of a process. What earlier runs wrote is moved to `<name>.log.old`."""
        path = self.logs / f"{name}.log"
        if path.exists():
            path.replace(path.with_suffix(".log.old"))
        return path

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Holds the folder for this process; the kernel gives it back however the process ends.

        Raises ConfigurationError when another process holds it, or when it cannot be written.
        """
        try:
            self.redis.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.logs.mkdir(exist_ok=True)
            lock = (self.path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            msg = f"Cannot write to the data folder {self.path} ({error.strerror}). Choose another one with --data."
            raise ConfigurationError(msg) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                holder = lock.read().strip()
                msg = (
                    f"`penstock up` is running in {self.path} already{f' (process {holder})' if holder else ''}. "
                    "Stop it, or give this one its own --data folder and --port."
                )
                raise ConfigurationError(msg) from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield
