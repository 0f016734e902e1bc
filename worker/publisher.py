"""The way out: what attempts produce → frames → one `step` per flush for all of them.

Flushes batch naturally. A flush starts as soon as anything waits and no flush is under way; whatever is produced
meanwhile goes with the next one, deltas of one request merged into one frame. So the first token leaves at once, and
under load the cost per token falls.

An attempt's last bytes do not go through a flush: they ride on `done`, in the terminal frame.

A refused frame says that somebody else owns the request by rights, or that Redis has lost history. `restore` tells the
two apart: it takes the request back only where that overwrites nothing. See docs/adr/0011.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from shared.errors import BrokerUnavailableError, FencedError
from shared.metrics import FENCED, FLUSH_SECONDS, FLUSHED_FRAMES, FLUSHES, RESTORED, child
from shared.outcomes import Claimed, Finished, Restored, Stepped
from shared.scripts import Scripts
from shared.wire import Meta
from worker.identity import Identity
from worker.outgoing import Outgoing

T = TypeVar("T")

log = logging.getLogger(__name__)

MOST_FRAMES = 256
"""Sequences in one flush; more wait for the next."""
KEEP_BYTES: Final = 4_194_304
"""Up to which length an attempt's log is kept here, unless a setting says otherwise."""
_RESTORES_AT_ONCE = 4
"""A log may be megabytes, and everything that a worker runs may want back at once."""
_BUSY_FRAMES = 64
_BUSY_PAUSE_S = 0.005
_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 1.0


