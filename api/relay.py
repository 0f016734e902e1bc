"""Log + live channel → one ordered, gap-free sequence of bytes for one client.

A relay has a cursor, a byte offset into the request's log that is always a frame's end. A live frame that starts at the
cursor is taken; anything else — a gap, a renewed connection, an end that somebody else wrote, silence — makes the relay
read the log from its cursor. So the log alone decides what the client sees, and in which order:

    live message ──┬─ starts at the cursor ──────────────> pending bytes ──> client
                   ├─ lies behind the cursor: a repeat, dropped
                   └─ gap, foreign end, reconnect, silence ──> dirty ──> read log ──^

Taking a message never waits. When the client is slow and its bytes pile up, the relay stops taking live frames,
remembers its cursor and reads slices of the log once the client has caught up: memory per stream stays bounded and
the worker never waits for a reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from api.cursors import is_event_stream, suffix_of, with_cursors
from api.outlet import HEARTBEAT, PENDING_BYTES, Outlet
from api.resume import Position
from shared.errors import BrokerUnavailableError, broker_unavailable, history_lost, replica_stopping
from shared.frames import LogSlice, read_log
from shared.hot import HotClient
from shared.keys import Keys
from shared.metrics import GAP_REPAIRS
from shared.states import State
from shared.wire import END, HEAD, MESSAGE_HEADER_BYTES, RESUME, Frame, Meta, decode_message

T = TypeVar("T")

_SILENT_TICKS_RUNNING = 4
_SILENT_TICKS_QUEUED = 12
_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 1.0


class Relay(Outlet):
    """One client's view of one request. A channels.Listener."""

    __slots__ = (
        "_attempt",
        "_client",
        "_dirty",
        "_grace_s",
        "_heard_end",
        "_keys",
        "_lost_grace_s",
        "_lost_since_s",
        "_numbers",
        "_silent_ticks",
        "_visible",
        "cursor",
        "head",
        "id_suffix",
        "readmit",
        "rid",
    )

    def __init__(
        self,
        client: HotClient,
        keys: Keys,
        rid: str,
        *,
        grace_s: float,
        lost_grace_s: float,
        readmit: Callable[[], Awaitable[None]] | None,
    ) -> None:
        """How long to wait for a Redis that is away, and for a worker to bring back what Redis has lost.

        `readmit` puts the request on the queue once more, as long as nothing was taken; it may give the relay another
        `rid` to follow. None: this reader is not the one to admit it.
        """
        super().__init__()
        self._client = client
        self._keys = keys
        self.rid = rid
        self._grace_s = grace_s
        self._lost_grace_s = lost_grace_s
        self._lost_since_s: float | None = None
        self.readmit = readmit
        self.cursor = 0
        self.head: Meta | None = None
        self._attempt = ""  # who wrote the frame that ends at the cursor
        self.id_suffix = b""  # what follows the offset in the ids of that attempt's events
        self._visible = False  # whether any of the answer's bytes were taken
        self._numbers = False  # whether the answer's events get ids
        self._dirty = False
        self._heard_end = 0
        self._silent_ticks = 0

    # ---- what the subscriber connection and the watch call; never waits

    def on_message(self, message: bytes) -> None:
        """A live message of this request's channel."""
        self._silent_ticks = 0
        end, frame = decode_message(message)
        if end <= self.cursor:
            return
        if self._dirty:
            self._heard_end = max(self._heard_end, end)
        elif end - len(message) + MESSAGE_HEADER_BYTES != self.cursor or self._foreign(frame):
            self._read_log("gap", end)
        elif frame.kind & END and not self._certain(frame):
            self._read_log("end", end)
        else:
            self._take(end, frame)
            if self._pending or self.end is not None:
                self._wake()

    def on_gap(self) -> None:
        """The subscriber connection was renewed."""
        self._read_log("reconnect", 0)

    def tick(self) -> None:
        """Called every TICK_S: a relay that has heard nothing for a while reads the log, and tells its client so."""
        if not self._client_there():
            return
        self._silent_ticks += 1
        if self._lost_since_s is not None:
            self._read_log("lost", 0)
        elif self._silent_ticks >= (_SILENT_TICKS_RUNNING if self.head else _SILENT_TICKS_QUEUED):
            self._silent_ticks = 0
            self._read_log("silence", 0)

    def _read_log(self, cause: str, heard_end: int) -> None:
        self._heard_end = max(self._heard_end, heard_end)
        if not self._dirty and self.end is None:
            if cause not in {"end", "silence", "lost"}:
                GAP_REPAIRS.labels(cause=cause).inc()
            self._dirty = True
            self._wake()

    def _certain(self, frame: Frame) -> bool:
        """Whether a terminal frame that starts at the cursor may be believed without a look at the log.

        It may when the attempt that wrote it wrote everything that this client has seen: the guard in `done` has
        compared the log's length with what that attempt had written. What a script or another attempt says is believed
        when it stands in the log.
        """
        return frame.attempt != "" and self._attempt in {frame.attempt, ""}

    def _foreign(self, frame: Frame) -> bool:
        """Whether taking this frame, which starts at the cursor, would splice two generations.

        After a failover that lost the tail of a log, another attempt may write where the client has already read on.
        Ids are never reused and logs only grow, so the attempt whose frame ends at an offset stands for all that lies
        before it: a RESUME frame behind exactly that attempt goes on with exactly what the client has.
        """
        if frame.attempt in {self._attempt, ""} or not self.cursor:
            return False
        meta = frame.meta or Meta()
        if frame.kind & RESUME:
            return meta.after != self._attempt
        if frame.kind & HEAD and not self._visible:
            return False  # a whole answer, and the client has nothing of another one
        # an explicit error adds no text; an answer's regular end would say that the client has all of it
        return not frame.kind & END or meta.state == State.SUCCEEDED or frame.data != b""

    def _take(self, end: int, frame: Frame) -> None:
        self.cursor = end
        if frame.attempt != self._attempt and frame.attempt:
            self._attempt, self.id_suffix = frame.attempt, suffix_of(frame.attempt)
        meta = frame.meta
        if meta is not None:
            if frame.kind & HEAD:
                self.readmit = None  # it will not be used any more, and has the request's body
                self.head = meta
                self.comment = HEARTBEAT
                self._numbers = (events := is_event_stream(meta)) and not self.plain
                if not events:
                    self.send_now = None
            if frame.kind & END:
                self.end = meta
        data = frame.data
        if data:
            self._idle_ticks = 0
            self._visible = True
            if self._numbers:
                data = with_cursors(data, end, self.id_suffix)
            if meta is not None and frame.kind & HEAD:
                self._pend(data)
            else:
                self._hand_out(data)
            if self._pending_bytes > PENDING_BYTES:
                self._dirty = True  # a slow client: what follows is read from the log later

    def resume(self, position: Position) -> None:
        """Goes on from there, for a client that has what is before it. Called before anything else."""
        self.cursor = position.start
        self.head, self.end = position.head, position.end
        self._numbers = position.head is not None and is_event_stream(position.head)
        self._attempt, self.id_suffix = position.attempt, suffix_of(position.attempt)
        self._visible = position.start > 0
        if position.rest:
            self._pend(position.rest)

    # ---- what the client's task calls

    async def opened(self, timeout_s: float | None) -> bool:
        """Waits until the answer's head is known or the relay is over; False after `timeout_s`.

        Raises RequestError when Redis stays away or has lost the request, or the replica stops.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self.head is None and not self.over:
                    await self.advance()
        except TimeoutError:
            return False
        if self.moved and self.head is None:
            raise replica_stopping()
        return True

    async def advance(self) -> None:
        """Waits until there may be something to take, or the end. Hot path: once per wake-up of a stream.

        Raises RequestError when Redis stays away or has lost the request.
        """
        if self._dirty:
            await self._catch_up()
            return
        waiter = self._waiter = self._loop.create_future()
        await waiter

    async def rest(self) -> bytes | None:
        """Everything until the request has ended; None once the client has hung up. Raises as `advance` does."""
        pieces = []
        while True:
            pieces.append(self.take())
            if self.end is not None and not self._pending:
                return b"".join(pieces)
            if self.gone:
                return None
            if self.moved:
                raise replica_stopping()
            if not self._pending:
                await self.advance()

    async def _catch_up(self) -> None:
        """Reads the log from the cursor, at most as much as may be pending."""
        self._heard_end = 0  # what is heard from now on may lie behind what is read now
        part = await self._read()
        for end, frame in part.frames:
            if self._foreign(frame):
                raise history_lost()
            self._take(end, frame)
            if self.end is not None or self._pending_bytes > PENDING_BYTES:
                return
        if part.state is not None:
            self._lost_since_s = None
        if part.more or self._heard_end > self.cursor:
            return
        if part.terminal:
            raise history_lost()
        rid = self.rid
        if part.state is None:
            await self._lost()
        self._dirty = self.rid != rid  # another request has the answer now: read its log

    async def _lost(self) -> None:
        """There is no record. Nothing was taken: the request is admitted again.

        Otherwise the worker that runs it has all that was published and may bring it back, so it is waited for; each
        tick looks again. Raises RequestError when it has not come in time.
        """
        if self.readmit is not None and not self.cursor:
            await self._patiently(self.readmit)
            return
        now_s = self._loop.time()
        if self._lost_since_s is None:
            self._lost_since_s = now_s
        if now_s - self._lost_since_s >= self._lost_grace_s:
            raise history_lost()

    async def _read(self) -> LogSlice:
        """A slice of the log; waits for a Redis that is away. Raises RequestError when it stays away."""
        try:
            return await self._patiently(lambda: read_log(self._client, self._keys, self.rid, self.cursor))
        except msgspec.MsgspecError as error:  # a failover has put another history under our cursor
            raise history_lost() from error

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result; while Redis is away it is made again. Raises RequestError when Redis stays away."""
        give_up_at_s = self._loop.time() + self._grace_s
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                return await call()
            except BrokerUnavailableError as error:
                if self._loop.time() >= give_up_at_s:
                    raise broker_unavailable() from error
                await asyncio.sleep(pause_s)
                pause_s = min(_RETRY_MOST_S, 2 * pause_s)
