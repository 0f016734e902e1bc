"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis.asyncio

from shared.keys import Keys
from shared.scripts import Scripts
from tests.integration.shard import Shard
from tests.support import servers


@pytest.fixture
def shard(client: redis.asyncio.Redis, keys: Keys, scripts: Scripts) -> Shard:
    """A shard of its own for each test."""
    return Shard(client, keys, scripts)


@pytest.fixture(scope="module", params=servers.KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """A Redis Cluster of one node: as strict about keys as a large one."""
    if request.param not in servers.available():
        pytest.skip(f"this machine has no {request.param} server")
    with servers.running(request.param, cluster=True) as running:
        yield running
