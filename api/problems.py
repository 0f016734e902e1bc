"""The error tree → status, headers and body. All refusals of a replica go through here, are counted and logged."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from api import dialects
from api.exchange import current_exchange
from shared import errors, file_errors, http_errors
from shared.errors import RequestError, StorageFullError
from shared.metrics import REJECTED, child
from shared.wire import Meta

MOST_RETRY_AFTER_S = 30
"""Official SDKs give up above two minutes; and nobody knows how fast a queue drains further ahead."""
_ENGINE_BUSY_RETRY_S = 1
_BUSY = 503
_SERVER_FAULT = 500
_FIRST_ERROR, _LAST_ERROR = 400, 600
_CONTEXT_PHRASE = "This model's maximum context length is"
_ERROR_EVENTS = (b'{"error":', b'{"type":"error"')
_REFUSAL_CODES = {404: "not_found", 413: "request_too_large", 422: "unprocessable_entity", 501: "not_implemented"}
_NOT_FOUND, _NO_ROUTE = 404, b'{"detail":"Not Found"}'
_JITTER = 0.2
_SHOWN_CHARS = 200
_ENGINES_WORDS = "(the engine's words)"
_COME_AGAIN = frozenset({429, 503})
FAULTS = (
    "broker_unavailable",
    "deadline_exceeded",
    "engine_error",
    "history_lost",
    "internal_error",
    "no_capacity",
    "queue_timeout",
    "storage_full",
    "storage_unavailable",
    "too_many_attempts",
    "worker_lost",
)
"""Codes of our own faults: what docs/slo.md counts as bad."""
for _code in FAULTS:
    child(REJECTED, _code)  # at 0 from the start: the first ones would be no increase otherwise, which is what counts

log = logging.getLogger(__name__)


def headers(error: RequestError) -> dict[str, str]:
    """What an error's response says beyond its body: when and whether to retry, limits."""
    out = dict(error.headers)
    if error.retry_after_s is not None:
        out.update(_retry_headers(error.retry_after_s, own_turn=error.own_turn))
    if error.should_retry is not None:
        out["x-should-retry"] = "true" if error.should_retry else "false"
    return out


def _retry_headers(after_s: float, *, own_turn: bool) -> dict[str, str]:
    """`Retry-After`, in whole seconds, and `retry-after-ms`, which OpenAI's SDKs look at first.

    Whole seconds would bring clients back together, so they are jittered. Milliseconds are exact for a client that was
    given a turn of its own, as long as turns are told apart: beyond `MOST_RETRY_AFTER_S` everybody gets a random moment
    of the time before it.
    """
    spread = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter
    most_s = MOST_RETRY_AFTER_S / (1 + _JITTER)
    jittered_s = min(after_s, most_s) * spread
    exact_s = after_s if own_turn and after_s <= most_s else jittered_s
    seconds = 1 if after_s <= 1 else math.ceil(jittered_s)
    return {"Retry-After": str(max(1, seconds)), "retry-after-ms": str(max(1, math.ceil(exact_s * 1000)))}


def response(error: RequestError, path: str, extra: dict[str, str] | None = None) -> Response:
    """The whole HTTP response of an error to a client that has called `path`."""
    body = dialects.envelope(error, path)
    return Response(body, error.status, {**headers(error), **(extra or {})}, "application/json")


def note(error: RequestError, path: str) -> None:
    """Counts a refusal and logs it, both under its code. Clients that are told to come again later may be many."""
    REJECTED.labels(code=error.code).inc()
    if (exchange := current_exchange.get()) is not None:
        exchange.noted(error.code)
    level = logging.DEBUG if error.status in _COME_AGAIN else logging.INFO
    words = _ENGINES_WORDS if error.quotes else _shown(error.message)
    log.log(level, "refused %s: %d %s: %s", _shown(path), error.status, error.code, words)


def _shown(text: str) -> str:
    """What clients have sent, on one line of the log and in its alphabet."""
    return text[:_SHOWN_CHARS].encode("unicode_escape").decode("ascii")


_BY_REASON: dict[str, Callable[[], RequestError]] = {
    "queue_timeout": errors.queue_timeout,
    "deadline_exceeded": errors.deadline_exceeded,
    "worker_lost": errors.worker_lost,
    "too_many_attempts": errors.too_many_attempts,
    "history_lost": errors.history_lost,
    "purged": errors.purged,
}


