"""POST /v1/chat/completions, /v1/completions and /generate.

The endpoints take the request as it came, so that `Outermost` can call them without FastAPI's routing and dependencies.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.auth import tenant_of
from api.idempotency import terms_of
from api.schemas import ValidRequest, nested_too_deeply, validate_chat, validate_completion, validate_generate
from api.sse import Answer
from api.ticket import Ticket
from shared.errors import request_too_large

router = APIRouter(tags=["generation"])
Validate = Callable[[bytes, str | None], ValidRequest]
_FORWARDED = ("content-type", "traceparent", "tracestate")


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


async def _answer(request: Request, validate: Validate) -> Response:
    """One generation."""
    ticket, stream = await _admitted(request, validate)
    state = request.app.state
    return await Answer(state.door, ticket, state.settings, stream=stream).response(request)


async def _admitted(request: Request, validate: Validate) -> tuple[Ticket, bool]:
    """The admitted request, and whether it streams. What refuses one comes before the queue does: key, size, outline.

    What was parsed ends here: its texts need not stay as long as the request.
    """
    state = request.app.state
    tenant = await tenant_of(request)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
    body = await body_of(request, headers.get("content-length", ""))
    try:
        valid = validate(body, headers.get("x-priority-lane"))
    except RecursionError as error:  # it could just be read, and not be written again
        raise nested_too_deeply() from error
    forwarded = [(name, headers[name]) for name in _FORWARDED if name in headers]
    return await state.door.enter(valid, tenant, forwarded, terms_of(headers)), valid.stream


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answers a conversation; with `stream: true` as Server-Sent Events."""
    return await _answer(request, validate_chat)


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Continues a prompt; with `stream: true` as Server-Sent Events."""
    return await _answer(request, validate_completion)


@router.post("/generate")
async def generate(request: Request) -> Response:
    """Prompt in, text out: `{"prompt": …}` → `{"text": …, "usage": …}`. Takes the parameters of /v1/completions."""
    answer = await _answer(request, validate_generate)
    if answer.status_code != 200:  # noqa: PLR2004
        return answer
    completion = json.loads(bytes(answer.body))
    choice = completion["choices"][0]
    plain = {
        "text": choice["text"],
        "model": completion["model"],
        "finish_reason": choice["finish_reason"],
        "usage": completion["usage"],
    }
    headers = {name: value for name, value in answer.headers.items() if name.startswith(("x-", "idempotency-"))}
    return Response(json.dumps(plain), 200, headers, "application/json")


DIRECT: dict[str, Callable[[Request], Awaitable[Response]]] = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    "/generate": generate,
}
"""See observe.Outermost."""
