"""Spans, by OpenTelemetry's SDK. The only module that imports it, and imported only when spans are wanted.

The provider is this object's own and never the process's global one: libraries that look for that (FastAPI, vLLM) add
no spans of theirs, above all none per chunk. Spans are handed to a thread that exports them in batches, and dropped
when nobody takes them: tracing never holds a request up.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.genai import ERROR_TYPE
from shared.tracing import TRACE_HEADERS

Kind = Literal["internal", "server", "producer", "consumer"]
Value = str | bool | int | float | Sequence[str]

_KINDS: Final[dict[Kind, SpanKind]] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
FILE_DELAY_MS: Final = 200
"""After so long spans stand in a file; a collector gets them when OTEL_BSP_SCHEDULE_DELAY is over."""
_CLOSE_S = 3.0
"""What the last spans get to be exported when the process ends; a collector that is away must not hold it."""


class Span:
    """One span that has begun. Ending it twice is as good as once."""

    __slots__ = ("_propagator", "_span")

    def __init__(self, span: OtelSpan, propagator: TraceContextTextMapPropagator) -> None:
        self._span = span
        self._propagator = propagator

    @property
    def trace_id(self) -> str:
        """In hexadecimal."""
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def context(self) -> Context:
        """As the parent of other spans."""
        return set_span_in_context(self._span, Context())

    def headers(self) -> list[tuple[str, str]]:
        """The headers by which a callee's spans become this one's children."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self.context)
        return list(carrier.items())

    def rename(self, name: str) -> None:
        """A better name, once it is known."""
        self._span.update_name(name)

    def say(self, attributes: Mapping[str, Value | None]) -> None:
        """Adds attributes; those without a value are left out."""
        self._span.set_attributes(_present(attributes))

    def happened(self, name: str, attributes: Mapping[str, Value | None], *, at_ns: int | None = None) -> None:
        """Something happened, now or at `at_ns`."""
        self._span.add_event(name, _present(attributes), at_ns)

    def link(self, context: Context) -> None:
        """Points to a span of another trace, or elsewhere in this one."""
        other = get_current_span(context).get_span_context()
        if other.is_valid:
            self._span.add_link(other)

    def fail(self, code: str) -> None:
        """It did not end well; `code` is the word that the metrics have for it."""
        self._span.set_attribute(ERROR_TYPE, code)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self, at_ns: int | None = None) -> None:
        """It is over, now or at `at_ns`."""
        if self._span.is_recording():
            self._span.end(at_ns)


class Tracing:
    """Makes the spans of this process. Times are Unix nanoseconds."""

    def __init__(self, service: str, exporters: Iterable[tuple[SpanExporter, int | None]]) -> None:
        """Exporters come with the time in ms for which spans are collected; None leaves that to OpenTelemetry.

        `service` counts where OTEL_SERVICE_NAME says no other. Sampling is up to OTEL_TRACES_SAMPLER.
        """
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service}
        self._ids = _Ids()
        self._provider = TracerProvider(resource=Resource.create(named), id_generator=self._ids, shutdown_on_exit=False)
        for exporter, delay_ms in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=delay_ms))
        self._tracer = self._provider.get_tracer("penstock")
        self._propagator = TraceContextTextMapPropagator()

    def parent(self, headers: Iterable[tuple[str, str]]) -> Context:
        """What the headers name as the parent; an empty context, for a trace of its own, when they name none."""
        carrier = {name: value for name, value in headers if name in TRACE_HEADERS}
        return self._propagator.extract(carrier, Context())

    def start(
        self,
        name: str,
        kind: Kind,
        parent: Context,
        attributes: Mapping[str, Value | None] | None = None,
        *,
        at_ns: int | None = None,
        span_id: int | None = None,
    ) -> Span:
        """A span that begins now, or has begun at `at_ns`.

        `span_id`: a certain id, for a span of which several processes may tell.
        """
        self._ids.next = span_id
        span = self._tracer.start_span(
            name,
            parent,
            _KINDS[kind],
            _present(attributes or {}),
            start_time=at_ns,
        )
        self._ids.next = None
        return Span(span, self._propagator)

    def close(self) -> None:
        """Exports what has ended, within some seconds. Blocks; to be called when nothing else runs any more."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


class _Ids(RandomIdGenerator):
    """Random ids, except for the next span when it was given one. Spans are made in one thread."""

    next: int | None = None

    def generate_span_id(self) -> int:
        """See IdGenerator."""
        return self.next or super().generate_span_id()


def _present(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None and value != ""}


def otlp_exporter(endpoint: str, *, grpc: bool) -> SpanExporter:
    """Sends spans to a collector. Raises ImportError when the exporter for this protocol is not installed."""
    if grpc:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 - a large library
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - one of the two is enough
        OTLPSpanExporter as HttpExporter,
    )

    return HttpExporter(endpoint=endpoint)


def file_exporter(path: Path, service: str) -> SpanExporter:
    """Appends spans to a file, each as a line of JSON. Several processes may share it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab"):
        return _FileExporter(path, service)


class _FileExporter(SpanExporter):
    def __init__(self, path: Path, service: str) -> None:
        self._path = path
        self._service = service

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter. One write: lines of several processes do not mix."""
        lines = "".join(json.dumps(_told(span, self._service)) + "\n" for span in spans)
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(lines.encode())
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS


def _told(span: ReadableSpan, service: str) -> dict[str, Any]:
    context, parent = span.get_span_context(), span.parent
    return {
        "trace_id": f"{context.trace_id:032x}" if context else "",
        "span_id": f"{context.span_id:016x}" if context else "",
        "parent_span_id": f"{parent.span_id:016x}" if parent else "",
        "name": span.name,
        "kind": span.kind.name.lower(),
        "service": span.resource.attributes.get(SERVICE_NAME, service),
        "start_unix_ns": span.start_time,
        "end_unix_ns": span.end_time,
        "failed": span.status.status_code is StatusCode.ERROR,
        "attributes": dict(span.attributes or {}),
        "events": [
            {"name": event.name, "at_unix_ns": event.timestamp, "attributes": dict(event.attributes or {})}
            for event in span.events
        ],
        "links": [
            {"trace_id": f"{link.context.trace_id:032x}", "span_id": f"{link.context.span_id:016x}"}
            for link in span.links
        ],
    }
