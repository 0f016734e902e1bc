"""Tells the ends of batches by webhook: at least once each, with growing pauses, until it is taken or a day is over.

What is to be told stands in Redis, by when: taken over from the outbox, and handed out with a lease, by one script. So
any process tells, one that is killed is followed by another, and all of them say the same event id. No jobs of arq:
they are few, a slow receiver would hold them for as long as it likes, and one whose process was killed comes
back after minutes only.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from dataclasses import dataclass

import httpx2

from api.hooks import HookRules, url_of
from batch.manifest import Manifests, ended_ms
from batch.posting import TIMEOUT_S, Poster
from batch.settings import BatchSettings
from shared.batch_scripts import Told
from shared.batches import Batch, Batches
from shared.errors import BrokerUnavailableError, StorageUnavailableError
from shared.metrics import WEBHOOKS, WEBHOOKS_PENDING, child
from shared.webhooks import event_of, keys_of

log = logging.getLogger(__name__)

LOOK_S = 0.5
LEASE_MS = int(TIMEOUT_S * 1000) + 5_000
"""For how long an end that was handed out is this process's to tell."""
_AT_ONCE = 64
_AT_ONCE_EACH = 8
"""Of them, for one tenant that has named the receiver: a slow one takes no more."""
_LATER_MS = 1_000
_RETRY_S = 0.25
_JITTER = 0.1
_FIRST_OK, _FIRST_NOT_OK, _GONE = 200, 300, 410
for _lost in ("given_up", "refused"):
    child(WEBHOOKS, _lost)  # at 0 from the start: the first would be no increase otherwise, and an alert looks there


@dataclass(frozen=True, slots=True)
class _Receiver:
    """Who is told. `tenant`: whose own it is; empty: the operator's."""

    url: httpx2.URL
    keys: tuple[bytes, ...]
    tenant: str = ""


class Hooks:
    """A service: see `services.py`."""

    name = "webhooks"

    def __init__(self, settings: BatchSettings, batches: Batches, manifests: Manifests, poster: Poster) -> None:
        self._batches = batches
        self._manifests = manifests
        self._poster = poster
        self._rules: HookRules = settings.hook_rules
        self._pauses_s = settings.webhook_pauses_s
        self._own = _Receiver(url_of(settings.webhook_url), settings.webhook_keys) if settings.webhook_url else None
        self._telling: set[asyncio.Task[None]] = set()
        self._busy: Counter[str] = Counter()

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled. What is on its way then is told again, by whoever comes next."""
        started.set()
        try:
            while True:
                try:
                    await self._look()
                except BrokerUnavailableError as error:
                    log.debug("webhooks: %s", error)
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._telling:
                task.cancel()
            await asyncio.gather(*self._telling, return_exceptions=True)
            await self._poster.close()

    async def _look(self) -> None:
        due = await self._batches.scripts.notify(_AT_ONCE - len(self._telling), lease_ms=LEASE_MS)
        WEBHOOKS_PENDING.set(due.waiting)
        for batch in due.batches:
            task = asyncio.create_task(self._tell(batch), name=f"webhook {batch}")
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, batch: str) -> None:
        """What goes wrong is tried again when the lease is over."""
        try:
            await self._try(batch)
        except Exception:
            log.exception("webhook of %s", batch)

    async def _try(self, batch: str) -> None:
        """Tells an end once."""
        try:
            found = await self._batches.find(batch)
            # one that has not ended is a restored one: its end will come again
            receiver = await self._receiver(found) if found is not None and found.ended else None
        except BrokerUnavailableError as error:
            log.debug("webhook of %s: %s", batch, error)
            return
        except ValueError as error:
            log.warning("batch %s: its webhook is given up: %s", batch, error)
            child(WEBHOOKS, "refused").inc()
            await self._settle(batch, 0 if found is None else found.number("hook_attempts"), "refused")
            return
        if found is None or receiver is None:
            await self._settle(batch, 0, "none")
        elif receiver.tenant and self._busy[receiver.tenant] >= _AT_ONCE_EACH:
            await self._settle(batch, 0, "later", after_ms=_LATER_MS)
        else:
            await self._post(found, receiver)

    async def _receiver(self, batch: Batch) -> _Receiver | None:
        """Who is told. Raises ValueError where nobody may be."""
        url = batch.text("webhook_url")
        if not url:
            return self._own
        target = self._rules.target(url)
        keys = keys_of(await self._batches.secret(batch.id))
        if not keys:
            raise ValueError("Redis has lost its secret")
        return _Receiver(target, keys, batch.text("tenant"))

    async def _post(self, batch: Batch, receiver: _Receiver) -> None:
        before = batch.number("hook_attempts")
        event = event_of(f"batch.{batch.status}", batch.id, ended_ms(batch) // 1000)
        self._busy[receiver.tenant] += 1
        try:
            status = await self._poster.post(receiver.url, event, receiver.keys, checked=bool(receiver.tenant))
        finally:
            self._busy[receiver.tenant] -= 1
            if not self._busy[receiver.tenant]:
                del self._busy[receiver.tenant]
        outcome, word = self._outcome(status, before)
        child(WEBHOOKS, word).inc()
        host, tries = receiver.url.raw_host.decode("ascii"), before + 1
        said = "no answer" if status is None else f"status {status}"
        level = logging.WARNING if outcome == "failed" else logging.INFO
        log.log(level, "webhook of %s to %s: %s after %d attempts, %s", batch.id, host, word, tries, said)
        pause_s = self._pauses_s[before] * random.uniform(1 - _JITTER, 1 + _JITTER) if outcome == "again" else 0  # noqa: S311 - jitter
        await self._settle(batch.id, before, outcome, after_ms=int(pause_s * 1000), status=str(status or ""))

    def _outcome(self, status: int | None, before: int) -> tuple[Told, str]:
        """What becomes of it, and the word of the metric."""
        if status is not None and _FIRST_OK <= status < _FIRST_NOT_OK:
            return "delivered", "delivered"
        if status == _GONE:
            return "failed", "gone"
        return ("again", "again") if before < len(self._pauses_s) else ("failed", "given_up")

    async def _settle(self, batch: str, before: int, outcome: Told, *, after_ms: int = 0, status: str = "") -> None:
        """Writes down what became of it, as soon as Redis is there; for an end also where storage remembers it."""
        while True:
            try:
                settled = await self._batches.scripts.notified(batch, before, outcome, after_ms=after_ms, status=status)
                break
            except BrokerUnavailableError:
                await asyncio.sleep(_RETRY_S)
        if settled == "OK" and outcome in {"delivered", "failed", "refused"}:
            try:
                await self._manifests.write(batch)
            except (BrokerUnavailableError, StorageUnavailableError) as error:
                log.warning("batch %s: no checkpoint after its webhook: %s", batch, error)
