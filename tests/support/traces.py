"""Spans that processes have appended to a file, as the tree that they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.stack import eventually

_PATIENCE_S = 30.0
_GOES_ON = {"worker_lost", "handed_back", "preempted"}
"""Outcomes of attempts that are followed by another one."""


@dataclass(frozen=True)
class Span:
    """One line of a trace file."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: str
    service: str
    start_unix_ns: int
    end_unix_ns: int
    failed: bool
    attributes: dict[str, Any]
    events: list[dict[str, Any]]
    links: list[dict[str, str]]


class Trace:
    """The spans of one trace."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = sorted(spans, key=lambda span: span.start_unix_ns)

    @property
    def names(self) -> list[str]:
        """Of all spans, in alphabetical order."""
        return sorted(span.name for span in self.spans)

    def all(self, name: str) -> list[Span]:
        """The spans of that name, the earliest first."""
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        """The only span of that name."""
        (found,) = self.all(name)
        return found

    def parent_of(self, span: Span) -> str:
        """Name of a span's parent; empty when it is not in this trace."""
        return next((other.name for other in self.spans if other.span_id == span.parent_span_id), "")


def spans_in(path: Path) -> list[Span]:
    """All spans that were written so far."""
    return [Span(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def trace_of(path: Path, rid: str) -> Trace:
    """The trace of a request: that of the span which put it on its queue."""
    spans = spans_in(path)
    ids = {span.trace_id for span in spans if span.kind == "producer" and span.attributes["penstock.request.id"] == rid}
    return Trace([span for span in spans if span.trace_id in ids])


async def complete(path: Path, rid: str, *, ended: str = "POST /v1/chat/completions") -> Trace:
    """The trace of a request once the span `ended` and the last attempt's are there. Raises TimeoutError."""

    def there() -> bool:
        trace = trace_of(path, rid)
        outcomes = {span.attributes.get("penstock.outcome") for span in trace.spans if span.kind == "consumer"}
        return bool(trace.all(ended) and outcomes - _GOES_ON)

    await eventually(there, _PATIENCE_S, f"the whole trace of {rid}")
    return trace_of(path, rid)
