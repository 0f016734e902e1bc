"""The engine's tokenizer, made ready for the replicas, which have neither the engine nor the model.

Without it they estimate how long prompts are: nothing fails, so nothing here may end a worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from shared.errors import BrokerUnavailableError
from shared.registry import Registry
from shared.tokenizer import TTL_S, pack
from shared.wire import Counting
from worker.engines.base import Engine

log = logging.getLogger(__name__)

RETRY_S = 30.0
_ASK_S = 30.0


@dataclass(slots=True)
class Vocabulary:
    """A packed tokenizer, and what the worker's card says about it."""

    counting: Counting
    packed: bytes
    _refused_at_s: float = float("-inf")

    async def keep(self, registry: Registry) -> None:
        """Sees to it that the tokenizer is in Redis. To be called more often than every `TTL_S` seconds.

        A Redis that does not take it is asked again after `RETRY_S`, since it may be large.
        """
        name = self.counting.tokenizer
        if time.monotonic() - self._refused_at_s < RETRY_S:
            return
        try:
            if not await registry.keep_tokenizer(name, TTL_S):
                await registry.publish_tokenizer(name, self.packed, TTL_S)
        except BrokerUnavailableError as error:
            self._refused_at_s = time.monotonic()
            log.warning("tokenizer: %s; replicas estimate the length of prompts meanwhile", error)


async def vocabulary_of(engine: Engine) -> Vocabulary | None:
    """What the replicas need to count this engine's prompts; None when they can only estimate."""
    try:
        async with asyncio.timeout(_ASK_S):  # an engine that dies meanwhile answers nothing any more
            tokenizer = await engine.tokenizer()
        if tokenizer is None:
            log.info("tokenizer: the model has none of the kind that replicas can use; they estimate prompts' lengths")
            return None
        name, packed = await asyncio.to_thread(pack, tokenizer.text)
    except Exception as error:  # noqa: BLE001 - the engine serves, whatever is wrong with what replicas could know
        log.warning("tokenizer: %r; replicas estimate the length of prompts", error)
        return None
    return Vocabulary(Counting(name, tokenizer.chat, tokenizer.message, tokenizer.tools), packed)
