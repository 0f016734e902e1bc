"""Runs the rows of a batch: feeds, collects, looks after what is in flight, stops when all is done or time is up."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Literal

from batch.answers import outcome_of, refused
from batch.feeding import Again, Feeder
from batch.pace import Pace
from batch.resting import Rest, waits_s
from batch.run_state import Flight, RunState
from shared.errors import BrokerUnavailableError, RequestError, worker_lost
from shared.metrics import BATCH_IN_FLIGHT
from shared.states import TERMINAL, State

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often the records of what is in flight are looked at: an end may have been missed, or Redis may have lost one."""
_DRAIN_LOOK_S = 0.2
_MOST_ATTEMPTS = 3
_COLLECT_AT_ONCE = 64
_LATE = frozenset({"deadline_exceeded", "queue_timeout"})
_IDLE_S = 0.5
_SAFETY = 1.5
"""A batch is behind its time when what is left takes so many times as long as it has."""
_EXPIRED_GRACE_S = 3.0
_RETRY_S = 0.25
_TIMEOUT_S = 5.0
_ANSWER_S = 15.0
"""In which the answer of a request that has ended must be there: for one that has not, a relay waits without end."""

Closing = Literal["completed", "cancelled", "expired"]


class Running:
    """One batch in progress, by one driver.

    Attributes:
        rest: for how long nothing can be done.
    """

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._feeder = Feeder(state)
        self._changed = asyncio.Event()
        self._closing: Closing | None = None
        self._looked_at_s = float("-inf")
        self._refeeding = state.fed > 0
        self.rest = Rest()
        self.pace = Pace()
        self._counted = 0
        self._settling = False
        state.on_change = self._changed.set

    async def run(self) -> Closing | None:
        """Until every row is committed, or the batch is to end early; None when it has to rest.

        Raises LostError and what storage raises.
        """
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(self._state.committer.run()), group.create_task(self._collect())]
            try:
                closing = await self._feed()
                if closing is not None:
                    await self._drain(closing)
            finally:
                for helper in helpers:
                    helper.cancel()
                for rid in list(self._state.flights):
                    self._state.land(rid)
                BATCH_IN_FLIGHT.dec(self._counted)
                self._counted = 0
        return closing

    def _count(self) -> None:
        flying = len(self._state.flights)
        BATCH_IN_FLIGHT.inc(flying - self._counted)
        self._counted = flying

    async def _feed(self) -> Closing | None:
        """Feeds until there is nothing more to feed and to wait for, or nothing can be done for a while."""
        state = self._state
        again = [position for position in range(state.fed) if not state.committer.has(state.order.row(position))]
        self._feeder.again.extend(map(Again, again))
        if state.owned.status == "cancelling":
            return "cancelled"
        while True:
            if (closing := self._over()) is not None:
                return closing
            if await self._step():
                await asyncio.sleep(0)
                continue
            if self.rest.due(busy=bool(state.ended) or self._settling or state.committer.busy):
                return None
            self._changed.clear()
            await self._look_when_due()
            try:
                async with asyncio.timeout(_IDLE_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _over(self) -> Closing | None:
        state = self._state
        if state.committer.count >= len(state.order):
            return "completed"
        if state.owned.status == "cancelling":
            return "cancelled"
        return "expired" if state.owned.now_ms() >= state.expires_at_ms else None

    async def _step(self) -> int:
        """Feeds what there is room for. Returns how many."""
        state = self._state
        self._count()
        exhausted = self._feeder.exhausted
        if exhausted:
            state.committer.flush = not state.flights
        closed_s = waits_s(state.batch, state.owned.now_ms())
        try:
            _, pool = await state.tools.catalog.pool_of(state.batch.text("model"))
            self.rest.saw(closed_s, served=pool.slots > 0, flying=bool(state.flights))
            if closed_s or (exhausted and not self._refeeding):
                return 0
            await state.tools.ends.open(pool.keys)
            self._hurry()
            settings = state.tools.settings
            wide = pool.slots * settings.batch_window * (1 + state.behind)
            window = min(settings.batch_window_max, round(wide))
            fed = await self._feeder.feed(pool, max(window, int(pool.slots > 0)) - len(state.flights))
        except (BrokerUnavailableError, RequestError) as error:
            self.rest.saw(closed_s, served=isinstance(error, BrokerUnavailableError), flying=bool(state.flights))
            log.debug("batch %s: %s", state.batch.id, error)
            await asyncio.sleep(_RETRY_S)
            return 0
        if self._refeeding and not self._feeder.again and self._feeder.next >= state.fed:
            self._refeeding = False
            self._looked_at_s = float("-inf")  # what ran meanwhile may have ended before we listened
        return fed

    def _hurry(self) -> None:
        """Is the batch behind its time? Then its rows get a better place in the lane, and more of them wait there."""
        state = self._state
        left_s = self.pace.left_s(len(state.order) - state.committer.count)
        due_s = (state.expires_at_ms - state.owned.now_ms()) / 1000
        behind = left_s is not None and left_s * _SAFETY > due_s
        if behind != state.behind:
            log.info(
                "batch %s is %s its time: %.0f s left to do, %.0f s to go",
                state.batch.id,
                "behind" if behind else "in",
                left_s or 0,
                due_s,
            )
        state.behind = behind

    # ---- what has ended

    async def _collect(self) -> None:
        state = self._state
        waiter = asyncio.Event()
        changed = state.on_change

        def on_change() -> None:
            waiter.set()
            changed()

        state.on_change = on_change
        while True:
            if not state.ended:
                waiter.clear()
                await waiter.wait()
            await state.committer.room()
            taken = [state.ended.popleft() for _ in range(min(len(state.ended), _COLLECT_AT_ONCE))]
            flights = [flight for rid in taken if (flight := state.flights.get(rid)) is not None]
            self._settling = True
            await asyncio.gather(*map(self._settle, flights))
            self._settling = False
            self._changed.set()

    async def _settle(self, flight: Flight) -> None:
        """Takes the answer of a request that has ended."""
        state, rid = self._state, flight.asked.rid
        try:
            async with asyncio.timeout(_ANSWER_S):
                outcome = await outcome_of(state.tools.client, flight.keys, flight.asked)
        except (BrokerUnavailableError, RequestError, TimeoutError):
            if rid in state.flights:  # Redis is away, or has lost the end with a failover: the next look finds it again
                state.tools.ends.watch(rid, state.on_end)
            return
        if state.land(rid) is None:
            return
        if outcome is None and flight.attempt + 1 < _MOST_ATTEMPTS:
            self._feeder.again.append(Again(flight.position, flight.attempt + 1))
            return
        if outcome is None:
            outcome = refused(flight.asked, worker_lost())
        if outcome.code in _LATE or (outcome.code == "cancelled" and self._closing is not None):
            return
        state.committer.add(outcome)
        self.pace.done()

    async def _look_when_due(self) -> None:
        if time.monotonic() - self._looked_at_s >= LOOK_S:
            self._looked_at_s = time.monotonic()
            await self._look()

    async def _look(self) -> dict[str, State]:
        """Looks at what is in flight. Returns the states of what has not ended, by request id."""
        state = self._state
        flights = list(state.flights.values())
        try:
            asked = [
                state.tools.client.send("HGET", flight.keys.record(flight.asked.rid), "state", timeout_s=_TIMEOUT_S)
                for flight in flights
            ]
            found = await asyncio.gather(*asked)
        except BrokerUnavailableError:
            return {}
        states: dict[str, State] = {}
        for flight, word in zip(flights, found, strict=True):
            rid = flight.asked.rid
            if word is None:
                if state.land(rid) is not None and self._closing is None:  # Redis has lost it: it is admitted again
                    self._feeder.again.append(Again(flight.position, flight.attempt))
            elif (at := State(word.decode())) in TERMINAL:
                state.on_end(rid)
            else:
                states[rid] = at
        return states

    # ---- an end before the end

    async def _drain(self, closing: Closing) -> None:
        """Nothing more is fed: what waits is cancelled, what runs gets a grace. Commits what has ended."""
        state = self._state
        self._closing = closing
        if closing != "completed":
            if closing == "expired":
                await state.owned.keep({"closing": "expired"})
            grace_s = state.tools.settings.batch_cancel_grace_s if closing == "cancelled" else 0.0
            await self._adopt()
            await self._end_flights(time.monotonic() + grace_s)
        while state.ended or self._settling or state.committer.busy:
            state.committer.flush = True
            await asyncio.sleep(_DRAIN_LOOK_S / 10)

    async def _adopt(self) -> None:
        """What an earlier driver has fed and this one has not: its requests are looked at, and not admitted."""
        try:
            await self._feeder.adopt()
        except (BrokerUnavailableError, RequestError) as error:
            log.warning("batch %s: what was in flight is left: %s", self._state.batch.id, error)

    async def _end_flights(self, stop_at_s: float) -> None:
        state = self._state
        give_up_at_s = stop_at_s + _EXPIRED_GRACE_S
        told: set[str] = set()
        while state.flights and time.monotonic() < give_up_at_s:
            states = await self._look()
            late = time.monotonic() >= stop_at_s
            for rid, at in states.items():
                if rid not in told and (late or at is State.QUEUED):
                    await self._cancel(state.flights.get(rid))
                    if late:
                        told.add(rid)
            await asyncio.sleep(_DRAIN_LOOK_S)
        for rid in list(state.flights):
            state.land(rid)

    async def _cancel(self, flight: Flight | None) -> None:
        if flight is None:
            return
        try:
            await self._state.tools.requests.cancel(flight.keys, flight.asked.rid, "cancelled")
        except BrokerUnavailableError as error:
            log.debug("request %s: %s", flight.asked.rid, error)
