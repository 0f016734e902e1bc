"""Fixtures of the integration tests."""

from __future__ import annotations

import pytest
import redis.asyncio

from shared.keys import Keys
from shared.scripts import Scripts
from tests.integration.shard import Shard


@pytest.fixture
def shard(client: redis.asyncio.Redis, keys: Keys, scripts: Scripts) -> Shard:
    """A shard of its own for each test."""
    return Shard(client, keys, scripts)
