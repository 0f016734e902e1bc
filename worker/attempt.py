"""One attempt: a claimed request, handed to the engine, its answer on the way out.

How an attempt ends:

    the application returned           → done: succeeded, whatever its status (a refusal is an answer, too)
    it raised, or answered half        → done: failed, engine_error
    cancel or expire came from the box → the task is cancelled, the engine frees it; done: cancelled, expired
    nobody follows it any more         → the same; done: cancelled, orphaned
    Redis refused a frame (fenced)     → the task is cancelled; nothing is written, somebody else owns the request
    the log is not what we wrote       → the task is cancelled; the request is handed back
    the engine failed                  → nothing is written; the worker ends and its requests are taken from it
    drain ran out of time              → handed back
    an interactive request needs its slot → the same, into its lane (see preemption.py); unless the answer is complete
    what was visible cannot be made again, or went on with → the task is cancelled; done: failed, worker_lost

An attempt whose request comes with a visible text goes on with it: see `continuation.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from http import HTTPStatus
from typing import Literal

from starlette.types import Message

from shared.errors import BrokerUnavailableError
from shared.lanes import ENGINE_PRIORITY
from shared.metrics import ATTEMPTS, ATTEMPTS_RUNNING, TOKENS, child
from shared.outcomes import Claimed
from shared.scripts import Scripts
from shared.states import State
from shared.wire import Meta, Request, Usage
from worker.continuation import History, Resumption, policy_of_stream
from worker.engines.base import Engine, Policy, current_journal
from worker.identity import Identity
from worker.outgoing import Outgoing
from worker.publisher import Publisher
from worker.scopes import own_headers, scope_of

log = logging.getLogger(__name__)

_HAND_BACK_TRIES, _HAND_BACK_PAUSE_S = 20, 0.25


class Stop(Enum):
    """Why an attempt is stopped from outside."""

    CANCEL = auto()
    EXPIRE = auto()
    FENCED = auto()
    HAND_BACK = auto()
    PREEMPT = auto()
    ORPHANED = auto()
    ENGINE_FAILED = auto()
    LOST = auto()


_GIVEN_UP = {
    Stop.FENCED: "fenced",
    Stop.ENGINE_FAILED: "engine_failed",
    Stop.HAND_BACK: "handed_back",
    Stop.PREEMPT: "preempted",
}
"""After these nothing more is written; the outcome for the metrics."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that this worker owns."""

    rid: str
    attempt: str
    queue: str
    claimed: Claimed