def of_end(end: Meta) -> RequestError:
    """What a client is told of a request that ended without an answer."""
    if end.reason in _BY_REASON:
        return _BY_REASON[end.reason]()
    if end.state == "cancelled":
        return errors.cancelled()
    return errors.engine_error(end.message or "The engine failed on this request.")


def of_refusal(status: int, body: bytes, model: str = "", path: str = "") -> RequestError:
    """An engine's refusal as one of ours: its words are kept, since clients match on them; its code becomes OpenAI's.

    `body` is the engine's error body, in vLLM's envelope or in FastAPI's (`{"detail": …}`). `model` and `path`: who was
    asked for what, where that is known.
    """
    if status == _NOT_FOUND and body == _NO_ROUTE and model:
        return errors.endpoint_not_supported(model, path)
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        answer = {}
    fault = (answer.get("error") or answer.get("detail")) if isinstance(answer, dict) else None
    if not isinstance(fault, dict):
        fault = {"message": str(fault or answer or "The engine refused the request.")}
    message = str(fault.get("message") or "The engine refused the request.")
    return RequestError(
        status,
        _refusal_code(status, message),
        message,
        param=fault.get("param"),
        retry_after_s=_ENGINE_BUSY_RETRY_S if status == _BUSY else None,
        should_retry=status >= _SERVER_FAULT,
        quotes=True,
    )


def _refusal_code(status: int, message: str) -> str:
    if message.startswith(_CONTEXT_PHRASE):
        return "context_length_exceeded"
    return _REFUSAL_CODES.get(status, "invalid_request_error" if status < _SERVER_FAULT else "engine_error")


def of_first_event(first: bytes) -> RequestError | None:
    """The refusal that an engine sends as the only event of a stream, so that it still gets its status; else None."""
    _, found, rest = first.partition(b"data: ")
    if not found or not rest.startswith(_ERROR_EVENTS):
        return None
    body = rest.partition(b"\n\n")[0]
    try:
        code = msgspec.json.decode(body)["error"].get("code")
    except (msgspec.DecodeError, AttributeError, TypeError):
        code = None
    return of_refusal(code if isinstance(code, int) and _FIRST_ERROR <= code < _LAST_ERROR else 500, body)


async def on_request_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of RequestError."""
    if not isinstance(error, RequestError):
        raise error
    path = request.scope["path"]
    note(error, path)
    # who keeps it in a local is kept by it, with the request's body, until a collection of cycles
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return response(error, path)


async def on_broker_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of BrokerUnavailableError."""
    del error
    return await on_request_error(request, errors.broker_unavailable())


async def on_storage_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of StorageUnavailableError. What the storage said is for the log only."""
    log.warning("storage: %s", error)
    full = isinstance(error, StorageFullError)
    return await on_request_error(request, file_errors.storage_full() if full else file_errors.storage_unavailable())


async def on_bug(request: Request, error: Exception) -> Response:
    """FastAPI's handler of everything that nobody expected; the server logs it."""
    del error
    return await on_request_error(request, errors.internal_error())


async def on_http_exception(request: Request, error: Exception) -> Response:
    """FastAPI's handler of unknown paths and wrong methods."""
    if not isinstance(error, HTTPException):
        raise error
    path = request.scope["path"]
    if error.status_code == 404:  # noqa: PLR2004
        problem = errors.not_found(f"{request.method} {path}")
    elif error.status_code == 405:  # noqa: PLR2004
        problem = http_errors.method_not_allowed(request.method, path)
    else:
        problem = RequestError(error.status_code, "invalid_request_error", str(error.detail), should_retry=False)
    note(problem, path)
    return response(problem, path, {**(error.headers or {}), **_allow(request, problem)})


def _allow(request: Request, problem: RequestError) -> dict[str, str]:
    """With a 405, every method that the path has; the router names those of the first route only."""
    if problem.code != "method_not_allowed":
        return {}
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    first = next((route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE), "")
    methods = {method for route in routes if route.path == first for method in route.methods or ()}
    return {"Allow": ", ".join(sorted(methods))}


async def on_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of parameters that do not parse."""
    if not isinstance(error, RequestValidationError):
        raise error
    fault = error.errors()[0]
    field = ".".join(str(part) for part in fault["loc"][1:])
    return await on_request_error(request, errors.invalid_request(f"{field}: {fault['msg']}", param=field))
