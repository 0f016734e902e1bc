"""What one HTTP exchange turns out to be: for its spans, and for its line in the access log.

It exists only where one of the two is wanted; everybody else looks, finds None and goes on. The spans:

    POST /v1/chat/completions          the exchange, child of what the client's `traceparent` names
    ├── admit                          from the request to its place on the queue
    │   └── send <lane>                the request goes on the queue: the parent of all that its workers tell
    └── stream                         from there to the answer's end, with the moment of the first token

None of them grows with the answer: a chunk has no span and no event.
"""

from __future__ import annotations

import logging
import re
import time
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from shared import genai
from shared.outcomes import Admission
from shared.telemetry import ACCESS, Subject, subject
from shared.tracing import TRACE_HEADERS
from shared.wire import Meta

if TYPE_CHECKING:
    from shared.spans import Span, Tracing

log = logging.getLogger(ACCESS)

ANSWERED = "penstock.answered"
"""Key of the scope under which the route and the status of the response stand once they are known."""
REQUEST_ID = b"x-request-id"
_USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_QUIET = frozenset({"/livez", "/readyz", "/healthz", "/health", "/metrics"})
"""Asked every few seconds, by machines."""
_FIRST_SERVER_FAULT = 500
_NO_FAULTS = frozenset({"succeeded", "client_gone", "moved", "cancelled"})
Headers = list[tuple[str, str]]


def sent_id(scope: Scope) -> bytes | None:
    """The client's `X-Request-Id`, if it may stand in a header of the response."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID and _USABLE_ID.fullmatch(value):
            return bytes(value)
    return None


class Exchange:
    """One HTTP exchange. Its methods are called as it goes on; `over` comes last and always."""

    def __init__(self, scope: Scope, tracing: Tracing | None) -> None:
        """`tracing`: None when only the access log is wanted."""
        self._method, self._path = scope["method"], scope["path"]
        self._began_s = time.monotonic()
        self._client_id = (sent_id(scope) or b"").decode("ascii")
        self._tenant = self._rid = self._lane = self._model = self._outcome = self._code = ""
        self._first_s: float | None = None
        self._end: Meta | None = None
        self._spans = None if tracing is None else Spans(tracing, scope, self._client_id)

    @property
    def trace_id(self) -> str:
        """The trace that it is part of; empty without one."""
        return "" if self._spans is None else self._spans.server.trace_id

    # ---- on the way in

    def sends(self, lane: str, headers: Headers, accepted_at_s: float) -> Headers:
        """A request is about to go on the queue: the headers that its engine gets."""
        return headers if self._spans is None else self._spans.sends(lane, headers, accepted_at_s)

    def sent(self, admission: Admission) -> Admission:
        """What exactly will be asked of `admit`."""
        # not the admission itself: it has the request's body, and an answer may take long
        self._tenant, self._rid, self._model = admission.tenant, admission.rid, admission.model
        self._lane = admission.lane
        if self._spans is None:
            return admission
        return self._spans.sent(admission)

    def readmitted(self) -> None:
        """Redis had lost the request, and has it again."""
        if self._spans is not None:
            self._spans.server.happened(genai.READMITTED, {})

    def follows(self, rid: str, lane: str, status: str, trace: str) -> None:
        """It follows a request that is not its own, or not yet known to be: one that it joins or goes on with.

        `trace`: where that one stands in its trace.
        """
        self._rid, self._lane = rid, lane
        subject.set(Subject(rid, "", self.trace_id))
        if self._spans is not None:
            self._spans.follows(rid, status, trace)

    def entered(self) -> None:
        """There is something to follow: from here on it waits for the answer."""
        if self._spans is not None:
            self._spans.entered()

    # ---- on the way out

    def first(self) -> None:
        """The answer's first token is here."""
        self._first_s = time.monotonic()
        if self._spans is not None:
            self._spans.first_ns = time.time_ns()

    def noted(self, code: str) -> None:
        """The client is told of an error."""
        self._code = code

    def left(self, outcome: str, end: Meta | None) -> None:
        """The answer is over, for this client. `outcome` as for the metrics."""
        self._outcome, self._end = outcome, end
        if self._spans is not None:
            self._spans.left(outcome, self._rid, self._lane, end)

    def over(self, scope: Scope, *, logged: bool) -> None:
        """The exchange is over."""
        route, status = scope.get(ANSWERED, ("", 0))
        if self._spans is not None:
            self._spans.over(f"{self._method} {route or self._path}", route, status, self._code)
        if logged:
            log.info("%s %s %d", self._method, route or "-", status, extra=self._line(status))

    def _line(self, status: int) -> dict[str, object]:
        """The facts of the access log; those that this exchange does not have are left out."""
        usage = self._end.usage if self._end is not None else None
        ttft_s = None if self._first_s is None else self._first_s - self._began_s
        facts = {
            "status": status,
            "request_id": self._rid,
            "client_request_id": self._client_id,
            "trace_id": self.trace_id,
            "tenant": self._tenant,
            "model": self._model,
            "lane": self._lane,
            "outcome": self._outcome,
            "code": self._code,
            "prompt_tokens": usage and usage.prompt_tokens,
            "completion_tokens": usage and usage.completion_tokens,
            "ttft_ms": None if ttft_s is None else round(1000 * ttft_s, 1),
            "duration_ms": round(1000 * (time.monotonic() - self._began_s), 1),
        }
        return {name: value for name, value in facts.items() if value is not None and value != ""}


