"""A body of POST /v1/responses → what it asks for, and what the engine is asked.

The engine always gets a synchronous stream that it need not store: `background`, `store`, `previous_response_id` and
the form in which the client wants the answer are the replica's business. So the log has the events, for every reader.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from api import limits as limit
from api.limits import DEFAULTS, METADATA_KEY_CHARS, METADATA_VALUE_CHARS, MOST_METADATA, Limits
from api.responses.items import NONE, Items, as_items, prompt_of
from api.schemas import Draft, ValidRequest, parse_object
from shared import http_errors
from shared.errors import invalid_request

PATH = "/v1/responses"
_DELIVERY = ("stream", "stream_options")
_OURS = frozenset(
    (*_DELIVERY, "background", "store", "previous_response_id", "metadata", "prompt_cache_key", "safety_identifier")
)
_canonical = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a response.

    Attributes:
        fields: the body as the client sent it.
        own: its input, as items.
        previous: id of the response that it goes on with; empty for none.
    """

    fields: dict[str, Any]
    own: list[Any]
    stream: bool
    background: bool
    store: bool
    previous: str

    def valid(
        self, before: Items, lane_header: str | None, limit_bytes: int, limits: Limits = DEFAULTS
    ) -> ValidRequest:
        """The request that goes on the queue, behind the items of the conversation `before`.

        Raises RequestError: 400 for a lane that there is not and for what is over a limit, 413 when the conversation is
        over the limit.
        """
        fields = self.fields
        asked = {name: value for name, value in fields.items() if name not in _OURS}
        items = [*before.items, *self.own]
        if before is not NONE:
            asked["input"] = items
        limit.check_list({"input": items}, "input", limits.messages)
        limit.check_generation(fields, limits)
        asked |= {"stream": True, "store": False}
        body = msgspec.json.encode(asked)
        if len(body) > limit_bytes:
            raise http_errors.request_too_large(limit_bytes)
        output = fields.get("max_output_tokens")
        cut = fields.get("truncation") == "auto"
        draft = Draft(PATH, body, asked, lane_header, limits, any_length=cut)
        valid = draft.valid(
            prompt_of(items, fields.get("instructions"), fields.get("tools")),
            output_limit=output if isinstance(output, int) and output > 0 else 0,
        )
        content = {name: value for name, value in fields.items() if name not in _DELIVERY}
        return replace(valid, usage=True, content=hashlib.sha256(_canonical.encode(content)).digest())


def asked_of(body: bytes) -> Asked:
    """What a body of POST /v1/responses asks for. Raises RequestError (400)."""
    fields = parse_object(body)
    sent = fields.get("input")
    if sent is None:
        hint = " This looks like a request for chat completions." if "messages" in fields else ""
        raise invalid_request(f"`input` is required.{hint}", param="input")
    if not isinstance(sent, str | list) or not sent:
        raise invalid_request("`input` must be a text or a list of items that is not empty.", param="input")
    _check_texts(fields)
    _check_metadata(fields.get("metadata"))
    if fields.get("conversation") is not None:
        raise invalid_request("`conversation` is not supported. Use `previous_response_id`.", param="conversation")
    store = _flag(fields, "store", default=True)
    background = _flag(fields, "background")
    if background and not store:
        raise invalid_request("`background` needs `store`: there would be nothing to retrieve.", param="background")
    return Asked(
        fields=fields,
        own=as_items(sent),
        stream=_flag(fields, "stream"),
        background=background,
        store=store,
        previous=fields.get("previous_response_id") or "",
    )


def _flag(fields: dict[str, Any], name: str, *, default: bool = False) -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid_request(f"`{name}` must be true or false.", param=name)
    return value


def _check_texts(fields: dict[str, Any]) -> None:
    for name in ("model", "previous_response_id", "instructions"):
        if not isinstance(fields.get(name), str | None):
            raise invalid_request(f"`{name}` must be a string.", param=name)


def _check_metadata(metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or len(metadata) > MOST_METADATA:
        raise invalid_request(f"`metadata` must be an object of at most {MOST_METADATA} pairs.", param="metadata")
    for key, value in metadata.items():
        if not isinstance(value, str) or len(value) > METADATA_VALUE_CHARS or len(key) > METADATA_KEY_CHARS:
            lengths = f"keys have at most {METADATA_KEY_CHARS} characters, values are strings of at most"
            message = f"`metadata`: {lengths} {METADATA_VALUE_CHARS}."
            raise invalid_request(message, param=f"metadata.{key[:METADATA_KEY_CHARS]}")
