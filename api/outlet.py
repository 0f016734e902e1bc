"""A relay's way to its client: bytes go out at once while the client keeps up, and are kept while it does not.

Whoever takes frames calls `_hand_out` and never waits. The client's task takes what is pending, or sleeps while what it
would send is sent from the subscriber's callback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shared.wire import Meta

PENDING_BYTES = 65_536
"""Bytes kept in memory for a client that is slower than its stream."""
TICK_S = 0.25
HEARTBEAT = b": heartbeat\n\n"


class Outlet:
    """What a relay has for its client. The relay's base class: a part of its own would cost each token a hop."""

    __slots__ = (
        "_idle_ticks",
        "_loop",
        "_pending",
        "_pending_bytes",
        "_waiter",
        "comment",
        "comment_now",
        "end",
        "gone",
        "heartbeat",
        "heartbeat_ticks",
        "hung_up",
        "moved",
        "plain",
        "send_now",
    )

    def __init__(self) -> None:
        self.end: Meta | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._idle_ticks = 0
        self._waiter: asyncio.Future[None] | None = None
        self.send_now: Callable[[bytes], bool] | None = None
        """Sends bytes to the client without waiting, or returns False and sends nothing. Hot path: no task wakes.

        An answer's first bytes are left to the client's task, and so is all of an answer that is no stream.
        """
        self.comment_now: Callable[[bytes], bool] | None = None
        """As `send_now`, for what is no part of the answer."""
        self.hung_up: Callable[[], bool] | None = None
        """Whether the client has hung up; asked with every tick."""
        self.gone = False
        """The client was found to have hung up."""
        self.moved = False
        """The replica stops: the client shall go on elsewhere."""
        self.plain = False
        """The client wants the answer's events alone, without ids and comments: see `preferences.plain_events`."""
        self.heartbeat_ticks = 0
        """Ticks without a byte after which a client that waits gets a comment; 0: never."""
        self.comment = HEARTBEAT
        """What a client gets that waits for bytes; while its request is queued, where it stands."""
        self.heartbeat = False
        """It is time for a comment."""
        self._loop = asyncio.get_running_loop()  # looked up once: on 3.11 every look-up costs a system call

    # ---- what the relay calls; never waits

    def _hand_out(self, data: bytes) -> None:
        # The client's task waits and has nothing to send: what it would send can be sent right here.
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self.send_now is not None and self.send_now(data):
            return
        self._pend(data)

    def _pend(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _client_there(self) -> bool:
        """Whether the client has not hung up; it gets a comment when it is time for one. Called with every tick."""
        if self.hung_up is not None and self.hung_up():
            self.gone = True
            self._wake()
            return False
        self._idle_ticks += 1
        if self.heartbeat_ticks and self._idle_ticks >= self.heartbeat_ticks:
            self._idle_ticks = 0
            # sent from here, since the client's task may be waiting for a Redis that is away
            if self.comment_now is None or not self.comment_now(self.comment):
                self.heartbeat = True
                self._wake()
        return True

    # ---- what the client's task calls

    @property
    def over(self) -> bool:
        """Whether there is nothing more to hand out: the request has ended, the client is gone or is sent away."""
        return self.gone or self.moved or (self.end is not None and not self._pending)

    @property
    def cut(self) -> bool:
        """Whether the client is sent away before it has everything."""
        return self.moved and (self.end is None or bool(self._pending))

    def send_away(self) -> None:
        """Ends the relay before its request ends."""
        self.moved = True
        self._wake()

    @property
    def first_bytes(self) -> bytes:
        """What has been taken and not yet handed out; once the answer has opened, its first bytes."""
        return b"".join(self._pending)

    def take(self) -> bytes:
        """What waits for the client, in one piece; empty when nothing does."""
        pending = self._pending
        if not pending:
            return b""
        piece = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        self._pending_bytes = 0
        return piece
