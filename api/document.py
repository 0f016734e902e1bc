"""The OpenAPI document: what FastAPI knows of the routes, and what it cannot know of those that take the raw request.

`openapi.json` names for each route the schemas of its request and its answer, each with an example. Errors come from
`shared/errors.py`, so the document shows what clients get.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import dialects
from api.surface import BY_PATH
from shared import errors, file_errors, http_errors
from shared.errors import RequestError

Operation = dict[str, Any]
_FILE = Path(__file__).with_name("openapi.json")
_JSON, _EVENTS = "application/json", "text/event-stream"
_SCHEMAS = "#/components/schemas/"
_OPEN = ("/livez", "/readyz", "/healthz", "/metrics")
_ADMIN, _REQUESTS, _MODELS, _RESPONSES = "/v1/admin", "/v1/requests", "/v1/models", "/v1/responses"
_OF_STREAMS = "X-Event-Stream"
_SETTINGS = "/v1/admin/lanes/{lane}"
_FILES, _BATCHES = "/v1/files", "/v1/batches"
_LATER = ("Location", "Preference-Applied", "x-penstock-request", "x-penstock-lane")
_ALWAYS = ("x-penstock-request", "x-penstock-lane", "x-request-id")
_RESPONSE_EVENT = (
    'id: 4\nevent: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"msg_1",'
    '"output_index":0,"content_index":0,"delta":"Yes","logprobs":[],"sequence_number":4}\n\n'
)
_PROGRESS = 'event: progress\ndata: {"id":"batch_01kq","status":"in_progress","request_counts":{"total":9}}\n\n'
_DESCRIPTION = (
    "Requests wait in a queue for a worker with an engine inside; engines answer. What an engine refuses keeps its "
    "status and words. Every response has an `x-request-id`; what an engine answers also `x-penstock-request`, "
    "`x-penstock-lane`, `x-penstock-attempt` and `x-penstock-queue-ms`."
)
_GONE = RequestError(422, "unprocessable_entity", "The image could not be read.")
_CANNOT = RequestError(501, "not_implemented", "The model cannot do that.", should_retry=True)
_CLOSED = RequestError(403, "admin_closed", "The admin routes are closed: set PENSTOCK_ADMIN_KEYS on the replicas.")
_KEYS = (errors.invalid_api_key("The API key is not valid."),)
_AWAY = (
    http_errors.request_stalled(60),
    http_errors.head_too_large(65_536, 200),
    errors.broker_unavailable(),
    errors.internal_error(),
)
"""What may come from any route."""
_ANSWERED: tuple[RequestError, ...] = (
    errors.invalid_request("`messages` is required.", param="messages"),
    errors.context_length_exceeded(9_000, 4_096),
    errors.limit_exceeded("`n` is 500", 128, param="n"),
    errors.lane_not_allowed("interactive", "standard"),
    errors.model_not_found("gpt-9"),
    errors.endpoint_not_supported("penstock-demo", "/v1/embeddings"),
    errors.idempotency_in_progress("req_0_4f1c"),
    errors.result_expired("req_0_4f1c"),
    http_errors.request_too_large(10_000_000),
    http_errors.unsupported_media_type("text/plain"),
    errors.idempotency_key_mismatch(),
    file_errors.image_not_fetched("its host cannot be reached", "messages.0.content.1.image_url"),
    _GONE,
    errors.queue_full(5_000, 3),
    errors.no_free_slot("interactive", 8, 1),
    errors.deadline_unachievable(9.5, 4),
    errors.too_many_requests(10_000, 10_000, 2),
    errors.cancelled(),
    errors.engine_error("The engine failed on this request."),
    errors.worker_lost(),
    errors.history_lost(),
    errors.too_many_attempts(),
    _CANNOT,
    errors.no_capacity("penstock-demo", 30),
    file_errors.images_busy(),
    errors.queue_timeout(),
    errors.lane_draining("batch", 10),
    errors.deadline_exceeded(),
)
_STORED = (
    file_errors.no_storage(),
    file_errors.storage_unavailable(),
)
_UPLOADED = (
    errors.invalid_request("`purpose` must be one of: assistants, batch.", param="purpose"),
    file_errors.file_quota_exceeded("bytes"),
    file_errors.upload_timeout(60, 10_000),
    file_errors.file_too_large(200_000_000, "batch"),
    http_errors.unsupported_media_type("application/json", "a form (`multipart/form-data`)"),
    errors.idempotency_key_mismatch(),
    file_errors.uploads_busy(),
    file_errors.storage_full(),
)
_BATCHED = (
    errors.invalid_request(
        "Missing required parameter: 'endpoint'.", param="endpoint", code="missing_required_parameter"
    ),
    file_errors.batch_not_cancellable("completed"),
    errors.result_expired("batch_01kq"),
    http_errors.request_too_large(10_000_000),
    http_errors.unsupported_media_type("text/plain"),
    errors.idempotency_key_mismatch(),
)
_ASKED = (
    errors.invalid_request("limit: Input should be a number", param="limit"),
    errors.not_found("req_0_4f1c"),
)


def document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What `app.openapi` is to be: makes the document once."""

    @cache
    def made() -> dict[str, Any]:
        told = json.loads(_FILE.read_text(encoding="utf-8"))
        base: dict[str, Any] = get_openapi(
            title=app.title, version=app.version, summary=app.summary, description=_DESCRIPTION, routes=app.routes
        )
        for path, operations in base["paths"].items():
            for method, operation in operations.items():
                _complete(operation, path, told["routes"].get(f"{method.upper()} {path}", {}), told)
        _link(base["paths"])
        schemas = base.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):  # we answer with our own envelope
            schemas.pop(name, None)
        schemas |= told["schemas"]
        base["components"]["parameters"] = told["parameters"]
        base["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        return base

    return made


def _complete(operation: Operation, path: str, told: dict[str, str], whole: dict[str, Any]) -> None:
    """Adds to one operation what is known of it, without touching what its route has said itself."""
    answers, schemas = operation["responses"], whole["schemas"]
    answers.pop("422", None)
    if request := told.get("request"):
        operation["requestBody"] = {"required": True, "content": {_JSON: _content(request, schemas)}}
    if answer := told.get("answer"):
        answers["200"] = {"description": "The answer.", "content": {_JSON: _content(answer, schemas)}}
    route = BY_PATH.get(path)
    if route is not None:
        operation["tags"] = [{"generate": "generation", "pool": "pooling", "any": "tokens"}[route.answers]]
        operation.setdefault("parameters", []).extend(
            {"$ref": f"#/components/parameters/{name}"}
            for name in whole["parameters"]
            if route.streams or name != _OF_STREAMS
        )
        answers["202"] = {
            "description": "With `Prefer: respond-async`: where the answer will be.",
            "headers": _headers(_LATER),
            "content": {_JSON: _content("RequestQueued", schemas)},
        }
        answers["200"]["headers"] = _headers(_ALWAYS)
        if route.streams:
            answers["200"]["content"][_EVENTS] = _events(_stream_of(path))
    _complete_responses(operation, path, whole)
    _complete_files(operation, path, whole)
    _complete_batches(operation, path)
    if path == f"{_REQUESTS}/{{rid}}/events":
        events = _events(_stream_of("/v1/chat/completions"))
        answers["200"] = {"description": "The events.", "content": {_EVENTS: events}}
    if path == "/metrics":
        answers["200"] = _text("Prometheus' text format.", "text/plain", "penstock_broker_up 1.0\n")
    if path in {"/readyz", "/healthz"}:
        answers["503"] = {"description": "Not ready.", "content": {_JSON: _content("Ready", schemas)}}
    if path not in _OPEN:
        operation["security"] = (
            [{"bearer": []}, {"key": []}] if path.startswith(_ADMIN) else [{"bearer": []}, {"key": []}, {}]
        )
        _add_errors(answers, path)


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"required": True, "schema": {"type": "string"}} for name in names}


