"""Compares what Redis says this worker owns with what it runs.

After a failover that lost the tail of the database, or a claim whose reply never came, the run set can name requests
that nobody works on. Nobody else may touch them while this worker lives, so they would wait for ever: they are handed
back. And it may lack requests that run here, after a flush too: they are wanted back at once, before a replica has them
run again. It looks every few seconds, and as soon as the connection was renewed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from shared.errors import BrokerUnavailableError, FencedError
from shared.hot import HotClient
from shared.keys import Keys
from shared.metrics import RECONCILED
from shared.scripts import Scripts
from worker.attempts import Attempts
from worker.identity import Identity

log = logging.getLogger(__name__)

LOOK_S = 5.0
AGAIN_S = 2.0
"""Until the second look at something unknown. A claim that is just under way is known by then."""
_TIMEOUT_S = 5.0


class Reconcile:
    """A service: see `services.py`."""

    name = "reconcile"

    def __init__(
        self, client: HotClient, keys: Keys, scripts: Scripts, attempts: Attempts, identity: Identity, *, look_s: float
    ) -> None:
        """`look_s`: how often to compare."""
        self._client = client
        self._keys = keys
        self._scripts = scripts
        self._attempts = attempts
        self._identity = identity
        self._look_s = look_s
        self._soon = asyncio.Event()
        self._unknown: set[tuple[str, str]] = set()

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled."""
        started.set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._look_s, AGAIN_S) if self._unknown else self._look_s):
                    await self._soon.wait()
            self._soon.clear()
            try:
                await self.look()
            except (BrokerUnavailableError, FencedError) as error:
                log.debug("reconcile: %s", error)

    def soon(self) -> None:
        """The connection was renewed: what Redis knows may be another history."""
        self._soon.set()

    async def look(self) -> None:
        """One comparison. What is unknown twice in a row is handed back; once may be a claim that is just under way."""
        wid = self._identity.wid
        runs = self._attempts.in_engine()  # before it is asked: what has been claimed by now must be known
        flat = await self._client.call("HGETALL", self._keys.run(wid), timeout_s=_TIMEOUT_S)
        owned = {(rid.decode(), attempt.decode()) for rid, attempt in zip(flat[::2], flat[1::2], strict=True)}
        if wid == self._identity.wid:
            for missing in runs.keys() - owned:
                runs[missing].reclaim()
        unknown = owned - self._attempts.owned()
        for rid, attempt in unknown & self._unknown:
            outcome = await self._scripts.requeue(wid, rid, attempt, how="hand_back")
            RECONCILED.inc()
            log.warning("request %s was ours and unknown here; handed back: %s", rid, outcome)
        self._unknown = unknown
