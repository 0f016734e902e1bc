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
            name = _first(models)
            return name, models.pools[name]
        models = await self._at_most(_FRESH_S, lambda known: model in known.pools)
        if model not in models.pools:
            raise model_not_found(model)
        return model, models.pools[model]

    async def deserted(self, name: str) -> bool:
        """Whether a pool is known and no worker of it takes work. Raises BrokerUnavailableError."""
        pools = (await self.models()).pools.values()
        return any(pool.keys.pool == name and not pool.workers for pool in pools)

    async def cards(self) -> dict[str, dict[str, Any]]:
        """The cards of all models that are served or known, those without a worker as cold.

        Raises BrokerUnavailableError.
        """
        models = await self.models()
        return {name: _marked(card, models.pools.get(name)) for name, card in models.cards.items()}

    async def card(self, model: str) -> dict[str, Any]:
        """The card of one of them. Raises RequestError (404), BrokerUnavailableError."""
        models = await self.models()
        if model not in models.cards:
            raise model_not_found(model)
        return _marked(models.cards[model], models.pools.get(model))

    def context_of(self, model: str) -> int:
        """Tokens that a model can read, as its card says; 0 when that is not known. Looks at what was read last."""
        cards = self._models.cards
        card = cards.get(model, {})
        longest = card.get("max_model_len") or cards.get(card.get("parent") or "", {}).get("max_model_len")
        return longest if isinstance(longest, int) else 0


def _marked(card: dict[str, Any], pool: Pool | None) -> dict[str, Any]:
    """A card that says whether the model has a worker; if not, how long the last one took to start, as far as known."""
    if pool is None or pool.workers:
        return {**card, "penstock": {"state": "ready"}}
    cold_start_s = pool.cold_start_ms / 1000 if pool.cold_start_ms else None
    return {**card, "penstock": {"state": "cold", "cold_start_s": cold_start_s}}


def _first(models: Models) -> str:
    """The model of those who name none: one that has a worker, if any has, and a base model rather than an adapter.

    Raises RequestError (404).
    """
    if not models.pools:
        raise model_not_found("")

    def rank(name: str) -> tuple[bool, bool]:
        return not models.pools[name].workers, bool(models.cards.get(name, {}).get("parent"))

    return min(models.pools, key=rank)