class Attempt:
    """Runs one claimed request. `run` is its task's body; `stop` may be called at any time."""

    def __init__(
        self, claim: Claim, request: Request, engine: Engine, publisher: Publisher, scripts: Scripts, identity: Identity
    ) -> None:
        """Starts from nothing, unless it is told to `go_on`."""
        self.rid = claim.rid
        self.attempt_id = claim.attempt
        self.width = request.width
        self.stays = request.stays
        self.lane = request.lane
        self.preempted = int(claim.claimed.record().get(b"preempted", 0))
        self.over = asyncio.Event()
        """Set once it has ended; `outcome` then says how."""
        self.outcome = "error"
        self._claim = claim
        self._request = request
        self._engine = engine
        self._publisher = publisher
        self._scripts = scripts
        self._wid = identity.wid
        self._stop: Stop | None = None
        self._task: asyncio.Task[object] | None = None  # the task in which the engine works for this attempt
        self._gone = asyncio.Event()
        self._unread = True
        self.answered = False
        """Whether the engine has answered: not refused, and nobody has stopped it."""
        self._gap = False
        self._complete = False
        priority = ENGINE_PRIORITY.get(request.lane, 0)
        self._out = publisher.open(claim.rid, claim.attempt, claim.claimed, width=request.width, priority=priority)
        self._answer: Outgoing | Resumption = self._out
        self._inherited = Usage()  # tokens that are not this attempt's work
        self._resumption: Resumption | None = None
        self._noticed = self._produced  # so much of it `news` has told
        self._written_before = self._written

    def go_on(self, history: History, policy: Policy) -> None:
        """The attempt continues what is visible. Call it before `run`. Raises ValueError when it cannot be read."""
        self._answer = self._resumption = Resumption(self._out, history, policy, lambda: self.stop(Stop.LOST))
        self._inherited = self._out.used
        self._noticed, self._written_before = self._produced, self._written

    def stop(self, why: Stop) -> None:
        """Stops the attempt. The first reason counts; a fence counts always, for then nothing may be written."""
        if self._stop is None or why is Stop.FENCED:
            self._stop = why
        if why is Stop.PREEMPT and not self._shows:
            self._out.pause()  # nothing is visible, and it shall stay so
        self._gone.set()
        if self._task is not None:
            self._task.cancel()

    def reclaim(self) -> None:
        """Redis does not know that this runs here: it is told, if the engine still works on it."""
        if self.in_engine and self._stop is None:
            self._publisher.reclaim(self._out)

    def _refused(self, log_len: int) -> None:
        self._gap = log_len >= 0
        self.stop(Stop.HAND_BACK if self._gap else Stop.FENCED)

    @property
    def in_engine(self) -> bool:
        """Whether the engine works on it. What only waits for Redis is no longer the engine's."""
        return self._task is not None and not self._task.done()

    @property
    def used(self) -> Usage:
        """Tokens of the answer so far, also those that it goes on with."""
        return self._out.used

    @property
    def loss(self) -> int | None:
        """Tokens that are made a second time if it stops now and runs on later; None when a client would notice."""
        if not self.in_engine or self._stop is not None:
            return None
        if not self._shows:
            return self._out.used.completion_tokens
        return 0 if self._policy is Policy.CONTINUE and self._out.continuable else None

    @property
    def _shows(self) -> bool:
        """Whether something of the answer is visible, or may be at any moment."""
        return self._resumption is not None or self._out.streams

    @cached_property
    def _policy(self) -> Policy | None:
        return policy_of_stream(self._request, self._engine.capabilities)

    def news(self) -> int:
        """How much the engine has done for this request since the last call; a number without a unit."""
        before, self._noticed = self._noticed, max(self._noticed, self._produced)
        return self._noticed - before

    @property
    def _produced(self) -> int:
        used, again = self._out.used, self._resumption.again if self._resumption else 0
        return used.prompt_tokens + used.completion_tokens + self._out.log_len + again

    @property
    def _written(self) -> int:
        """Grows with what is new in the answer. The prompt of a resumed one is counted before it is read."""
        used = self._out.used
        return used.completion_tokens + self._out.log_len + (0 if self._resumption else used.prompt_tokens)

    @property
    def unread_bytes(self) -> int:
        """What the engine has to read, or to go through again, before its first new token; 0 after that."""
        begun = self._written != self._written_before
        return 0 if begun else len(self._request.body) + len(self._claim.claimed.log)

    async def run(self) -> None:
        """Runs the request to its end. Raises nothing."""
        ATTEMPTS_RUNNING.inc()
        self._out.on_refused = self._refused
        try:
            end = await self._serve()
            self.outcome = await self._settle(end)
        except Exception:
            log.exception("attempt %s of request %s", self._claim.attempt, self.rid)
        finally:
            ATTEMPTS_RUNNING.dec()
            child(ATTEMPTS, self.lane, self.outcome).inc()
            self.over.set()
            self._answer.close()
            child(TOKENS, "prompt").inc(self.used.prompt_tokens)
            child(TOKENS, "completion").inc(max(0, self.used.completion_tokens - self._inherited.completion_tokens))

    async def _serve(self) -> Meta:
        """The engine's answer, as the terminal state it leads to."""
        current_journal.set(self._answer)
        try:
            if self._stop is None:
                await self._call_engine()
        except asyncio.CancelledError:
            if self._stop is None:
                raise  # not by `stop`: the worker itself ends
        except Exception:
            log.exception("the engine raised on request %s", self.rid)
            return Meta(state=State.FAILED, reason="engine_error", message="The engine failed on this request.")
        if self._stop is Stop.PREEMPT and self._complete:
            self._stop = None  # it is at its end already: the slot is free all the same
        if self._stop is not None:
            return Meta(state=State.CANCELLED, reason="cancelled")
        self.answered = self._out.status < HTTPStatus.BAD_REQUEST
        self._answer.ended()
        if not self._complete:
            return Meta(state=State.FAILED, reason="engine_error", message="The engine's answer broke off.")
        return Meta(state=State.SUCCEEDED, reason="completed", usage=self._out.used)

    async def _call_engine(self) -> None:
        """In the attempt's own task: a task more for each request would cost as much as ten of its tokens."""
        self._task = task = asyncio.current_task()
        try:
            await self._engine.app(scope_of(self._request), self._receive, self._send)
        finally:
            self._task = None
            if self._stop is not None and task is not None:
                # What `stop` cancelled is the engine's work, not what this task does next. A cancellation by the
                # engine's own last step has not been raised yet, and would hit the first `await` that follows.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
                while task.uncancel():
                    pass

    async def _receive(self) -> Message:
        """The body first; then it waits, since an early disconnect would kill the request."""
        if self._unread:
            self._unread = False
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self._answer.body(message.get("body", b""))
            if not message.get("more_body", False):
                self._complete = True
        elif message["type"] == "http.response.start":
            headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in message["headers"]]
            headers += own_headers(self._claim.claimed)
            kind = next((value for name, value in headers if name == "content-type"), "")
            self._answer.head(message["status"], headers, streaming=kind.startswith("text/event-stream"))

    async def _settle(self, end: Meta) -> str:
        """Writes the end, or gives the request up. Returns the outcome for the metrics."""
        if self._stop is Stop.PREEMPT:
            await self._publisher.flushed(self._out)
        stop = self._stop if self._engine.failure() is None else Stop.ENGINE_FAILED
        if stop in _GIVEN_UP:
            await self._publisher.forget(self._out)
            if stop is Stop.HAND_BACK or stop is Stop.PREEMPT:
                await self._hand_back("preempt" if stop is Stop.PREEMPT else "hand_back")
            return _GIVEN_UP[stop]
        if stop is Stop.EXPIRE:
            end = Meta(state=State.EXPIRED, reason="deadline_exceeded", usage=self._out.used)
        elif stop is Stop.LOST:
            end = Meta(state=State.FAILED, reason="worker_lost", usage=self._out.used)
        elif stop is Stop.CANCEL or stop is Stop.ORPHANED:
            reason = "cancelled" if stop is Stop.CANCEL else "orphaned"
            end = Meta(state=State.CANCELLED, reason=reason, usage=self._out.used)
        if await self._publisher.finish(self._out, end):
            return end.reason if stop is Stop.LOST else end.state
        if self._gap:  # still ours, and with another log than was written here
            await self._hand_back()
        return "refused"

    async def _hand_back(self, how: Literal["hand_back", "preempt"] = "hand_back") -> None:
        for _ in range(_HAND_BACK_TRIES):
            try:
                await self._scripts.requeue(self._wid, self.rid, self._claim.attempt, how=how)
            except BrokerUnavailableError:
                await asyncio.sleep(_HAND_BACK_PAUSE_S)
            else:
                return
