"""The error tree → OpenAI's error envelope, status and headers. Every refusal of a replica goes through here."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from shared import errors
from shared.errors import BrokerUnavailableError, RequestError
from shared.metrics import REJECTED
from shared.wire import Meta

MOST_RETRY_AFTER_S = 30
_JITTER = 0.2


def envelope(error: RequestError) -> bytes:
    """The body of an error: `{"error": {"message", "type", "param", "code"}}`."""
    body = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": body})


def event(error: RequestError) -> bytes:
    """An error as the last event of a stream whose status has been sent."""
    return b"data: %b\n\n" % envelope(error)


def headers(error: RequestError) -> dict[str, str]:
    """Retry headers. Retry-After has jitter, so that refused clients do not come back together."""
    out = {}
    if error.retry_after_s is not None:
        jittered = error.retry_after_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter
        out["Retry-After"] = str(max(1, round(min(MOST_RETRY_AFTER_S, jittered))))
    if error.should_retry is not None:
        out["x-should-retry"] = "true" if error.should_retry else "false"
    return out


def response(error: RequestError, extra: dict[str, str] | None = None) -> Response:
    """The whole HTTP response of an error."""
    return Response(envelope(error), error.status, {**headers(error), **(extra or {})}, "application/json")


_BY_REASON: dict[str, Callable[[], RequestError]] = {
    "queue_timeout": errors.queue_timeout,
    "worker_lost": errors.worker_lost,
    "too_many_attempts": errors.too_many_attempts,
    "history_lost": errors.history_lost,
}


def of_end(end: Meta) -> RequestError:
    """What a client is told of a request that ended without an answer."""
    if end.reason in _BY_REASON:
        return _BY_REASON[end.reason]()
    if end.state == "cancelled":
        return errors.cancelled()
    return errors.engine_error(end.message or "The engine failed on this request.")


async def on_request_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of RequestError."""
    del request
    if not isinstance(error, RequestError):
        raise error
    REJECTED.labels(code=error.code).inc()
    return response(error)


async def on_broker_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of BrokerUnavailableError."""
    del error
    return await on_request_error(request, errors.broker_unavailable())


async def on_http_exception(request: Request, error: Exception) -> Response:
    """FastAPI's handler of unknown paths and wrong methods."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:  # noqa: PLR2004
        problem = errors.not_found(f"{request.method} {request.url.path}")
    elif error.status_code == 405:  # noqa: PLR2004
        message = f"{request.method} is not allowed on {request.url.path}."
        problem = RequestError(405, "method_not_allowed", message, should_retry=False)
    else:
        problem = RequestError(error.status_code, "invalid_request_error", str(error.detail), should_retry=False)
    return response(problem, dict(error.headers or {}))


async def on_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of parameters that do not parse."""
    if not isinstance(error, RequestValidationError):
        raise error
    fault = error.errors()[0]
    field = ".".join(str(part) for part in fault["loc"][1:])
    return await on_request_error(request, errors.invalid_request(f"{field}: {fault['msg']}", param=field))