def _link(paths: dict[str, Any]) -> None:
    """Says where an answer's id leads: from what makes a thing to all that can be done with it."""
    request, response = "$response.header.x-penstock-request", "$response.body#/id"
    for path in BY_PATH:
        for status in ("200", "202"):
            _lead(paths, path, status, f"{_REQUESTS}/{{rid}}", request)
    _lead(paths, _RESPONSES, "200", f"{_RESPONSES}/{{response}}", response)


def _lead(paths: dict[str, Any], path: str, status: str, to: str, found_at: str) -> None:
    links = paths[path]["post"]["responses"][status].setdefault("links", {})
    name = to[to.index("{") + 1 : -1]
    for target, operations in paths.items():
        for operation in operations.values() if target.startswith(to) else ():
            links[operation["operationId"]] = {"operationId": operation["operationId"], "parameters": {name: found_at}}


def _complete_responses(operation: Operation, path: str, whole: dict[str, Any]) -> None:
    """What the routes of `routes/responses.py` take and answer beyond their objects."""
    if path in {_RESPONSES, f"{_RESPONSES}/{{response}}"} and "content" in operation["responses"]["200"]:
        content = operation["responses"]["200"]["content"]
        content[_EVENTS] = _events(_RESPONSE_EVENT)
    if path == _RESPONSES:
        operation.setdefault("parameters", []).extend(
            {"$ref": f"#/components/parameters/{name}"}
            for name in whole["parameters"]
            if name not in {"Prefer", _OF_STREAMS}
        )


