"""A batch as its driver holds it: every write is fenced by the driver's token, and tried until Redis answers.

While Redis is away a driver waits. When it is back, either the batch is still this driver's, or the next write says
that it is not: LostError ends the driver, and nothing that it does afterwards counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from shared.batch_scripts import Facts, Kept
from shared.batches import Batch, Batches, Part
from shared.errors import BrokerUnavailableError

T = TypeVar("T")
_RETRY_S = 0.25
_MARK_DIGITS = 8


class LostError(Exception):
    """The batch is not this driver's any more: another one has it, it has ended, or Redis has lost it.

    `gone`: Redis knows nothing of it.
    """

    def __init__(self, why: str, *, gone: bool = False) -> None:
        super().__init__(why)
        self.gone = gone


class Owned:
    """One batch and its driver's token.

    Attributes:
        ending: whether the end was written, or is about to be: the batch has no owner from then on.
    """

    def __init__(self, batches: Batches, batch: Batch, token: str) -> None:
        self._batches = batches
        self._token = token
        self.batch = batch
        self.status = batch.status
        self.ending = False
        self._ahead_ms = batch.number("lease_ms") - time.monotonic() * 1000

    @property
    def id(self) -> str:
        """Of the batch."""
        return self.batch.id

    @property
    def mark(self) -> str:
        """What tells this driver from others in names: some digits of its token, since all of it is the fence."""
        return self._token[:_MARK_DIGITS]

    def now_ms(self) -> int:
        """The server's time, Unix ms, as of the last word from it."""
        return int(time.monotonic() * 1000 + self._ahead_ms)

    async def sync(self) -> None:
        """Asks for the server's time."""
        self._ahead_ms = await self._patiently(self._batches.now_ms) - time.monotonic() * 1000

    async def keep(self, facts: Facts | None = None, *, move: tuple[str, str] = ("", "")) -> bool:
        """Renews the lease, writes facts, and moves the batch on; False when it is not in the status to move from.

        Raises LostError.
        """
        kept = await self._patiently(lambda: self._batches.scripts.keep(self.id, self._token, facts, move=move))
        self._check(kept)
        self.status = kept.status
        self._ahead_ms = kept.now_ms - time.monotonic() * 1000
        return kept.outcome == "OK"

    async def leave(self, facts: Facts | None = None) -> None:
        """Gives the batch back, for whoever takes it next. Raises LostError, BrokerUnavailableError."""
        self._check(await self._batches.scripts.keep(self.id, self._token, facts, leave=True))

    async def commit(self, part: Part, rows: Sequence[int], grows: Mapping[str, int]) -> Kept:
        """Makes a part count: OK, TAKEN or CLOSED. Raises LostError."""
        kept = await self._patiently(
            lambda: self._batches.scripts.commit(self.id, self._token, part.entry, rows, grows)
        )
        self._check(kept)
        return kept

    async def end(self, status: str, facts: Facts) -> str:
        """Ends the batch. Returns how. Raises LostError."""
        self.ending = True
        kept = await self._patiently(lambda: self._batches.scripts.end(self.id, self._token, status, facts))
        self._check(kept)
        self.status = kept.status
        return kept.status

    async def refreshed(self) -> Batch:
        """The batch as Redis has it now. Raises LostError."""
        found = await self._patiently(lambda: self._batches.find(self.id))
        if found is None:
            raise LostError("Redis knows nothing of it", gone=True)
        self.batch = found
        return found

    async def committed(self) -> bytearray:
        """The bitmap of committed rows."""
        return bytearray(await self._patiently(lambda: self._batches.committed(self.id)))

    async def parts(self) -> list[Part]:
        """All committed parts."""
        return await self._patiently(lambda: self._batches.parts(self.id))

    def _check(self, kept: Kept) -> None:
        if kept.outcome in {"FENCED", "GONE"}:
            raise LostError(f"the server says {kept.outcome}", gone=kept.outcome == "GONE")

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except BrokerUnavailableError:
                await asyncio.sleep(_RETRY_S)
