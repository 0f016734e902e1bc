"""What is served, as this replica knows it: a snapshot of the registry that is at most a second old when it is asked.

Nothing is read while nobody asks, so an idle replica costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shared.clock import Clock
from shared.errors import BrokerUnavailableError, model_not_found
from shared.registry import Models, Pool, Registry

_FRESH_S = 1.0


class Catalog:
    """Model names, pools and workers."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._models = Models({}, {})
        self._read_at_s = float("-inf")
        self._failed_at_s = float("-inf")
        self._failure = ""
        self._lock = asyncio.Lock()

    async def models(self) -> Models:
        """The current snapshot. Raises BrokerUnavailableError."""
        return await self._at_most(_FRESH_S, lambda _: True)

    async def _at_most(self, age_s: float, enough: Callable[[Models], bool]) -> Models:
        if self._clock.monotonic_s() - self._read_at_s >= age_s or not enough(self._models):
            asked_at_s = self._clock.monotonic_s()
            async with self._lock:
                if self._failed_at_s > asked_at_s:  # nor would another look succeed, only later
                    raise BrokerUnavailableError(self._failure)
                if self._read_at_s < asked_at_s:  # nobody has read it while we waited for the lock
                    await self._read()
        return self._models

    async def _read(self) -> None:
        try:
            self._models = await self._registry.models()
        except BrokerUnavailableError as error:
            self._failed_at_s, self._failure = self._clock.monotonic_s(), str(error)
            raise
        self._read_at_s = self._clock.monotonic_s()

    async def pool_of(self, model: str | None) -> tuple[str, Pool]:
        """The served name and its pool. Without a name: the first model that has a worker, as vLLM does.

        Raises RequestError (404), BrokerUnavailableError.
        """
        if model is None:
            models = await self.models()
            name = next((name for name, pool in models.pools.items() if pool.workers), next(iter(models.pools), None))
            if name is None:
                raise model_not_found("")
            return name, models.pools[name]
        models = await self._at_most(_FRESH_S, lambda known: model in known.pools)
        if model not in models.pools:
            raise model_not_found(model)
        return model, models.pools[model]

    async def deserted(self, name: str) -> bool:
        """Whether a pool is known and no worker of it takes work. Raises BrokerUnavailableError."""
        pools = (await self.models()).pools.values()
        return any(pool.keys.pool == name and not pool.workers for pool in pools)

    async def card(self, model: str) -> dict[str, Any]:
        """The card of one served model. Raises RequestError (404), BrokerUnavailableError."""
        cards = (await self.models()).cards
        if model not in cards:
            raise model_not_found(model)
        return cards[model]

    def context_of(self, model: str) -> int:
        """Tokens that a model can read, as its card says; 0 when that is not known. Looks at what was read last."""
        longest = self._models.cards.get(model, {}).get("max_model_len")
        return longest if isinstance(longest, int) else 0