def _complete_files(operation: Operation, path: str, whole: dict[str, Any]) -> None:
    """What the routes of `routes/files.py` take and answer that is not JSON."""
    if path == _FILES and operation["operationId"].endswith("_post"):
        form = {"multipart/form-data": _content("FileUpload", whole["schemas"])}
        operation["requestBody"] = {"required": True, "content": form}
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/Idempotency-Key"})
    if path == f"{_FILES}/{{file}}/content":
        bytes_of = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}, "example": "{}\n"}}
        operation["responses"]["200"] = {"description": "The whole file.", "content": bytes_of}
        operation["responses"]["206"] = {"description": "The range that was asked for.", "content": bytes_of}
        operation["responses"]["304"] = {"description": "`If-None-Match` names this file."}
        operation.setdefault("parameters", []).extend(
            {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
            for name in ("Range", "If-Range", "If-None-Match")
        )


def _complete_batches(operation: Operation, path: str) -> None:
    """What the routes of `routes/batches.py` take and answer beyond their objects."""
    if path == f"{_BATCHES}/{{batch}}/events":
        operation["responses"]["200"] = {"description": "The progress.", "content": {_EVENTS: _events(_PROGRESS)}}
    if path == _BATCHES and "requestBody" in operation:
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/Idempotency-Key"})


def _content(name: str, schemas: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"$ref": _SCHEMAS + name}, "example": schemas[name].get("examples", [None])[0]}


def _events(example: str) -> dict[str, Any]:
    """A schema of OpenAPI 3.1 says nothing of a stream: whether it is the whole or an event differs by reader."""
    return {"schema": {"description": "Server-Sent Events."}, "example": example}


def _text(description: str, kind: str, example: str) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": {"type": "string"}, "example": example}}}


def _stream_of(path: str) -> str:
    """A stream of one word."""
    if dialects.speaks_anthropic(path):
        delta = '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Yes"}}'
        return f"id: 911-9f3a01\nevent: content_block_delta\ndata: {delta}\n\n"
    outline = '"id":"chatcmpl-req_0_4f1c","object":"chat.completion.chunk"'
    chunk = f'{{{outline},"choices":[{{"index":0,"delta":{{"content":"Yes"}}}}]}}'
    return f"id: 4711-9f3a01\ndata: {chunk}\n\nid: 4726-9f3a01\ndata: [DONE]\n\n"


def _errors_of(path: str) -> Iterable[RequestError]:
    if path in BY_PATH:
        return (*_ANSWERED, *_KEYS, *_AWAY)
    if path == _RESPONSES:
        return (*_ANSWERED, errors.previous_response_not_found("resp_0_4f1c"), *_KEYS, *_AWAY)
    if path.startswith(_RESPONSES):
        return (*_ASKED, errors.result_expired("resp_0_4f1c"), *_KEYS, *_AWAY)
    if path.startswith(_ADMIN):
        sent = (http_errors.request_too_large(10_000_000), http_errors.unsupported_media_type("text/plain"))
        return (*_ASKED, *_KEYS, *_AWAY, _CLOSED, *(sent if path == _SETTINGS else ()))
    if path.startswith(_FILES):
        own = _UPLOADED if path == _FILES else (file_errors.range_not_satisfiable(1_042),)
        return (*own, *_ASKED, *_STORED, *_KEYS, *_AWAY)
    if path.startswith(_BATCHES):
        return (*_BATCHED, *_ASKED, *_STORED, *_KEYS, *_AWAY)
    if path.startswith(_REQUESTS):
        return (*_ASKED, errors.result_expired("req_0_4f1c"), *_KEYS, *_AWAY)
    return (*_KEYS, *_AWAY, *((errors.model_not_found("gpt-9"),) if path.startswith(_MODELS) else ()))


def _add_errors(answers: dict[str, Any], path: str) -> None:
    """Every error that a route may answer with, by status; a route's own word for a status stays."""
    schema = {"$ref": _SCHEMAS + ("AnthropicError" if dialects.speaks_anthropic(path) else "Error")}
    by_status: dict[str, dict[str, Any]] = {}
    for error in _errors_of(path):
        told = {"value": json.loads(dialects.envelope(error, path))}
        by_status.setdefault(str(error.status), {})[error.code] = told
    for status, examples in sorted(by_status.items()):
        description = " or ".join(f"`{code}`" for code in examples)
        answers.setdefault(
            status, {"description": description, "content": {_JSON: {"schema": schema, "examples": examples}}}
        )
