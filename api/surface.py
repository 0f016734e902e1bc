"""The routes that an engine answers, in one table: path → what is checked here, what it costs, whether it streams.

All of them take the same way: one queue, the same lanes, tenants, deadlines and limits. What a row says of a request's
fields is only its outline; everything else is for the engine to judge, in its own words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from api import limits as limit
from api.limits import DEFAULTS, Limits
from api.prompts import Prompt, of_chat, of_inputs, of_messages
from api.schemas import (
    Draft,
    ValidRequest,
    check_messages,
    parse_object,
    validate_chat,
    validate_completion,
    validate_generate,
)
from shared.errors import invalid_request
from shared.lanes import Lane

Validate = Callable[[bytes, str | None, Limits], ValidRequest]
"""A received body, the lane's header, the limits → a valid request. Raises RequestError (400)."""

_NO_OUTPUT = 1
"""Tokens that an answer without generated text is expected to have: 0 would mean that nobody knows."""


@dataclass(frozen=True, slots=True)
class Route:
    """One row.

    Attributes:
        path: what clients call, by POST.
        validate: from the body to what may be admitted; it says what the request costs.
        answers: what an engine must be able to do for it.
        streams: whether a body may ask for a stream.
        what: one sentence.
    """

    path: str
    validate: Validate
    answers: Literal["generate", "pool", "any"]
    streams: bool
    what: str


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Where the inputs of a pooling request stand: in one field of each alternative; all fields of one count."""

    alternatives: tuple[tuple[str, ...], ...]


_SINGLE = _Inputs((("input",), ("messages",)))
_PAIRS = _Inputs((("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")))
_RANKED = _Inputs((("query", "documents"),))
_POOLED = _Inputs((("input",), ("messages",), ("data",)))


def _validate_pooling(
    path: str, inputs: _Inputs, body: bytes, lane_header: str | None, limits: Limits = DEFAULTS
) -> ValidRequest:
    fields = parse_object(body)
    names = next((names for names in inputs.alternatives if all(fields.get(name) is not None for name in names)), None)
    if names is None:
        ways = " or ".join(" and ".join(f"`{name}`" for name in names) for names in inputs.alternatives)
        raise invalid_request(f"{ways} must be given.", param=inputs.alternatives[0][0])
    count = max(_count(fields[name]) for name in names) if names != ("messages",) else 1
    if count == 0:
        raise invalid_request(f"`{names[-1]}` must not be empty.", param=names[-1])
    for name in names:
        limit.check_list(fields, name, limits.inputs if not _is_ids(fields[name]) else len(fields[name]))
    conversation = names == ("messages",) and isinstance(fields["messages"], list)
    prompt = of_chat(fields) if conversation else of_inputs(*(fields[name] for name in names))
    if any(fields.get(name) is not None for other in inputs.alternatives for name in other if name not in names):
        prompt = replace(prompt, parts=True)  # which of several ways the engine takes is for it to say
    draft = Draft(
        path, body, fields, lane_header, limits, count, streams=False, any_length=True, most=max(count, limits.inputs)
    )
    return draft.valid(prompt, output_limit=_NO_OUTPUT)


def _count(given: object) -> int:
    return len(given) if isinstance(given, list) and not _is_ids(given) else 1


def _is_ids(given: object) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], int)


def _validate_tokenize(body: bytes, lane_header: str | None, limits: Limits = DEFAULTS) -> ValidRequest:
    fields = parse_object(body)
    if fields.get("prompt") is None and fields.get("messages") is None:
        raise invalid_request("`prompt` or `messages` is required.", param="prompt")
    if fields.get("messages") is not None:
        check_messages(fields)
        limit.check_list(fields, "messages", limits.messages)
    prompt = of_inputs(fields["prompt"]) if fields.get("messages") is None else of_chat(fields)
    return _looked_at("/tokenize", body, fields, lane_header, limits).valid(prompt, output_limit=_NO_OUTPUT)


def _validate_detokenize(body: bytes, lane_header: str | None, limits: Limits = DEFAULTS) -> ValidRequest:
    fields = parse_object(body)
    tokens = fields.get("tokens")
    if not isinstance(tokens, list):
        raise invalid_request("`tokens` must be a list of token ids.", param="tokens")
    draft = _looked_at("/detokenize", body, fields, lane_header, limits)
    return draft.valid(Prompt(ids=len(tokens)), output_limit=_NO_OUTPUT)


def _looked_at(path: str, body: bytes, fields: dict[str, Any], lane_header: str | None, limits: Limits) -> Draft:
    """A request of which the model itself reads nothing."""
    return Draft(path, body, fields, lane_header, limits, streams=False, salted=False, any_length=True)


def _validate_messages(body: bytes, lane_header: str | None, limits: Limits = DEFAULTS) -> ValidRequest:
    fields = parse_object(body)
    check_messages(fields)
    limit.check_generation(fields, limits)
    # a stream of Anthropic's events is not made into a whole message, nor the other way: which one is asked for counts
    draft = Draft("/v1/messages", body, fields, _anthropic_lane(fields, lane_header), limits, delivery=())
    return draft.valid(of_messages(fields), user=_anthropic_user(fields))


def _validate_count_tokens(body: bytes, lane_header: str | None, limits: Limits = DEFAULTS) -> ValidRequest:
    fields = parse_object(body)
    check_messages(fields)
    limit.check_generation(fields, limits)
    lane = _anthropic_lane(fields, lane_header)
    draft = _looked_at("/v1/messages/count_tokens", body, fields, lane, limits)
    return draft.valid(of_messages(fields), output_limit=_NO_OUTPUT, user=_anthropic_user(fields))


def _anthropic_lane(fields: dict[str, Any], lane_header: str | None) -> str | None:
    """Anthropic's tiers are `auto`, which is everybody's, and `standard_only`."""
    only = fields.get("service_tier") == "standard_only"
    return Lane.STANDARD if only and lane_header is None else lane_header


def _anthropic_user(fields: dict[str, Any]) -> object:
    metadata = fields.get("metadata")
    return metadata.get("user_id") if isinstance(metadata, dict) else None


def _pooling(path: str, engine_path: str, inputs: _Inputs, what: str) -> Route:
    return Route(path, partial(_validate_pooling, engine_path, inputs), "pool", streams=False, what=what)


_SCORE = "Scores pairs of texts: how well each one fits the other."
_RERANK = "Sorts documents by how well they fit a query."

ROUTES: tuple[Route, ...] = (
    Route("/v1/chat/completions", validate_chat, "generate", streams=True, what="Answers a conversation."),
    Route("/v1/completions", validate_completion, "generate", streams=True, what="Continues a prompt."),
    Route("/generate", validate_generate, "generate", streams=False, what="Prompt in, text out."),
    Route(
        "/v1/messages", _validate_messages, "generate", streams=True, what="Answers a conversation, as Anthropic's API."
    ),
    Route(
        "/v1/messages/count_tokens",
        _validate_count_tokens,
        "generate",
        streams=False,
        what="Counts the tokens of a conversation, as Anthropic's API.",
    ),
    _pooling("/v1/embeddings", "/v1/embeddings", _SINGLE, "A vector for each text."),
    _pooling("/v1/score", "/score", _PAIRS, _SCORE),
    _pooling("/score", "/score", _PAIRS, _SCORE),
    _pooling("/v1/rerank", "/rerank", _RANKED, _RERANK),
    _pooling("/v2/rerank", "/rerank", _RANKED, _RERANK),
    _pooling("/rerank", "/rerank", _RANKED, _RERANK),
    _pooling("/classify", "/classify", _SINGLE, "The class of each text, with probabilities."),
    _pooling("/pooling", "/pooling", _POOLED, "What the model's pooler gives for each text."),
    Route("/tokenize", _validate_tokenize, "any", streams=False, what="The tokens of a prompt or of a conversation."),
    Route("/detokenize", _validate_detokenize, "any", streams=False, what="The text of tokens."),
)

BY_PATH = {route.path: route for route in ROUTES}
