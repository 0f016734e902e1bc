"""Errors of what is sent, whatever it asks for: methods, media types, sizes, halves of requests. See `errors.py`."""

from __future__ import annotations

from shared.errors import RequestError


def method_not_allowed(method: str, path: str) -> RequestError:
    """405: the path is right, the method is not."""
    return RequestError(405, "method_not_allowed", f"{method} is not allowed on {path}.", should_retry=False)


def unsupported_media_type(sent: str, wanted: str = "plain JSON (`Content-Type: application/json`)") -> RequestError:
    """415: the body is not said to be what the route takes, JSON as a rule, or is compressed."""
    message = f"Send the body as {wanted}, not as `{sent}`."
    return RequestError(415, "unsupported_media_type", message, should_retry=False)


def not_http() -> RequestError:
    """400: what came on the connection cannot be read as a request."""
    return RequestError(400, "invalid_request_error", "This could not be read as HTTP/1.1.", should_retry=False)


def request_stalled(waited_s: float) -> RequestError:
    """408: a request has begun, and its rest does not come."""
    message = f"The rest of the request did not come within {waited_s:g} s."
    return RequestError(408, "request_timeout", message)


def head_too_large(limit_bytes: int, limit_fields: int) -> RequestError:
    """431: the URL and the headers are longer, or the headers more, than a request needs."""
    message = f"URL and headers are over the limit of {limit_bytes} bytes or {limit_fields} headers."
    return RequestError(431, "head_too_large", message, should_retry=False)


def request_too_large(limit_bytes: int) -> RequestError:
    """413: the body is over the limit."""
    return RequestError(413, "request_too_large", f"The request body is over the limit of {limit_bytes} bytes.")
