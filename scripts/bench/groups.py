"""Groups of processes that are started, watched and stopped together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

_STOP_PATIENCE_S = 8
_LOG_TAIL_CHARS = 400


class BenchError(Exception):
    """A measurement could not be made; the message says why."""


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, on the loopback interface."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Group:
    """Processes by role, each the leader of its own process group, so that its children are stopped with it."""

    def __init__(self, folder: Path, name: str) -> None:
        """Logs go to `folder`."""
        self._folder = folder
        self._name = name
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, role: str, command: list[str], env: Mapping[str, str] | None = None) -> None:
        """Starts a process. Raises BenchError when there is no such program."""
        with self._log(role).open("wb") as log:
            try:
                self.processes[role] = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    cwd=self._folder,  # not where a .env of somebody's could lie
                    env={**os.environ, **(env or {})},
                    start_new_session=True,
                )
            except OSError as error:
                msg = f"{role} of {self._name} cannot be started: {error.strerror}"
                raise BenchError(msg) from error

    def _log(self, role: str) -> Path:
        return self._folder / f"{self._name}.{role}.log"

    def check(self) -> None:
        """Raises BenchError when a process has ended."""
        for role, process in self.processes.items():
            if process.poll() is not None:
                tail = self._log(role).read_text(errors="replace")[-_LOG_TAIL_CHARS:].strip()
                msg = f"{role} of {self._name} ended with {process.returncode}: {tail}"
                raise BenchError(msg)

    def wait_ready(self, url: str, limit_s: float) -> None:
        """Returns once the URL answers 200. Raises BenchError."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            self.check()
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - http
                if answer.status == 200:
                    return
            time.sleep(0.1)
        msg = f"{self._name} is not ready after {limit_s:.0f} s"
        raise BenchError(msg)

    def wait_file(self, path: Path, limit_s: float) -> None:
        """Returns once a file, such as a socket, exists. Raises BenchError."""
        end_s = time.monotonic() + limit_s
        while not path.exists():
            self.check()
            if time.monotonic() > end_s:
                msg = f"{self._name}: {path.name} does not appear"
                raise BenchError(msg)
            time.sleep(0.05)

    def stop(self) -> None:
        """Stops everything; safe to call twice."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.processes.values()):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            end_s = time.monotonic() + _STOP_PATIENCE_S
            for process in self.processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, end_s - time.monotonic()))
        self.processes = {}
