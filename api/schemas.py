"""A received body → a ValidRequest.

The replica checks only what needs no model: that the body is a JSON object of the right outline, that the lane exists,
that limits hold. Everything that the engine can know better comes back from it as the first frame, with its status.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from api.prompts import Prompt, of_chat, of_completion
from shared.errors import RequestError, invalid_request
from shared.lanes import Lane, asked_lane

DEFAULT_OUTPUT_TOKENS = 256
_MOST_WIDTH = 1024
_DELIVERY = ("stream", "stream_options")
"""Fields that say how the answer comes, and nothing about what it is."""
_json = msgspec.json.Decoder()
_canonical = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A request that may be admitted.

    Attributes:
        endpoint: the path that the client called.
        path: the engine's path.
        body: the HTTP body, as received.
        model: the served name asked for; None lets the server choose.
        stream: whether the client wants Server-Sent Events.
        lane: its priority class.
        lane_asked: whether the client has asked for that one, or left it to us.
        prompt: what the model will read.
        output_limit: most tokens that the client wants of each sequence; 0: as many as there will be.
        width: sequences that the engine will run for it at once.
        user: the caller's own `user` field, if sent.
        usage: whether a stream shall end with the usage.
        content: SHA-256 of what is asked for; how the answer is delivered does not count.
    """

    endpoint: str
    path: str
    body: bytes
    model: str | None
    stream: bool
    lane: Lane
    lane_asked: bool
    prompt: Prompt
    output_limit: int
    width: int
    user: str
    usage: bool
    content: bytes

    def fingerprint(self, tenant: str) -> str:
        """SHA-256, hex, of what makes this request this request."""
        return hashlib.sha256(b"\0".join((tenant.encode(), self.endpoint.encode(), self.content))).hexdigest()


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises RequestError (400)."""
    try:
        value = _json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid_request(f"The request body is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise nested_too_deeply() from error
    if not isinstance(value, dict):
        raise invalid_request("The request body must be a JSON object.")
    return value


def nested_too_deeply() -> RequestError:
    """400: reading or writing it would need more levels than there are."""
    return invalid_request("The request body is nested too deeply.")


def validate_chat(body: bytes, lane_header: str | None) -> ValidRequest:
    """A body of POST /v1/chat/completions. Raises RequestError (400)."""
    fields = parse_object(body)
    messages = fields.get("messages")
    if messages is None:
        hint = " This looks like a Responses request." if "input" in fields else ""
        raise invalid_request(f"`messages` is required.{hint}", param="messages")
    if not isinstance(messages, list) or not messages:
        raise invalid_request("`messages` must be a list with at least one message.", param="messages")
    return _valid("/v1/chat/completions", body, fields, lane_header, of_chat(fields))


def validate_completion(body: bytes, lane_header: str | None) -> ValidRequest:
    """A body of POST /v1/completions. Raises RequestError (400)."""
    fields = parse_object(body)
    prompt = fields.get("prompt")
    if prompt is None and fields.get("prompt_embeds") is None:
        raise invalid_request("`prompt` is required.", param="prompt")
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    prompts = len(prompt) if several and prompt else 1
    return _valid("/v1/completions", body, fields, lane_header, of_completion(fields), prompts=prompts)


def validate_generate(body: bytes, lane_header: str | None) -> ValidRequest:
    """A body of POST /generate: prompt in, text out. Runs as a completion. Raises RequestError (400)."""
    fields = parse_object(body)
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise invalid_request("`prompt` must be a text that is not empty.", param="prompt")
    if fields.get("stream"):
        raise invalid_request("/generate answers in one piece. Use /v1/completions to stream.", param="stream")
    if "max_new_tokens" in fields:
        fields["max_tokens"] = fields.pop("max_new_tokens")
    fields.setdefault("max_tokens", DEFAULT_OUTPUT_TOKENS)
    body = msgspec.json.encode(fields)
    return _valid("/v1/completions", body, fields, lane_header, of_completion(fields), endpoint="/generate")


def _valid(
    path: str,
    body: bytes,
    fields: dict[str, Any],
    lane_header: str | None,
    prompt: Prompt,
    *,
    prompts: int = 1,
    endpoint: str = "",
) -> ValidRequest:
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise invalid_request("`model` must be a string.", param="model")
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise invalid_request("`stream` must be true or false.", param="stream")
    output = fields.get("max_completion_tokens") or fields.get("max_tokens")
    n = fields.get("n")
    width = prompts * (n if isinstance(n, int) and n > 0 else 1)
    if width > _MOST_WIDTH:
        raise invalid_request(
            f"`n` times prompts is {width}; at most {_MOST_WIDTH} are allowed in one request.", param="n"
        )
    lane = asked_lane(lane_header, fields.get("service_tier"))
    user = fields.get("user")
    options = fields.get("stream_options")
    return ValidRequest(
        endpoint=endpoint or path,
        path=path,
        body=body,
        model=model or None,
        stream=bool(stream),
        lane=lane or Lane.STANDARD,
        lane_asked=lane is not None,
        prompt=prompt,
        output_limit=output if isinstance(output, int) and output > 0 else 0,
        width=width,
        user=user if isinstance(user, str) else "",
        usage=isinstance(options, dict) and bool(options.get("include_usage")),
        content=_content(fields),
    )


def _content(fields: dict[str, Any]) -> bytes:
    asked = {name: value for name, value in fields.items() if name not in _DELIVERY}
    return hashlib.sha256(_canonical.encode(asked)).digest()
