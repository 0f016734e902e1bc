"""Names of what spans say: OpenTelemetry's GenAI and HTTP conventions, and our own. Nothing else spells them.

The GenAI conventions (`open-telemetry/semantic-conventions-genai`) are all in development: when they change, this file
does. vLLM's own span has older names (`gen_ai.usage.prompt_tokens`); see docs/tracing.md.
"""

from __future__ import annotations

from typing import Final

OPERATION: Final = "gen_ai.operation.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
TTFT: Final = "gen_ai.server.time_to_first_token"
"""Seconds. In the conventions a metric's name; there is no attribute for it."""

HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
HTTP_REQUEST_ID: Final = "http.request.header.x-request-id"
URL_PATH: Final = "url.path"
ERROR_TYPE: Final = "error.type"

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION: Final = "messaging.operation.type"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGE_ID: Final = "messaging.message.id"

REQUEST: Final = "penstock.request.id"
LANE: Final = "penstock.lane"
TENANT: Final = "penstock.tenant"
OUTCOME: Final = "penstock.outcome"
IDEMPOTENCY: Final = "penstock.idempotency.status"
ATTEMPT: Final = "penstock.attempt.id"
ATTEMPT_NUMBER: Final = "penstock.attempt.number"
WORKER: Final = "penstock.worker.id"
ENDED_BY: Final = "penstock.attempt.ended_by"
"""Of an attempt whose worker could not tell of it itself: what took it back."""
TOLD_BY: Final = "penstock.told_by"
"""Of the same: the worker that tells of it in its place."""

FIRST: Final = "first_token"
"""Of events: the moment of the first token."""
READMITTED: Final = "readmitted"

_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def operation_of(path: str) -> str | None:
    """The conventions' word for what a route does; None where they have none."""
    return _OPERATIONS.get(path)
