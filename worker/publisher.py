"""The way out: what attempts produce → frames → one `step` per flush for all of them.

Flushes batch naturally. A flush starts as soon as anything waits and no flush is under way; whatever is produced
meanwhile goes with the next one, deltas of one request merged into one frame. So the first token leaves at once, and
under load the cost per token falls.

An attempt's last bytes do not go through a flush: they ride on `done`, in the terminal frame.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from shared.errors import BrokerUnavailableError, FencedError
from shared.metrics import FENCED, FLUSH_SECONDS, FLUSHED_FRAMES, FLUSHES
from shared.scripts import Scripts, Stepped
from shared.wire import DELTA, END, HEAD, RESUME, Frame, Meta, Usage, encode
from worker.engines.base import Resume
from worker.identity import Identity

log = logging.getLogger(__name__)

MOST_FRAMES = 256
"""Sequences in one flush; more wait for the next."""
_BUSY_FRAMES = 64
_BUSY_PAUSE_S = 0.005
_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 1.0


class Outgoing:
    """What one attempt has produced and not yet published. An engines.base.Journal.

    Bytes of a stream are published as they come. Other answers are kept until the end: nobody can use half of a JSON
    document, and a request of which nothing is visible can simply be run again.
    """

    __slots__ = (
        "_completion_tokens",
        "_head",
        "_ids",
        "_index",
        "_opening",
        "_pieces",
        "_prompt_tokens",
        "_publisher",
        "_text_len",
        "attempt",
        "in_flight",
        "log_len",
        "on_refused",
        "priority",
        "rid",
        "status",
        "streaming",
    )

    def __init__(
        self,
        publisher: Publisher,
        rid: str,
        attempt: str,
        *,
        log_len: int,
        priority: int,
        on_refused: Callable[[int], None],
    ) -> None:
        """See Publisher.open."""
        self._publisher = publisher
        self.rid = rid
        self.attempt = attempt
        self.log_len = log_len
        self.priority = priority
        self.on_refused = on_refused
        self.in_flight: asyncio.Future[None] | None = None
        self.streaming = False
        self.status = 0  # HTTP status of the answer, once it is known
        self._head: Meta | None = None
        self._opening = HEAD
        self._pieces: list[bytes] = []
        self._ids: list[int] = []
        self._index = 0
        self._text_len = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0

    def head(self, status: int, headers: list[tuple[str, str]], *, streaming: bool) -> None:
        """Status and headers of the answer. They go out with its first bytes."""
        self._head = Meta(status=status, headers=headers)
        self.status = status
        self.streaming = streaming

    def follow(self, after: str) -> None:
        """The attempt goes on with a stream, behind the frames of attempt `after`: its first frame says so."""
        self._head, self._opening = Meta(after=after), RESUME
        self.streaming = True

    def stand_at(self, tokens: int, text_len: int) -> None:
        """So many tokens and characters are published: what comes next is counted from there."""
        self._index, self._text_len = tokens, text_len

    def body(self, piece: bytes) -> None:
        """Bytes of the answer. Hot path: never waits."""
        if piece:
            self._pieces.append(piece)
            if self.streaming:
                self._publisher.mark(self)

    def tokens(self, token_ids: list[int], text_chars: int) -> None:
        """See Journal."""
        self._ids += token_ids
        self._text_len += text_chars

    def usage(self, prompt_tokens: int, completion_tokens: int) -> None:
        """See Journal."""
        self._prompt_tokens += prompt_tokens
        self._completion_tokens += completion_tokens

    @property
    def resume(self) -> Resume | None:
        """See Journal. What goes on with another's text is a continuation.Resumption."""
        return None

    def replayed(self) -> None:
        """See Journal. There is nothing to replay."""

    def diverged(self, why: str) -> None:
        """See Journal. There is nothing to differ from."""

    def ended(self) -> None:
        """The engine's application has returned."""

    @property
    def used(self) -> Usage:
        """Tokens so far."""
        return Usage(self._prompt_tokens, self._completion_tokens)

    def frame(self, end: Meta | None = None) -> bytes:
        """Everything that waits, as one frame; nothing waits afterwards. `end` makes it terminal."""
        pieces, ids, head = self._pieces, self._ids, self._head
        kind, meta = DELTA, None
        if head is not None or end is not None:
            kind, meta = _opening_and_end(self._opening, head, end)
            self._head = None
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        frame = Frame(kind, self.attempt, self._index, ids, self._text_len, meta, data)
        self._index += len(ids)
        self._pieces, self._ids = [], []
        return encode(frame)


