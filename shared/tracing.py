"""Whether this process takes part in tracing. While it does not, OpenTelemetry is not even imported.

It does when it is told where spans go: to a collector (`--otlp-endpoint`, or OpenTelemetry's own environment variables)
or to a file. What spans are is in `spans.py`; which there are, in `api/exchange.py` and `worker/tracing.py`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from shared.errors import ConfigurationError
from shared.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from shared.spans import Tracing

TRACE_HEADERS: Final = ("traceparent", "tracestate")
"""W3C Trace Context; W3C Baggage is not read."""
_TRACES_PATH = "/v1/traces"
_GRPC = "grpc"
_HTTP = "http/protobuf"
_PROTOCOLS = (_HTTP, _GRPC)


def open_tracing(settings: Settings, service: str) -> Tracing | None:
    """The tracing that the settings ask for; None for none.

    `service`: its name where OTEL_SERVICE_NAME says no other. Raises ConfigurationError when OpenTelemetry is missing.
    """
    endpoint = collector(settings)
    if not endpoint and (settings.trace_file is None or _disabled()):
        return None
    try:
        from shared import spans  # noqa: PLC0415 - only when it is wanted

        exporters: list[tuple[SpanExporter, int | None]] = []
        if endpoint:
            exporters.append((spans.otlp_exporter(endpoint, grpc=protocol() == _GRPC), None))
    except ImportError as error:
        msg = f"tracing needs OpenTelemetry ({error}): install `penstock[tracing]`, or leave --otlp-endpoint out"
        raise ConfigurationError(msg) from error
    if settings.trace_file is not None:
        try:
            exporters.append((spans.file_exporter(settings.trace_file, service), spans.FILE_DELAY_MS))
        except OSError as error:
            msg = f"--trace-file: cannot write {settings.trace_file}: {error.strerror}"
            raise ConfigurationError(msg) from error
    return spans.Tracing(service, exporters)


def collector(settings: Settings) -> str:
    """Where exactly spans are sent; empty for nowhere. Raises ConfigurationError."""
    return traces_endpoint(settings.otlp_endpoint) if settings.otlp_endpoint and not _disabled() else ""


def _disabled() -> bool:
    """OpenTelemetry's own ways to say no."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"


def protocol() -> str:
    """How spans go to the collector: `http/protobuf`, or as the environment says. Raises ConfigurationError."""
    named = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if named is not None and named not in _PROTOCOLS:
        msg = f"OTEL_EXPORTER_OTLP_PROTOCOL must be one of {', '.join(_PROTOCOLS)}, not {named!r}"
        raise ConfigurationError(msg)
    return named or _HTTP


def traces_endpoint(endpoint: str) -> str:
    """Where exactly spans are sent.

    Over HTTP the path for traces is appended, unless it is there or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT named it all.
    """
    whole = endpoint == os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if protocol() == _GRPC or whole or endpoint.rstrip("/").endswith(_TRACES_PATH):
        return endpoint
    return endpoint.rstrip("/") + _TRACES_PATH
