"""The routes that engines answer: those of `api/surface.py`.

The endpoints take the request as it came, so that `Outermost` can call them without FastAPI's routing and dependencies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import assembly
from api.auth import tenant_of
from api.idempotency import terms_of
from api.polled import accepted
from api.schemas import nested_too_deeply
from api.sse import Answer
from api.surface import ROUTES, Route, Validate
from api.ticket import Ticket
from shared.http_errors import request_too_large, unsupported_media_type

router = APIRouter()
Endpoint = Callable[[Request], Awaitable[Response]]
_FORWARDED = ("traceparent", "tracestate")
"""Headers that reach the engine. `X-Vllm-Priority`, `X-Session-ID` and their like are not a client's to set."""
_SHOWN_CHARS = 60
_JSON = ("content-type", "application/json")


async def body_of(request: Request, declared: str) -> bytes:
    """The request body; `declared` is its content-length. Raises RequestError (413) as soon as it is over the limit."""
    limit: int = request.app.state.settings.max_body_bytes
    if declared.isascii() and declared.isdecimal() and int(declared) > limit:
        raise request_too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise request_too_large(limit)
        parts.append(part)
    return b"".join(parts)


def check_encoding(headers: Mapping[str, str]) -> None:
    """Raises RequestError (415) for a body that is not said to be plain JSON. Silence is taken for that."""
    kind, encoding = headers.get("content-type"), headers.get("content-encoding", "identity")
    transfer = headers.get("transfer-encoding", "chunked")
    if kind is not None and kind.partition(";")[0].strip().lower() != _JSON[1]:
        raise unsupported_media_type(kind[:_SHOWN_CHARS])
    if encoding.strip().lower() != "identity":
        raise unsupported_media_type(encoding[:_SHOWN_CHARS])
    if transfer.strip().lower() != "chunked":
        raise unsupported_media_type(transfer[:_SHOWN_CHARS])


async def _answer(request: Request, validate: Validate) -> Response:
    """One generation: its answer, or where it will be, for a client that would rather come back for it."""
    ticket, stream, later = await _admitted(request, validate)
    state = request.app.state
    if later and ticket.stays:  # one that joins a request which ends with its client has to wait like that one
        return await accepted(state, ticket, request.scope["path"])
    return await Answer(state.door, ticket, state.settings, stream=stream).response(request)


async def _admitted(request: Request, validate: Validate) -> tuple[Ticket, bool, bool]:
    """The admitted request, whether it streams, and whether its client comes back for the answer.

    What refuses one comes before the queue does: key, size, outline. What was parsed ends here: its texts need
    not stay as long as the request.
    """
    state = request.app.state
    tenant = await tenant_of(request)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
    check_encoding(headers)
    body = await body_of(request, headers.get("content-length", ""))
    try:
        valid = validate(body, headers.get("x-priority-lane"), state.settings.limits)
    except RecursionError as error:  # it could just be read, and not be written again
        raise nested_too_deeply() from error
    forwarded = [_JSON, *((name, headers[name]) for name in _FORWARDED if name in headers)]
    if "prefer" in headers:
        headers["prefer"] = ",".join(request.headers.getlist("prefer"))
    terms = terms_of(headers)
    if terms.later:
        terms = replace(terms, stays=True)
    return await state.door.enter(valid, tenant, forwarded, terms), valid.stream, terms.later


async def _generate(request: Request, validate: Validate) -> Response:
    """A completion, answered with its text and little else."""
    answer = await _answer(request, validate)
    if answer.status_code != 200:  # noqa: PLR2004
        return answer
    headers = {name: value for name, value in answer.headers.items() if name.startswith(("x-", "idempotency-"))}
    return Response(assembly.to_plain(bytes(answer.body)), 200, headers, "application/json")


def endpoint_of(route: Route) -> Endpoint:
    """The endpoint of one row of the table."""
    answer = _generate if route.path == "/generate" else _answer

    async def endpoint(request: Request) -> Response:
        return await answer(request, route.validate)

    return endpoint


DIRECT: dict[str, Endpoint] = {route.path: endpoint_of(route) for route in ROUTES}
"""See observe.Outermost."""

for _route in ROUTES:
    router.add_api_route(_route.path, DIRECT[_route.path], methods=["POST"], summary=_route.what)
