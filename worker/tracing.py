"""What a worker tells of a request in its trace.

    send <lane>                        the replica's: the parent of all of them
    ├── process <lane>, attempt 1      of a worker that died; told by the one that claimed the request next
    ├── queue                          each wait: from the admission, or the end of the attempt before, to the claim
    └── process <lane>, attempt 2      this worker's
        └── llm_request                vLLM's own, if vLLM is told where spans go

A dead worker can tell nothing. The record's history says which attempts it had, when they began and when they were
taken back, so whoever claims the request tells of them. The id of an attempt's span is made from the attempt's id: it
is the same whoever tells of it, and what an engine has told of it before has its parent.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from msgspec import structs

from shared import genai
from shared.history import WITHOUT_WORKER, Event, events_of
from shared.tracing import TRACE_HEADERS
from shared.wire import Request, Usage

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from shared.spans import Span, Tracing
    from worker.attempt import Claim

_NS_PER_MS = 1_000_000
_NO_FAULTS = frozenset({"succeeded", "cancelled", "expired", "handed_back", "preempted"})


class AttemptTrace:
    """The spans of one claimed request, as far as this worker tells them."""

    def __init__(self, tracing: Tracing, claim: Claim, request: Request, wid: str) -> None:
        """Tells of what was before; the attempt itself begins now."""
        self._tracing = tracing
        self._claim = claim
        self._request = request
        self._wid = wid
        claimed = claim.claimed
        parent = tracing.parent(request.headers)
        before = events_of(claimed.record().get(b"history", b"").decode())
        for number, event in enumerate(before, 1):
            if event.what in WITHOUT_WORKER:
                self._tell_lost(parent, number, event)
        since_ms = before[-1].at_ms if before else claimed.queued_at_ms
        waited = tracing.start("queue", "internal", parent, self._facts(), at_ns=since_ms * _NS_PER_MS)
        waited.end(max(since_ms, claimed.started_at_ms) * _NS_PER_MS)
        self._span = self._process(parent, claimed.claims, claim.attempt, wid)
        own = self._span.headers()
        passed = [header for header in request.headers if header[0] not in TRACE_HEADERS]
        self.request = structs.replace(request, headers=[*passed, *own])
        """The request as the engine gets it: its spans become the attempt's children."""

    @property
    def trace_id(self) -> str:
        """The trace that the attempt is part of."""
        return self._span.trace_id

    def end(self, outcome: str, used: Usage) -> None:
        """The attempt has ended; `outcome` as for the metrics."""
        self._span.say({genai.OUTCOME: outcome})
        if used.prompt_tokens or used.completion_tokens:
            self._span.say({genai.INPUT_TOKENS: used.prompt_tokens, genai.OUTPUT_TOKENS: used.completion_tokens})
        if outcome not in _NO_FAULTS:
            self._span.fail(outcome)
        self._span.end()

    def _facts(self) -> dict[str, str]:
        return {genai.REQUEST: self._claim.rid, genai.LANE: self._request.lane}

    def _process(
        self, parent: Context, number: int, attempt: str, wid: str, *, started_at_ms: int | None = None
    ) -> Span:
        attributes = {
            **self._facts(),
            genai.MESSAGING_SYSTEM: "redis",
            genai.MESSAGING_OPERATION: "process",
            genai.MESSAGING_DESTINATION: self._claim.queue,
            genai.MESSAGE_ID: self._claim.rid,
            genai.OPERATION: genai.operation_of(self._request.path),
            genai.REQUEST_MODEL: self._claim.claimed.record().get(b"model", b"").decode(),
            genai.ATTEMPT: attempt,
            genai.WORKER: wid,
        }
        return self._tracing.start(
            f"process {self._request.lane}",
            "consumer",
            parent,
            {**attributes, genai.ATTEMPT_NUMBER: number},
            at_ns=None if started_at_ms is None else started_at_ms * _NS_PER_MS,
            span_id=span_id_of(attempt),
        )

    def _tell_lost(self, parent: Context, number: int, event: Event) -> None:
        """An attempt whose worker has died. It ends where others took the request back: nobody knows better."""
        span = self._process(parent, number, event.attempt, event.wid, started_at_ms=event.started_at_ms or event.at_ms)
        span.say({genai.OUTCOME: "worker_lost", genai.ENDED_BY: event.what, genai.TOLD_BY: self._wid})
        span.fail("worker_lost")
        span.end(event.at_ms * _NS_PER_MS)


def span_id_of(attempt: str) -> int:
    """The id of an attempt's span: the same in every process."""
    return int.from_bytes(hashlib.sha256(attempt.encode()).digest()[:8], "big") or 1
