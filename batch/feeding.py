"""Rows on their way into the batch lane: read in order, admitted as any request is, held back while refused."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, replace

from api.idempotency import Terms
from batch.answers import Asked, refused
from batch.reading import AT_ONCE, Read, read_rows
from batch.rows import RESPONSES, FaultError, row_of
from batch.run_state import Flight, RunState
from shared import errors
from shared.errors import BrokerUnavailableError, RequestError
from shared.metrics import ADMITTED, child
from shared.registry import Pool

log = logging.getLogger(__name__)

_KEEP_S = 86_400
"""How long the answer of a row waits for a driver. It is taken away as soon as it is committed."""
_COME_AGAIN = frozenset({429, 503})
_LATE = frozenset({"deadline_exceeded", "queue_timeout"})
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.05, 5.0
_RESERVE = 512
"""Positions that are said to be on their way at once: so a driver that takes over knows where to look."""
_ADMIT_AT_ONCE = 64
_HURRY_PRICE = 0.25
"""What a row owes its lane when its batch is behind its time: its tenant gets four times its share meanwhile."""
_TIMEOUT_S = 5.0
_JSON = [("content-type", "application/json")]


@dataclass(frozen=True, slots=True)
class Again:
    """A position to feed once more, and which of its requests it will be."""

    position: int
    attempt: int = 0


class Feeder:
    """Of one batch."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self.next = state.fed
        self._reserved = state.fed
        self.again: deque[Again] = deque()
        self._ready: deque[tuple[Read, int]] = deque()
        self._hold_until_s = 0.0
        self._rules = state.tools.rules(state.batch)

    @property
    def exhausted(self) -> bool:
        """Whether every row has been fed, as far as is known now."""
        return not self.again and not self._ready and self.next >= len(self._state.order)

    async def feed(self, pool: Pool, room: int) -> int:
        """Admits up to `room` rows. Returns how many it has taken up. Raises LostError and what storage raises."""
        if room <= 0 or time.monotonic() < self._hold_until_s:
            return 0
        if not self._ready:
            await self._read()
        taken = [self._ready.popleft() for _ in range(min(room, len(self._ready), _ADMIT_AT_ONCE))]
        if not taken:
            return 0
        closed = await self._state.tools.memory.refusal()
        if closed is not None:
            self._refused(taken, closed.retry_after_s)
            return 0
        done = await asyncio.gather(*(self._admit(pool, read, attempt) for read, attempt in taken))
        back = [pair for pair, after_s in zip(taken, done, strict=True) if after_s is not None]
        if back:
            self._refused(back, max(after_s for after_s in done if after_s is not None))
        return len(taken) - len(back)

    def _refused(self, back: list[tuple[Read, int]], after_s: float | None) -> None:
        self._ready.extendleft(reversed(back))
        pause_s = min(max(after_s or 1.0, _LEAST_PAUSE_S), _MOST_PAUSE_S)
        self._hold_until_s = time.monotonic() + pause_s

    async def _read(self, *, new: bool = True) -> None:
        """Reads the next rows; those first that are fed again. `new`: and then those that never were."""
        state = self._state
        attempts: dict[int, int] = {}
        while self.again and len(attempts) < AT_ONCE:
            one = self.again.popleft()
            attempts[one.position] = one.attempt
        while new and len(attempts) < AT_ONCE and self.next < len(state.order):
            if self.next >= self._reserved:
                if attempts:
                    break
                self._reserved = min(len(state.order), self.next + _RESERVE)
                await state.owned.keep({"fed": self._reserved})
            if not state.committer.has(state.order.row(self.next)):
                attempts[self.next] = 0
            self.next += 1
        positions = sorted(attempts)
        if not positions:
            return
        found = await read_rows(state.tools.files, state.input, state.order, positions)
        self._ready.extend((read, attempts[read.position]) for read in found)
        self.again.extendleft(Again(position, attempts[position]) for position in reversed(positions[len(found) :]))

    async def adopt(self) -> None:
        """Waits for the rows that an earlier driver has fed, without admitting them. Raises as `feed` does."""
        state = self._state
        _, pool = await state.tools.catalog.pool_of(state.batch.text("model"))
        await state.tools.ends.open(pool.keys)
        while self.again:
            await self._read(new=False)
            for read, attempt in self._ready:
                row = row_of(read.text)
                endpoint = state.batch.text("endpoint")
                body = row.body if endpoint == RESPONSES else b""
                rid = state.rid(read.row, attempt)
                asked = Asked(read.row, rid, row.custom_id, state.batch.text("model"), endpoint, body)
                state.fly(Flight(asked, read.position, attempt, pool.keys))
            self._ready.clear()

    async def _admit(self, pool: Pool, read: Read, attempt: int) -> float | None:
        """Admits a row. None when that is settled, one way or the other; else seconds until it may be tried again."""
        state = self._state
        if state.committer.has(read.row):
            return None
        asked = Asked(read.row, state.rid(read.row, attempt), "", "", state.batch.text("endpoint"))
        try:
            row = row_of(read.text)
            asked = replace(asked, custom_id=row.custom_id)
            valid = self._rules.valid(row.body)
            asked = replace(asked, model=valid.model or "", body=row.body if asked.endpoint == RESPONSES else b"")
            terms = Terms(stays=True, keep_s=_KEEP_S, until_ms=state.expires_at_ms, remembered=False)
            tenant = state.batch.text("tenant")
            flight = Flight(asked, read.position, attempt, pool.keys)
            if valid.pictures is not None and await self._known(flight):
                state.fly(flight)  # it needs no images any more, and a URL may have ceased to work since
                return None
            entry = await state.tools.entries.entry(asked.rid, valid, tenant, _JSON, terms, pool)
            if state.behind:
                entry.admission = replace(entry.admission, price=_HURRY_PRICE)
            state.fly(flight)
            await state.tools.places.place(entry)
            child(ADMITTED, valid.lane, pool.keys.pool).inc()
        except RequestError as error:
            state.land(asked.rid)
            if error.code in _LATE:
                return None  # its time is up: that is for the whole batch to say
            if error.status in _COME_AGAIN:
                return error.retry_after_s or 1.0
            state.committer.add(refused(asked, error))
        except BrokerUnavailableError:
            state.land(asked.rid)
            return 1.0
        except FaultError as fault:  # the file is another one than the one that was looked at
            state.committer.add(refused(asked, RequestError(400, fault.code, fault.message, param=fault.param)))
        except Exception:
            # a mistake of ours over one row must not keep all rows behind it from running, driver after driver
            state.land(asked.rid)
            log.exception("row %d of batch %s fails", read.row, state.batch.id)
            state.committer.add(refused(asked, errors.internal_error()))
        return None

    async def _known(self, flight: Flight) -> bool:
        """Whether a row was admitted before, by an earlier driver. Raises BrokerUnavailableError."""
        client, record = self._state.tools.client, flight.keys.record(flight.asked.rid)
        return bool(await client.call("EXISTS", record, timeout_s=_TIMEOUT_S))
