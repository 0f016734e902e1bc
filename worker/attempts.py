"""The attempts that run on this worker: the table of what runs, the control messages for it, and its draining.

What one attempt does stands in `attempt.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from shared.metrics import RESUMES
from shared.scripts import Scripts
from shared.states import State
from shared.telemetry import Subject, subject
from shared.wire import Meta, Request, decode_request
from worker.attempt import Attempt, Claim, Stop
from worker.continuation import History, policy_for
from worker.engines.base import Engine
from worker.identity import Identity
from worker.publisher import Publisher
from worker.stall import Progress
from worker.tracing import AttemptTrace

if TYPE_CHECKING:
    from shared.spans import Tracing

log = logging.getLogger(__name__)

_MOST_EARLY = 256
"""Control messages kept for requests that have not started here yet."""
_STOPS = {"cancel": Stop.CANCEL, "expire": Stop.EXPIRE}


class Attempts:
    """The attempts that run on this worker."""

    def __init__(
        self,
        engine: Engine,
        publisher: Publisher,
        scripts: Scripts,
        identity: Identity,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._engine = engine
        self._publisher = publisher
        self._scripts = scripts
        self._identity = identity
        self._on_room: Callable[[], None] = lambda: None
        self._running: dict[str, Attempt] = {}
        self._early: dict[str, Stop] = {}
        self._tasks: dict[asyncio.Task[None], Claim] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.width = 0
        self._work = 0
        identity.on_renewal(lambda _: self.stop_all(Stop.FENCED))

    def __len__(self) -> int:
        return len(self._tasks)

    def progress(self) -> Progress:
        """What the engine has done. Looked at once a second.

        Only its own work counts: that others stop a request, or start one, says nothing about it.
        """
        self._work += sum(attempt.news() for attempt in self._running.values())
        busy = [attempt for attempt in self._running.values() if attempt.in_engine]
        return Progress(len(busy), self._work, max((attempt.unread_bytes for attempt in busy), default=0))

    def on_room(self, watcher: Callable[[], None]) -> None:
        """`watcher` is called whenever an attempt has ended: there is room again. Must not block."""
        self._on_room = watcher

    def owned(self) -> set[tuple[str, str]]:
        """Request and attempt id of everything that runs here, or is being ended here."""
        return {(claim.rid, claim.attempt) for claim in self._tasks.values()}

    def running(self) -> list[Attempt]:
        """Everything that runs here, the newest last."""
        return list(self._running.values())

    def in_engine(self) -> dict[tuple[str, str], Attempt]:
        """What the engine works on, by request and attempt id."""
        return {(one.rid, one.attempt_id): one for one in self._running.values() if one.in_engine}

    def leaving_with_client(self) -> list[tuple[str, str]]:
        """Request and attempt id of what runs here and ends when nobody follows it."""
        return [(attempt.rid, attempt.attempt_id) for attempt in self._running.values() if not attempt.stays]

    def stop(self, rid: str, attempt_id: str, why: Stop) -> None:
        """Stops one attempt, if it still runs."""
        attempt = self._running.get(rid)
        if attempt is not None and attempt.attempt_id == attempt_id:
            attempt.stop(why)

    def start(self, claim: Claim) -> None:
        """Starts the attempt of a claim. A request that cannot be run ends as failed."""
        try:
            request = decode_request(claim.claimed.body)
        except msgspec.MsgspecError:
            log.exception("request %s cannot be read", claim.rid)
            self._spawn(self._refuse(claim, "undecodable", "The request could not be read by the worker."), claim)
            return
        trace = self._trace_of(claim, request)
        request = request if trace is None else trace.request
        attempt = Attempt(claim, request, self._engine, self._publisher, self._scripts, self._identity)
        if claim.claimed.log and not self._go_on(attempt, request, claim.claimed.log):
            self._spawn(self._refuse(claim, "worker_lost", "", trace), claim)
            return
        self._running[claim.rid] = attempt
        self.width += attempt.width
        self._spawn(self._run(attempt, trace), claim)
        if (early := self._early.pop(claim.rid, None)) is not None:
            attempt.stop(early)

    def _trace_of(self, claim: Claim, request: Request) -> AttemptTrace | None:
        """None without tracing, and for a request whose history cannot be told: it runs all the same."""
        try:
            return None if self._tracing is None else AttemptTrace(self._tracing, claim, request, self._identity.wid)
        except Exception:
            log.exception("request %s has no trace", claim.rid)
            return None

    def _go_on(self, attempt: Attempt, request: Request, published: bytes) -> bool:
        """Whether the attempt can run although earlier ones have published something."""
        try:
            history = History.of(published)
            policy = policy_for(request, history, self._engine.capabilities) if history else None
            if history and policy:
                attempt.go_on(history, policy)
        except ValueError:
            log.exception("what was published of request %s cannot be read", attempt.rid)
            return False
        how = policy.value if policy else "none" if history else "restart"
        log.info("request %s was published in part before: %s", attempt.rid, how)
        RESUMES.labels(policy=how).inc()
        return history is None or policy is not None

    def _spawn(self, work: Coroutine[Any, Any, None], claim: Claim) -> None:
        task = asyncio.create_task(work, name=f"request-{claim.rid}")
        self._tasks[task] = claim
        self._empty.clear()
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not self._tasks:
            self._empty.set()
        self._on_room()

    async def _run(self, attempt: Attempt, trace: AttemptTrace | None) -> None:
        subject.set(Subject(attempt.rid, attempt.attempt_id, "" if trace is None else trace.trace_id))
        try:
            await attempt.run()
        finally:
            self.width -= attempt.width
            self._work += attempt.news() + attempt.answered
            if self._running.get(attempt.rid) is attempt:
                del self._running[attempt.rid]
            if trace is not None:
                trace.end(attempt.outcome, attempt.used)

    async def _refuse(self, claim: Claim, reason: str, message: str, trace: AttemptTrace | None = None) -> None:
        out = self._publisher.open(claim.rid, claim.attempt, claim.claimed, width=1, priority=0)
        await self._publisher.finish(out, Meta(state=State.FAILED, reason=reason, message=message))
        if trace is not None:
            trace.end(reason, out.used)

    def on_box(self, messages: list[bytes]) -> None:
        """Control messages: `cancel <rid>`, `expire <rid>`.

        A request that is not here has ended, or the reply of its claim is still on its way: the message waits for it.
        """
        for message in messages:
            word, _, rid = message.decode().partition(" ")
            attempt = self._running.get(rid)
            if word not in _STOPS:
                continue
            if attempt is not None:
                attempt.stop(_STOPS[word])
            else:
                self._early[rid] = _STOPS[word]
                if len(self._early) > _MOST_EARLY:
                    del self._early[next(iter(self._early))]

    def stop_all(self, why: Stop) -> None:
        """Stops every attempt."""
        for attempt in list(self._running.values()):
            attempt.stop(why)

    async def empty(self) -> None:
        """Returns once nothing runs."""
        await self._empty.wait()
