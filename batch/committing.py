"""What has ended → parts of the output that count: objects first, then one script, then Redis forgets the requests.

A part that the script did not take does not exist, whatever lies on storage. So a driver that is killed between the two
loses nothing but the time to read the answers once more, and one that wakes up too late adds nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from batch.answers import Outcome
from batch.owned import LostError, Owned
from shared.batches import Part, is_set
from shared.errors import BrokerUnavailableError, StorageUnavailableError
from shared.metrics import BATCH_COMMITS, BATCH_ROWS, child
from shared.storage import Storage

log = logging.getLogger(__name__)

_FIRST_INTERVAL_S = 0.5
_LAST_INTERVAL_S = 15.0
_SLOWER = 200
"""A batch that has run for so many seconds commits each second: the number of parts stays in the thousands."""
_MOST_BYTES = 8 << 20
_FORGET_AT_ONCE = 100
_RETRY_S = 1.0


class Committer:
    """Of one batch.

    Attributes:
        bitmap: committed rows.
        count: how many they are.
    """

    def __init__(
        self,
        owned: Owned,
        storage: Storage,
        folder: str,
        bitmap: bytearray,
        forget: Callable[[list[str]], Awaitable[None]],
        *,
        most_rows: int,
    ) -> None:
        """`folder`: of the parts' names on storage. `forget`: takes requests away whose rows are committed.

        `most_rows`: that wait to be committed, before `room` holds up who brings more.
        """
        self._owned = owned
        self._storage = storage
        self._folder = folder
        self._forget = forget
        self.bitmap = bitmap
        self.count = sum(byte.bit_count() for byte in bitmap)
        self.most_rows = most_rows
        self._waiting: list[Outcome] = []
        self._pending: set[int] = set()
        self._bytes = 0
        self._since_s = 0.0
        self._begun_s = time.monotonic()
        self._number = 0
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._committing = False
        self.flush = False

    def has(self, row: int) -> bool:
        """Whether a row is committed."""
        return is_set(bytes(self.bitmap[row // 8 : row // 8 + 1]), row % 8)

    @property
    def busy(self) -> bool:
        """Whether there are rows that have ended and are not committed yet."""
        return bool(self._waiting) or self._committing

    def add(self, outcome: Outcome) -> None:
        """A row has ended. The second time, that is nothing new."""
        if outcome.row in self._pending or self.has(outcome.row):
            return
        self._pending.add(outcome.row)
        if not self._waiting:
            self._since_s = time.monotonic()
        self._waiting.append(outcome)
        self._bytes += len(outcome.line)
        self._some.set()
        if len(self._waiting) >= self.most_rows or self._bytes >= _MOST_BYTES:
            self._room.clear()

    async def room(self) -> None:
        """Waits until more may be added."""
        await self._room.wait()

    async def run(self) -> None:
        """Commits until cancelled. Raises LostError."""
        while True:
            await self._some.wait()
            await self._until_due()
            await self.commit()

    async def _until_due(self) -> None:
        interval_s = min(_LAST_INTERVAL_S, max(_FIRST_INTERVAL_S, (time.monotonic() - self._begun_s) / _SLOWER))
        while self._room.is_set() and not self.flush:
            left_s = self._since_s + interval_s - time.monotonic()
            if left_s <= 0 or len(self._waiting) * 2 >= self.most_rows:
                return
            await asyncio.sleep(min(left_s, 0.02))

    async def commit(self) -> None:
        """Commits what waits. Raises LostError."""
        outcomes, self._waiting, self._bytes = self._waiting, [], 0
        self._some.clear()
        self._committing = True
        try:
            while outcomes and not await self._commit(outcomes):
                self.bitmap[:] = await self._owned.committed()
                self.count = sum(byte.bit_count() for byte in self.bitmap)
                outcomes = [outcome for outcome in outcomes if not self.has(outcome.row)]
        finally:
            self._pending = {outcome.row for outcome in self._waiting}
            self._committing = False
            self._room.set()

    async def _commit(self, outcomes: list[Outcome]) -> bool:
        """False when one of the rows counts already."""
        out = b"".join(outcome.line for outcome in outcomes if outcome.good)
        err = b"".join(outcome.line for outcome in outcomes if not outcome.good)
        part = Part(self._name(), len(outcomes), len(out), len(err))
        await asyncio.gather(self._put(part.name, "out", out), self._put(part.name, "err", err))
        rows = [outcome.row for outcome in outcomes]
        good = sum(outcome.good for outcome in outcomes)
        grows: Counter[str] = Counter({"completed": good, "failed": len(outcomes) - good})
        for outcome in outcomes:
            grows.update(outcome.usage)
        kept = await self._owned.commit(part, rows, {name: grown for name, grown in grows.items() if grown})
        child(BATCH_COMMITS, kept.outcome.lower()).inc()
        if kept.outcome == "TAKEN":
            log.warning("batch %s: row %s was committed before", self._owned.id, kept.status)
            return False
        if kept.outcome == "CLOSED":
            raise LostError(f"it takes no more rows: {kept.status}")
        self._owned.status = kept.status
        self._count(rows, good)
        await self._forget_all([outcome.rid for outcome in outcomes])
        return True

    def _name(self) -> str:
        """Of the next part. A Redis that has lost its last seconds counts an epoch twice: the mark tells them apart."""
        self._number += 1
        return f"{self._owned.batch.number('epoch'):06d}-{self._owned.mark}-{self._number:06d}"

    def _count(self, rows: list[int], good: int) -> None:
        need = max(rows) // 8 + 1 - len(self.bitmap)
        if need > 0:
            self.bitmap.extend(bytes(need))
        for row in rows:
            self.bitmap[row // 8] |= 0x80 >> row % 8
        self.count += len(rows)
        child(BATCH_ROWS, "completed").inc(good)
        child(BATCH_ROWS, "failed").inc(len(rows) - good)

    async def _put(self, name: str, suffix: str, data: bytes) -> None:
        while data:
            try:
                await self._storage.put(f"{self._folder}/{name}.{suffix}", data)
            except StorageUnavailableError as error:
                log.warning("batch %s: a part waits for the storage: %s", self._owned.id, error)
                await asyncio.sleep(_RETRY_S)
                await self._owned.keep()  # raises once somebody else has the batch
            else:
                return

    async def _forget_all(self, rids: list[str]) -> None:
        for first in range(0, len(rids), _FORGET_AT_ONCE):
            try:
                await self._forget(rids[first : first + _FORGET_AT_ONCE])
            except BrokerUnavailableError as error:
                log.debug("batch %s: requests are left to their TTL: %s", self._owned.id, error)
                return