class Spans:
    """The spans of one exchange."""

    def __init__(self, tracing: Tracing, scope: Scope, client_id: str) -> None:
        self._tracing = tracing
        sent = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        self.server = tracing.start(
            scope["method"],
            "server",
            tracing.parent(sent),
            {
                genai.HTTP_METHOD: scope["method"],
                genai.URL_PATH: scope["path"],
                genai.HTTP_REQUEST_ID: [client_id] if client_id else None,
            },
        )
        self.first_ns: int | None = None
        self._operation = genai.operation_of(scope["path"])
        self._admit: Span | None = None
        self._send: Span | None = None
        self._entered_ns = 0

    def sends(self, lane: str, headers: Headers, accepted_at_s: float) -> Headers:
        """See Exchange. `admit` has begun when the request was accepted, before anybody knew its lane."""
        began_ns = time.time_ns() - int(1e9 * (time.monotonic() - accepted_at_s))
        self._admit = self._tracing.start("admit", "internal", self.server.context, at_ns=began_ns)
        self._send = self._tracing.start(f"send {lane}", "producer", self._admit.context)
        return [*(header for header in headers if header[0] not in TRACE_HEADERS), *self._send.headers()]

    def sent(self, admission: Admission) -> Admission:
        """See Exchange. The record then says where in which trace its request stands, for those who join it."""
        if self._send is None:
            return admission
        facts = {genai.REQUEST: admission.rid, genai.LANE: admission.lane}
        self.server.say({**facts, genai.REQUEST_MODEL: admission.model, genai.TENANT: admission.tenant})
        self._send.say(
            {
                **facts,
                genai.MESSAGING_SYSTEM: "redis",
                genai.MESSAGING_OPERATION: "send",
                genai.MESSAGING_DESTINATION: admission.lane,
                genai.MESSAGE_ID: admission.rid,
            }
        )
        return replace(admission, trace=dict(self._send.headers()).get(TRACE_HEADERS[0], ""))

    def follows(self, rid: str, status: str, trace: str) -> None:
        """See Exchange."""
        self.server.say({genai.REQUEST: rid, genai.IDEMPOTENCY: status})
        if trace:
            self.server.link(self._tracing.parent([(TRACE_HEADERS[0], trace)]))

    def entered(self) -> None:
        """See Exchange."""
        self._entered_ns = time.time_ns()
        for span in (self._send, self._admit):
            if span is not None:
                span.end()

    def left(self, outcome: str, rid: str, lane: str, end: Meta | None) -> None:
        """See Exchange. The whole span is made here: an answer that nobody waits for has none."""
        span = self._tracing.start("stream", "internal", self.server.context, at_ns=self._entered_ns or None)
        usage = end.usage if end is not None else None
        span.say({genai.REQUEST: rid, genai.LANE: lane, genai.OUTCOME: outcome, genai.OPERATION: self._operation})
        if usage is not None:
            span.say({genai.INPUT_TOKENS: usage.prompt_tokens, genai.OUTPUT_TOKENS: usage.completion_tokens})
        if self.first_ns is not None:
            waited_s = (self.first_ns - self._entered_ns) / 1e9 if self._entered_ns else None
            span.happened(genai.FIRST, {genai.TTFT: waited_s}, at_ns=self.first_ns)
        if outcome not in _NO_FAULTS:
            span.fail(outcome)
        span.end()

    def over(self, name: str, route: str, status: int, code: str) -> None:
        """See Exchange. What has not come to its end by now has failed with the exchange."""
        for span in (self._send, self._admit):
            if span is not None and not self._entered_ns:
                span.fail(code or str(status))
                span.end()
        self.server.rename(name)
        self.server.say({genai.HTTP_ROUTE: route, genai.HTTP_STATUS: status or None})
        if status >= _FIRST_SERVER_FAULT or (code and status < 400):  # noqa: PLR2004 - or told amid a stream
            self.server.fail(code or str(status))
        elif code:
            self.server.say({genai.ERROR_TYPE: code})
        self.server.end()


current_exchange: ContextVar[Exchange | None] = ContextVar("current_exchange", default=None)
"""The exchange that the current task serves; None where nobody wants to know about it."""


class Watched:
    """An application whose exchanges are traced, or logged, or both. `send` passes through: chunks cost nothing."""

    def __init__(self, app: ASGIApp, tracing: Tracing | None, *, access_log: bool) -> None:
        self._app = app
        self._tracing = tracing
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http" or scope["path"] in _QUIET:
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, self._tracing)
        token = current_exchange.set(exchange)
        subject.set(Subject("", "", exchange.trace_id))
        try:
            await self._app(scope, receive, send)
        finally:
            current_exchange.reset(token)
            exchange.over(scope, logged=self._access_log)