def _opening_and_end(opening: int, head: Meta | None, end: Meta | None) -> tuple[int, Meta]:
    if end is None:
        return opening, head or Meta()
    if head is None:
        return END, end
    both = Meta(head.status, head.headers, end.state, end.reason, end.message, end.usage, head.after)
    return opening | END, both


class Publisher:
    """Flushes. A service: see `services.py`."""

    name = "publisher"

    def __init__(self, scripts: Scripts, identity: Identity, on_box: Callable[[list[bytes]], None]) -> None:
        """`on_box` gets the control messages that come back with a flush; it must not block."""
        self._scripts = scripts
        self._identity = identity
        self._on_box = on_box
        self._waiting: dict[Outgoing, None] = {}
        self._wake = asyncio.Event()

    def open(
        self, rid: str, attempt: str, *, log_len: int, priority: int, on_refused: Callable[[int], None]
    ) -> Outgoing:
        """The way out of one attempt.

        `log_len`: bytes in the log when the attempt began. `on_refused` gets the log's length in bytes when that is not
        what this attempt has written, -1 when somebody else took over.
        """
        return Outgoing(self, rid, attempt, log_len=log_len, priority=priority, on_refused=on_refused)

    def mark(self, out: Outgoing) -> None:
        """Something of `out` waits to be published."""
        self._waiting[out] = None
        self._wake.set()

    def forget(self, out: Outgoing) -> None:
        """What still waits of `out` is not to be published: its request is no longer ours."""
        self._waiting.pop(out, None)

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled."""
        started.set()
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
        began_s = time.perf_counter()
        try:
            stepped = await self._step(wid, frames)
        except FencedError:
            self._identity.condemned(wid)
        else:
            FLUSH_SECONDS.observe(time.perf_counter() - began_s)
            FLUSHES.inc()
            FLUSHED_FRAMES.inc(len(frames))
            self._settle(batch, frames, stepped)
        finally:
            for out in batch:
                out.in_flight = None
            flight.set_result(None)

    async def _step(self, wid: str, frames: list[tuple[str, str, int, bytes]]) -> Stepped:
        """`step`, sent again as it is until it answers: a blind retry is harmless."""
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                return await self._scripts.step(wid, frames)
            except BrokerUnavailableError as error:
                log.warning("flush of %d frames failed, trying again: %s", len(frames), error)
                await asyncio.sleep(pause_s)
                pause_s = min(_RETRY_MOST_S, 2 * pause_s)

    def _settle(self, batch: list[Outgoing], frames: list[tuple[str, str, int, bytes]], stepped: Stepped) -> None:
        for position, (out, frame) in enumerate(zip(batch, frames, strict=True)):
            if position in stepped.refused:
                FENCED.inc()
                self._waiting.pop(out, None)
                out.on_refused(stepped.refused[position])
            else:
                out.log_len += len(frame[3])
        if stepped.box:
            self._on_box(stepped.box)

    async def finish(self, out: Outgoing, end: Meta) -> bool:
        """Ends an attempt's request with `end`; sent until Redis answers. False when it refuses (see on_refused)."""
        self._waiting.pop(out, None)
        while out.in_flight is not None:
            await asyncio.shield(out.in_flight)
        self._waiting.pop(out, None)
        frame = out.frame(end)
        wid = self._identity.wid
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                finished = await self._scripts.done(
                    wid,
                    out.rid,
                    out.attempt,
                    state=end.state,
                    reason=end.reason,
                    frame=frame,
                    expected=out.log_len,
                    usage=(out.used.prompt_tokens, out.used.completion_tokens),
                )
            except BrokerUnavailableError as error:
                log.warning("ending %s failed, trying again: %s", out.rid, error)
                await asyncio.sleep(pause_s)
                pause_s = min(_RETRY_MOST_S, 2 * pause_s)
                continue
            if finished.outcome != "OK":
                FENCED.inc()
                log.warning("request %s: its end was refused (%s)", out.rid, finished.outcome)
                out.on_refused(finished.log_len if finished.outcome == "GAP" else -1)
            return finished.outcome == "OK"
