"""The replica's snapshot of what is served: adapters and cold models, and while Redis hangs."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from api.catalog import Catalog
from shared.clock import SystemClock
from shared.errors import BrokerUnavailableError, RequestError
from shared.keys import Keys
from shared.registry import Models, Pool, Registry
from shared.wire import WorkerCard


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


class Fixed:
    """A registry that knows this."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def models(self) -> Models:
        return self._models


def known(*names: tuple[str, str, str]) -> Catalog:
    """A catalog of (name, its base model, pool); a pool whose name starts with `cold` has no worker."""
    pools = {
        pool: Pool(Keys(pool), () if pool.startswith("cold") else (WorkerCard("w", "sim", "1", 1, []),), 1500)
        for _, _, pool in names
    }
    cards: dict[str, dict[str, Any]] = {}
    for name, parent, _ in names:
        cards[name] = {"id": name, "parent": parent or None, "max_model_len": None if parent else 1000}
    return Catalog(
        cast("Registry", Fixed(Models({name: pools[pool] for name, _, pool in names}, cards))), SystemClock()
    )


async def test_who_names_no_model_gets_a_base_model_with_a_worker_before_an_adapter_and_before_a_cold_one() -> None:
    cold, adapter, base = ("c", "", "cold"), ("a", "b", "p"), ("b", "", "p")
    assert (await known(cold, adapter, base).pool_of(None))[0] == "b"
    assert (await known(cold, adapter).pool_of(None))[0] == "a"
    assert (await known(cold).pool_of(None))[0] == "c"
    with pytest.raises(RequestError, match="model"):
        await known().pool_of(None)


async def test_an_adapters_context_is_that_of_its_base_model() -> None:
    catalog = known(("a", "b", "p"), ("b", "", "p"), ("x", "gone", "p"))
    await catalog.models()
    assert [catalog.context_of(name) for name in ("a", "b", "x", "nobody")] == [1000, 1000, 0, 0]


async def test_cards_say_who_is_cold_and_how_long_a_start_takes() -> None:
    cards = await known(("b", "", "p"), ("c", "", "cold")).cards()
    assert cards["b"]["penstock"] == {"state": "ready"}
    assert cards["c"]["penstock"] == {"state": "cold", "cold_start_s": 1.5}
