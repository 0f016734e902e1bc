"""In which envelope an error is told: OpenAI's, or on Anthropic's routes Anthropic's. Status, headers, code are one."""

from __future__ import annotations

from typing import Any

import msgspec

from shared.errors import RequestError

_ANTHROPIC = "/v1/messages"
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's SDKs raise by the status; these are the words of the body."""
_SERVER_FAULT = 500


def speaks_anthropic(path: str) -> bool:
    """Whether clients of this path expect Anthropic's shapes."""
    return path.startswith(_ANTHROPIC) and path[len(_ANTHROPIC) :][:1] in {"", "/"}


def envelope(error: RequestError, path: str) -> bytes:
    """The body of an error."""
    return msgspec.json.encode(_object(error, path))


def event(error: RequestError, path: str) -> bytes:
    """An error as the last event of a stream whose status has been sent."""
    name = b"event: error\n" if speaks_anthropic(path) else b""
    return b"%bdata: %b\n\n" % (name, envelope(error, path))


def _object(error: RequestError, path: str) -> dict[str, Any]:
    if speaks_anthropic(path):
        fallback = "invalid_request_error" if error.status < _SERVER_FAULT else "api_error"
        kind = _TYPES.get(error.status, fallback)
        return {"type": "error", "error": {"type": kind, "message": error.message, "code": error.code}}
    body = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return {"error": body}
