"""What one attempt has produced: from pieces of the engine's answer to frames, and what of it is published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from shared.outcomes import Claimed, Held
from shared.wire import DELTA, END, HEAD, RESUME, Frame, Meta, Usage, encode
from worker.engines.base import Resume


class Marker(Protocol):
    """What is told that something waits: a publisher.Publisher."""

    def mark(self, out: Outgoing) -> None:
        """Something of `out` waits to be published."""


class Outgoing:
    """What one attempt has produced and not yet published. An engines.base.Journal.

    Bytes of a stream are published as they come. Other answers are kept until the end: nobody can use half of a JSON
    document, and a request of which nothing is visible can simply be run again.
    """

    __slots__ = (
        "_completion_tokens",
        "_flows",
        "_head",
        "_ids",
        "_index",
        "_opening",
        "_paused",
        "_pieces",
        "_prompt_tokens",
        "_publisher",
        "_streaming",
        "_text_len",
        "attempt",
        "claimed",
        "continuable",
        "in_flight",
        "keep_until",
        "log_len",
        "on_refused",
        "priority",
        "published",
        "rid",
        "status",
        "width",
    )

    def __init__(
        self,
        publisher: Marker,
        rid: str,
        attempt: str,
        claimed: Claimed,
        *,
        width: int = 1,
        keep_bytes: int,
        priority: int,
    ) -> None:
        """See Publisher.open. `keep_bytes`: how long the log may be for which its frames are kept."""
        self._publisher = publisher
        self.rid = rid
        self.attempt = attempt
        self.claimed = claimed
        self.width = width
        self.log_len = len(claimed.log)
        self.keep_until = keep_bytes
        self.published: list[bytes] = []
        """Frames behind the claimed log, for a server that loses them; incomplete once the log is over `keep_until`."""
        self.priority = priority
        self.on_refused: Callable[[int], None] = nobody
        """Gets the log's length in bytes when that is not what this attempt has written, -1 when somebody else took
        over; before that it was tried to get the request back."""
        self.in_flight: asyncio.Future[None] | None = None
        self._streaming = False  # whether its bytes are published as they come
        self._flows = False  # whether they are just now
        self._paused = False
        self.status = 0  # HTTP status of the answer, once it is known
        self.continuable = True  # as far as the engine can tell
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
        self._streaming = streaming
        self._flows = streaming and not self._paused

    def follow(self, after: str) -> None:
        """The attempt goes on with a stream, behind the frames of attempt `after`: its first frame says so."""
        self._head, self._opening = Meta(after=after), RESUME
        self._streaming = self._flows = True

    def stand_at(self, tokens: int, text_len: int) -> None:
        """So many tokens and characters are published: what comes next is counted from there."""
        self._index, self._text_len = tokens, text_len

    def body(self, piece: bytes) -> None:
        """Bytes of the answer. Hot path: never waits."""
        if piece:
            self._pieces.append(piece)
            if self._flows:
                self._publisher.mark(self)

    def tokens(self, token_ids: list[int], text_chars: int) -> None:
        """See Journal."""
        self._ids += token_ids
        self._text_len += text_chars

    def usage(self, prompt_tokens: int, completion_tokens: int) -> None:
        """See Journal."""
        self._prompt_tokens += prompt_tokens
        self._completion_tokens += completion_tokens

    def cannot_continue(self) -> None:
        """See Journal."""
        self.continuable = False

    @property
    def streams(self) -> bool:
        """Whether the answer is known to be one that clients see grow."""
        return self._streaming

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

    def close(self) -> None:
        """The attempt is over: lets go of it and of what was kept, which would wait for a full collection else."""
        self.published, self.keep_until = [], -1  # what is not whole any more is given back to nobody
        self.on_refused = nobody

    def held(self, frame: bytes, *, ending: bool) -> Held | None:
        """What was published, and `frame` after it, for `restore`; None when it was too much to be kept."""
        if self.log_len > self.keep_until:
            return None
        frames = [*self.published, frame] if frame else self.published
        log = b"".join([self.claimed.log, *frames])
        last_bytes, seen = len(frames[-1]) if frames else 0, bool(frames) and not frame
        return Held(self.rid, self.attempt, self.claimed, log, last_bytes, ending, seen)

    def pause(self) -> None:
        """Nothing is to be published for now, it is only collected."""
        self._paused, self._flows = True, False

    def unpause(self) -> None:
        """What was collected is published."""
        self._paused, self._flows = False, self._streaming
        if self._flows and self._pieces:
            self._publisher.mark(self)

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


def nobody(_: int = 0) -> None:
    """Is told when there is no attempt to tell: none yet, or none any more."""


def _opening_and_end(opening: int, head: Meta | None, end: Meta | None) -> tuple[int, Meta]:
    if end is None:
        return opening, head or Meta()
    if head is None:
        return END, end
    both = Meta(head.status, head.headers, end.state, end.reason, end.message, end.usage, head.after)
    return opening | END, both
