"""The replica's snapshot of what is served, while Redis hangs."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from api.catalog import Catalog
from shared.clock import SystemClock
from shared.errors import BrokerUnavailableError
from shared.registry import Models, Registry


class Hanging:
    """A registry whose server does not answer: a look at it fails once the timeout of a command has passed."""

    def __init__(self) -> None:
        self.looks = 0
        self.timed_out = asyncio.Event()

    async def models(self) -> Models:
        self.looks += 1
        await self.timed_out.wait()
        raise BrokerUnavailableError


async def test_requests_that_wait_for_the_same_look_fail_with_it_instead_of_one_timeout_after_the_other() -> None:
    registry = Hanging()
    catalog = Catalog(cast("Registry", registry), SystemClock())
    asked = [asyncio.create_task(catalog.models()) for _ in range(20)]
    await asyncio.sleep(0)
    registry.timed_out.set()
    failed = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(error) for error in failed] == [BrokerUnavailableError] * 20
    assert registry.looks == 1
    with pytest.raises(BrokerUnavailableError):
        await catalog.models()
    assert registry.looks == 2, "who comes later has a look of its own"
