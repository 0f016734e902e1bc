"""Cuts an engine's stream where a worker could have died, and lets the engine go on with it as the worker does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.types import Message

from shared.outcomes import Claimed
from shared.wire import Meta, Request
from tests.support.engines import Exchange
from worker.continuation import History, Resumption, policy_for
from worker.engines.base import Engine, Policy, current_journal
from worker.outgoing import Outgoing
from worker.rendered import SEPARATOR, parts_of

_SSE = Meta(status=200, headers=[("content-type", "text/event-stream; charset=utf-8")])


@dataclass(frozen=True)
class Cut:
    """What the log holds when a worker dies here."""

    data: bytes
    token_ids: list[int]
    text_len: int

    @property
    def history(self) -> History:
        return History("a1", _SSE, self.data, self.token_ids, self.text_len)


class Unbroken(Exchange):
    """An exchange that remembers what the log would hold after each piece."""

    def __init__(self, engine: Engine, path: str, body: dict[str, Any], rid: str = "r1") -> None:
        super().__init__(engine, path, body, rid)
        self.cuts: list[Cut] = []

    async def _send(self, message: Message) -> None:
        await super()._send(message)
        if message.get("body"):
            self.cuts.append(Cut(self.body, list(self.journal.token_ids), self.journal.text_chars))


class _Collected:
    """A publisher without a server."""

    def mark(self, out: Outgoing) -> None:
        """What the Outgoing holds is taken from it at the end."""


class Resumed(Exchange):
    """An exchange that goes on behind a cut.

    Attributes:
        lost: why the engine or the comparison gave up, if they did.
        token_ids: tokens that a later worker would find in the log.
    """

    def __init__(
        self, engine: Engine, path: str, body: dict[str, Any], cut: Cut, *, policy: Policy | None = None
    ) -> None:
        super().__init__(engine, path, body)
        asked = policy_for(Request("POST", path, [], self._data, "standard"), cut.history, engine.capabilities)
        assert asked is not None, "this cannot be continued"
        self.policy = policy or asked
        self.lost = False
        self._cut = cut
        claimed = Claimed(b"", b"", 1, 0, 0)
        self._out = Outgoing(_Collected(), "r1", "a2", claimed, keep_bytes=0, priority=0)
        self.answer = Resumption(self._out, cut.history, self.policy, self._on_lost)

    def _on_lost(self) -> None:
        self.lost = True
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> Exchange:
        current_journal.set(self.answer)
        try:
            await self._engine.app(self._scope(), self._receive, self._send)
            self.answer.ended()
        finally:
            self._gone.set()
        return self

    async def to_end(self) -> Resumed:
        """Runs until the application has returned, or the answer is lost."""
        task = self.start()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        return self

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
            streaming = dict(headers).get("content-type", "").startswith("text/event-stream")
            self.answer.head(message["status"], headers, streaming=streaming)
        else:
            self.answer.body(message.get("body", b""))

    @property
    def sent(self) -> bytes:
        """What was published behind the cut."""
        return b"".join(self._out._pieces)

    @property
    def token_ids(self) -> list[int]:
        return [*self._cut.token_ids[: self._out._index], *self._out._ids]

    @property
    def usage(self) -> tuple[int, int]:
        """Prompt and completion tokens, as they go into the terminal frame."""
        used = self._out.used
        return used.prompt_tokens, used.completion_tokens


def said(data: bytes) -> dict[Any, Any]:
    """All that a client accumulates from a stream."""
    whole: dict[Any, Any] = {}
    *events, rest = data.split(SEPARATOR)
    assert rest == b""
    for event in events:
        for key, value in parts_of(event):
            whole[key] = whole[key] + value if key in whole else value
    return whole
