"""The object of a response, in OpenAI's shape: as it was asked for, as it runs, as it ended.

What the engine says of itself (sampling, tools, usage, output) is taken over. What it cannot know, since the replica
has kept it to itself, is put right: id, time, metadata, `store`, `background`, the previous response, the tier.
"""

from __future__ import annotations

from typing import Any

from api.responses.asked import Asked
from api.responses.ids import created_at, response_id
from shared.errors import RequestError
from shared.lanes import SERVICE_TIER, Lane

Object = dict[str, Any]

_AS_ASKED = ("instructions", "max_output_tokens", "max_tool_calls", "prompt_cache_key", "safety_identifier", "user")
_FACTS = (
    *("id", "object", "created_at", "background", "store", "previous_response_id", "metadata", "service_tier"),
    *_AS_ASKED,
)
"""What the replica knows better than the engine."""
_RATE_LIMIT, _SERVER_FAULT = 429, 500


def base_of(asked: Asked, rid: str, model: str, lane: str) -> Object:
    """The object of a response of which nothing is known but what was asked for."""
    fields = asked.fields

    def given(name: str, otherwise: Any) -> Any:
        value = fields.get(name)
        return otherwise if value is None else value

    return {
        "id": response_id(rid),
        "object": "response",
        "created_at": created_at(rid),
        "status": "queued" if asked.background else "in_progress",
        "background": asked.background,
        "error": None,
        "incomplete_details": None,
        **{name: fields.get(name) for name in _AS_ASKED},
        "metadata": given("metadata", {}),
        "model": model,
        "output": [],
        "parallel_tool_calls": given("parallel_tool_calls", True),
        "previous_response_id": asked.previous or None,
        "reasoning": given("reasoning", {"effort": None, "summary": None}),
        "service_tier": SERVICE_TIER[Lane(lane)] if lane in SERVICE_TIER else "default",
        "store": asked.store,
        "temperature": given("temperature", 1.0),
        "text": given("text", {"format": {"type": "text"}}),
        "tool_choice": given("tool_choice", "auto"),
        "tools": given("tools", []),
        "top_logprobs": given("top_logprobs", 0),
        "top_p": given("top_p", 1.0),
        "truncation": given("truncation", "disabled"),
        "usage": None,
    }


def put_right(engine: Object, base: Object) -> Object:
    """The engine's object with what the replica knows better."""
    said = {name: value for name, value in engine.items() if value is not None}
    return {**base, **said, **{name: base[name] for name in _FACTS}}


def failed(base: Object, error: RequestError, output: list[Any]) -> Object:
    """The object of a response that ended without an answer."""
    return {
        **base,
        "status": "failed",
        "error": {"code": _code(error), "message": f"{error.message} [{error.code}]"},
        "output": output,
    }


def cancelled(base: Object, output: list[Any]) -> Object:
    """The object of a response that was cancelled."""
    return {**base, "status": "cancelled", "output": output}


def _code(error: RequestError) -> str:
    """One of OpenAI's few codes for what is wrong with a response."""
    if error.status == _RATE_LIMIT:
        return "rate_limit_exceeded"
    return "server_error" if error.status >= _SERVER_FAULT else "invalid_prompt"