class Publisher:
    """Flushes. A service: see `services.py`."""

    name = "publisher"

    def __init__(
        self,
        scripts: Scripts,
        identity: Identity,
        on_box: Callable[[list[bytes]], None],
        *,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        """`on_box` gets the control messages that come back with a flush; it must not block.

        `keep_bytes`: up to which length the log of an attempt is kept here, for a Redis that loses it.
        """
        self._scripts = scripts
        self._keep_bytes = keep_bytes
        self._at_once = asyncio.Semaphore(_RESTORES_AT_ONCE)
        self._restoring: set[asyncio.Task[None]] = set()
        self._identity = identity
        self._on_box = on_box
        self._waiting: dict[Outgoing, None] = {}
        self._wake = asyncio.Event()

    def open(self, rid: str, attempt: str, claimed: Claimed, *, width: int, priority: int) -> Outgoing:
        """The way out of one attempt. `width`: the sequences that it generates."""
        return Outgoing(self, rid, attempt, claimed, width=width, keep_bytes=self._keep_bytes, priority=priority)

    def mark(self, out: Outgoing) -> None:
        """Something of `out` waits to be published."""
        self._waiting[out] = None
        self._wake.set()

    async def forget(self, out: Outgoing) -> None:
        """What still waits of `out` is not to be published: its request is no longer ours."""
        await self._landed(out)

    async def flushed(self, out: Outgoing) -> None:
        """Returns once everything of `out` that waited is published, or was refused."""
        while out in self._waiting or out.in_flight is not None:
            if out.in_flight is not None:
                await asyncio.shield(out.in_flight)
            else:
                await asyncio.sleep(_BUSY_PAUSE_S)

    async def _landed(self, out: Outgoing) -> None:
        """Returns once nothing of `out` is on its way, and nothing waits to be."""
        self._waiting.pop(out, None)
        while out.in_flight is not None:
            await asyncio.shield(out.in_flight)
        self._waiting.pop(out, None)

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled."""
        started.set()
        try:
            await self._flushes()
        finally:
            for task in self._restoring:
                task.cancel()

    async def _flushes(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)  # sequences of one engine step produce within one turn of the loop: take them all
            batch = list(self._waiting)[:MOST_FRAMES]
            for out in batch:
                del self._waiting[out]
            if self._waiting:
                self._wake.set()
            if batch:
                await self._flush(batch)
                if len(batch) > _BUSY_FRAMES:
                    await asyncio.sleep(_BUSY_PAUSE_S)

    async def _flush(self, batch: list[Outgoing]) -> None:
        flight: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        frames = []
        for out in batch:
            out.in_flight = flight
            frames.append((out.rid, out.attempt, out.log_len, out.frame()))
        wid = self._identity.wid
        refused: list[tuple[Outgoing, bytes, int]] = []
        began_s = time.perf_counter()
        try:
            stepped = await until_answered(f"flush of {len(frames)} frames", lambda: self._scripts.step(wid, frames))
        except FencedError:
            self._identity.condemned(wid)
        else:
            FLUSH_SECONDS.observe(time.perf_counter() - began_s)
            FLUSHES.inc()
            FLUSHED_FRAMES.inc(len(frames))
            refused = self._settle(batch, frames, stepped)
        finally:
            for out in batch:
                out.in_flight = None
            flight.set_result(None)
        for out, frame, log_len in refused:
            self._get_back(wid, out, frame, log_len)

    def _settle(
        self, batch: list[Outgoing], frames: list[tuple[str, str, int, bytes]], stepped: Stepped
    ) -> list[tuple[Outgoing, bytes, int]]:
        """Takes note of what was published. Returns what was refused: the frame and the log's length."""
        refused = []
        for position, (out, (_, _, _, frame)) in enumerate(zip(batch, frames, strict=True)):
            if position in stepped.refused:
                FENCED.inc()
                refused.append((out, frame, stepped.refused[position]))
                continue
            out.log_len += len(frame)
            if out.log_len <= out.keep_until:
                out.published.append(frame)
            elif out.published:
                out.published = []
        if stepped.box:
            self._on_box(stepped.box)
        return refused

    def reclaim(self, out: Outgoing) -> None:
        """Redis does not know that `out` is ours, and should: it is told, unless something is on its way just now."""
        if out.in_flight is None:
            self._get_back(self._identity.wid, out, b"", -1)

    def _get_back(self, wid: str, out: Outgoing, frame: bytes, log_len: int) -> None:
        """A frame was refused: starts to get the request back, in case that Redis has lost history."""
        self._waiting.pop(out, None)
        out.in_flight = asyncio.get_running_loop().create_future()
        out.pause()
        task = asyncio.create_task(self._restore(wid, out, frame, log_len), name=f"restore-{out.rid}")
        self._restoring.add(task)
        task.add_done_callback(self._restoring.discard)

    async def _restore(self, wid: str, out: Outgoing, frame: bytes, log_len: int) -> None:
        flight = out.in_flight
        try:
            outcome = await self._ask_back(wid, out, frame, ending=False)
            if outcome == "OK":
                if frame:
                    out.log_len += len(frame)
                    out.published.append(frame)
                out.unpause()
        finally:
            out.in_flight = None
            if flight is not None:
                flight.set_result(None)
        if outcome != "OK":
            out.on_refused(-1 if outcome == "STALE" else log_len)

    async def _ask_back(self, wid: str, out: Outgoing, frame: bytes, *, ending: bool) -> Restored | None:
        """What `restore` says about a request; None when too little was kept of it to ask."""
        outcome: Restored | None = "STALE"
        held = out.held(frame, ending=ending)
        if held is None:
            return None
        async with self._at_once:
            try:
                outcome = await until_answered(f"restoring {out.rid}", lambda: self._scripts.restore(wid, held))
            except FencedError:
                self._identity.condemned(wid)
        child(RESTORED, str(outcome).lower()).inc()
        if outcome == "OK":
            log.info("Redis had lost request %s; it has it back, with %d bytes", out.rid, len(held.log))
        return outcome

    async def finish(self, out: Outgoing, end: Meta) -> bool:
        """Ends an attempt's request with `end`; sent until Redis answers. False when it refuses (see on_refused)."""
        await self._landed(out)
        frame = out.frame(end)
        wid = self._identity.wid
        finished = await self._done(wid, out, end, frame)
        if finished.outcome != "OK":
            FENCED.inc()
            if await self._ask_back(wid, out, b"", ending=True) == "OK":
                finished = await self._done(wid, out, end, frame)
        if finished.outcome != "OK":
            log.warning("request %s: its end was refused (%s)", out.rid, finished.outcome)
            out.on_refused(finished.log_len if finished.outcome == "GAP" else -1)
        return finished.outcome == "OK"

    async def _done(self, wid: str, out: Outgoing, end: Meta, frame: bytes) -> Finished:
        used = out.used
        return await until_answered(
            f"ending {out.rid}",
            lambda: self._scripts.done(
                wid,
                out.rid,
                out.attempt,
                state=end.state,
                reason=end.reason,
                frame=frame,
                expected=out.log_len,
                usage=(used.prompt_tokens, used.completion_tokens),
                sequences=out.width,
            ),
        )


async def until_answered(what: str, ask: Callable[[], Awaitable[T]]) -> T:
    """Asks Redis again and again until it answers: every script may be sent twice."""
    pause_s = _RETRY_FIRST_S
    while True:
        try:
            return await ask()
        except BrokerUnavailableError as error:
            log.warning("%s failed, trying again: %s", what, error)
            await asyncio.sleep(pause_s)
            pause_s = min(_RETRY_MOST_S, 2 * pause_s)
