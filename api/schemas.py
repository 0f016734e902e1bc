"""A received body → a ValidRequest.

The replica checks only what needs no model: that the body is a JSON object of the right outline, that the lane exists,
that limits hold. It takes out what is not for clients to set. Everything that the engine can know better comes back
from it as the first frame, with its status.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from api import limits as limit
from api.limits import DEFAULTS, Limits
from api.media import Pictures, pictures_of
from api.prompts import Prompt, of_chat, of_completion
from shared.errors import RequestError, context_length_exceeded, invalid_request, limit_exceeded
from shared.lanes import Lane, asked_lane

DEFAULT_OUTPUT_TOKENS = 256
RESERVED = frozenset({"kv_transfer_params", "ec_transfer_params", "priority", "request_id", "session_id", "cache_salt"})
"""Fields of vLLM with which one client could reach into another's requests, or past its lane. They are taken out; the
engine's id and priority come from the replica and the lane, the salt of the prefix cache from the tenant."""
_SURE = 2
"""A prompt of so many times the model's context is too long, however a template may cut it."""
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
        timing: whether a stream shall end with how long what took.
        content: SHA-256 of what is asked for; how the answer is delivered does not count.
        salt: the client's own `cache_salt`, which is not in `body`; None: the engine's route knows no salt.
        any_length: whether the prompt may be longer than the model's context: the engine cuts it, or only looks at it.
        pictures: the images that `body` names by URL. It goes on the queue with the images themselves in it.
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
    salt: str | None = None
    any_length: bool = False
    timing: bool = False
    pictures: Pictures | None = None

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


def validate_chat(body: bytes, lane_header: str | None, limits: Limits = DEFAULTS) -> ValidRequest:
    """A body of POST /v1/chat/completions. Raises RequestError (400)."""
    fields = parse_object(body)
    check_messages(fields)
    limit.check_generation(fields, limits)
    return Draft("/v1/chat/completions", body, fields, lane_header, limits).valid(of_chat(fields))


def validate_completion(body: bytes, lane_header: str | None, limits: Limits = DEFAULTS) -> ValidRequest:
    """A body of POST /v1/completions. Raises RequestError (400)."""
    fields = parse_object(body)
    prompt = fields.get("prompt")
    if prompt is None and fields.get("prompt_embeds") is None:
        raise invalid_request("`prompt` is required.", param="prompt")
    limit.check_generation(fields, limits)
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    prompts = len(prompt) if several and prompt else 1
    return Draft("/v1/completions", body, fields, lane_header, limits, prompts).valid(of_completion(fields))


def validate_generate(body: bytes, lane_header: str | None, limits: Limits = DEFAULTS) -> ValidRequest:
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
    limit.check_generation(fields, limits)
    body = msgspec.json.encode(fields)
    draft = Draft("/v1/completions", body, fields, lane_header, limits, endpoint="/generate")
    return draft.valid(of_completion(fields))


def check_messages(fields: dict[str, Any]) -> None:
    """Raises RequestError (400) unless there is a conversation."""
    messages = fields.get("messages")
    if messages is None:
        hint = " This looks like a Responses request." if "input" in fields else ""
        raise invalid_request(f"`messages` is required.{hint}", param="messages")
    if not isinstance(messages, list) or not messages:
        raise invalid_request("`messages` must be a list with at least one message.", param="messages")


