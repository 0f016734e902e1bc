"""Clients of a module's stack: whatever `stack` a test module starts, its first replica is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from openai import AsyncOpenAI

from tests.support.stack import Stack


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """A plain client without a key."""
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=30) as client:
        yield client


@pytest.fixture
async def sdk(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client, which tries nothing twice."""
    async with AsyncOpenAI(base_url=f"{stack.apis[0].url}/v1", api_key="none", max_retries=0) as client:
        yield client
