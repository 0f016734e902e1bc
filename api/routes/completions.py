"""POST /v1/chat/completions, /v1/completions and /generate."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.admission import Ticket
from api.auth import tenant_of
from api.idempotency import terms_of
from api.schemas import ValidRequest, validate_chat, validate_completion, validate_generate
from api.settings import ApiSettings
from api.sse import Answer
from shared.errors import request_too_large

router = APIRouter(tags=["generation"])

_FORWARDED = ("content-type", "traceparent", "tracestate")


async def _body(request: Request) -> bytes:
    """The request body. Raises RequestError (413) as soon as it is over the limit."""
    limit: int = request.app.state.settings.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise request_too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise request_too_large(limit)
        parts.append(part)
    return b"".join(parts)


Tenant = Annotated[str, Depends(tenant_of)]
Body = Annotated[bytes, Depends(_body)]


async def _admit(
    request: Request, tenant: str, body: bytes, validate: Callable[[bytes, str | None], ValidRequest]
) -> tuple[ValidRequest, Ticket]:
    valid = validate(body, request.headers.get("x-priority-lane"))
    headers = [(name, request.headers[name]) for name in _FORWARDED if name in request.headers]
    return valid, await request.app.state.door.enter(valid, tenant, headers, terms_of(request.headers))


async def _answer(request: Request, valid: ValidRequest, ticket: Ticket) -> Response:
    settings: ApiSettings = request.app.state.settings
    return await Answer(request.app.state.door, ticket, settings, stream=valid.stream).response(request)


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, tenant: Tenant, body: Body) -> Response:
    """Answers a conversation; with `stream: true` as Server-Sent Events."""
    return await _answer(request, *await _admit(request, tenant, body, validate_chat))


@router.post("/v1/completions")
async def completions(request: Request, tenant: Tenant, body: Body) -> Response:
    """Continues a prompt; with `stream: true` as Server-Sent Events."""
    return await _answer(request, *await _admit(request, tenant, body, validate_completion))


@router.post("/generate")
async def generate(request: Request, tenant: Tenant, body: Body) -> Response:
    """Prompt in, text out: `{"prompt": …}` → `{"text": …, "usage": …}`. Takes the parameters of /v1/completions."""
    answer = await _answer(request, *await _admit(request, tenant, body, validate_generate))
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