@dataclass(slots=True)
class Draft:
    """A body that has been read, on its way to a ValidRequest.

    Attributes:
        path: the engine's path.
        prompts: that the request holds; the engine runs each of them on its own.
        endpoint: the path that the client called, where it is another one.
        streams: whether the route can answer as a stream.
        salted: whether it knows a `cache_salt`.
        any_length: see ValidRequest.
        most: sequences that the request may make the engine run.
        delivery: the fields that say how the answer comes.
    """

    path: str
    body: bytes
    fields: dict[str, Any]
    lane_header: str | None
    limits: Limits = DEFAULTS
    prompts: int = 1
    endpoint: str = ""
    streams: bool = True
    salted: bool = True
    any_length: bool = False
    most: int = limit.MOST_SEQUENCES
    delivery: tuple[str, ...] = _DELIVERY

    def valid(self, prompt: Prompt, *, output_limit: int | None = None, user: object = None) -> ValidRequest:
        """The request. `output_limit` and `user` where the fields do not say them. Raises RequestError (400)."""
        limit.check_body(self.body, self.fields, self.limits)
        salt = self._take_out()
        pictures = pictures_of(self.fields) if prompt.parts else None
        fields = self.fields
        model, stream = _checked(fields, streams=self.streams)
        n = fields.get("n")
        width = self.prompts * (n if isinstance(n, int) and n > 0 else 1)
        if width > self.most:
            raise limit.too_many_sequences(width)
        lane = asked_lane(self.lane_header, fields.get("service_tier"))
        user = user or fields.get("user")
        options = fields.get("stream_options")
        timing = isinstance(options, dict) and _timing(options)
        return ValidRequest(
            endpoint=self.endpoint or self.path,
            path=self.path,
            body=self.body,
            model=model,
            stream=stream,
            lane=lane or Lane.STANDARD,
            lane_asked=lane is not None,
            prompt=prompt,
            output_limit=_output_limit(fields) if output_limit is None else output_limit,
            width=width,
            user=user if isinstance(user, str) else "",
            usage=isinstance(options, dict) and bool(options.get("include_usage")),
            timing=stream and timing,
            content=_content(fields, self.delivery),
            salt=salt if self.salted else None,
            any_length=self.any_length or fields.get("truncate_prompt_tokens") is not None,
            pictures=pictures,
        )

    def _take_out(self) -> str:
        """Takes the reserved fields out of the body. The client's salt, if it has sent one."""
        if RESERVED.isdisjoint(self.fields):
            return ""
        salt = self.fields.get("cache_salt")
        if salt is not None and not isinstance(salt, str):
            raise invalid_request("`cache_salt` must be a string.", param="cache_salt")
        self.fields = {name: value for name, value in self.fields.items() if name not in RESERVED}
        self.body = msgspec.json.encode(self.fields)
        return salt or ""


def check_length(valid: ValidRequest, tokens: int, most: int, context: int, *, exact: bool) -> None:
    """Raises RequestError (400) for a prompt of so many tokens that whoever counts them must find too long.

    `most`: the replica's own limit, 0 for none. `context`: what the model can read, 0 for unknown. `exact`: the model's
    tokenizer has counted. In between it is for the engine to say, which knows what its template makes of the prompt.
    """
    if most and tokens > most:
        param = "messages" if valid.prompt.messages else "prompt"
        raise limit_exceeded(f"The prompt has about {tokens} tokens", most, param=param)
    one = valid.prompt.messages or valid.width == 1
    if exact and one and context and tokens > _SURE * context and not valid.any_length and not valid.prompt.media:
        raise context_length_exceeded(tokens, context)


def _checked(fields: dict[str, Any], *, streams: bool) -> tuple[str | None, bool]:
    """The model that is asked for, and whether a stream is."""
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise invalid_request("`model` must be a string.", param="model")
    stream = fields.get("stream") if streams else None
    if stream is not None and not isinstance(stream, bool):
        raise invalid_request("`stream` must be true or false.", param="stream")
    return model or None, bool(stream)


def _timing(options: dict[str, Any]) -> bool:
    """`include_timing` of `stream_options`: ours, so no engine checks it."""
    asked = options.get("include_timing")
    if asked is not None and not isinstance(asked, bool):
        raise invalid_request("`include_timing` must be true or false.", param="stream_options")
    return bool(asked)


def _output_limit(fields: dict[str, Any]) -> int:
    output = fields.get("max_completion_tokens") or fields.get("max_tokens")
    return output if isinstance(output, int) and output > 0 else 0


def _content(fields: dict[str, Any], delivery: tuple[str, ...]) -> bytes:
    asked = {name: value for name, value in fields.items() if name not in delivery}
    return hashlib.sha256(_canonical.encode(asked)).digest()
