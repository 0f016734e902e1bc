"""A line of the input → a row, and what it asks for; an answer → a line of the output."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from api.images import Images
from api.limits import Limits
from api.responses.asked import asked_of
from api.responses.items import NONE
from api.schemas import ValidRequest
from api.surface import BY_PATH
from shared.errors import RequestError, invalid_request
from shared.lanes import Lane

RESPONSES = "/v1/responses"
_UNSET = msgspec.UNSET
_FIELDS = ("custom_id", "method", "url", "body")
_MOST_ID_CHARS = 512
_MOST_MESSAGE_CHARS, _MOST_PARAM_CHARS = 300, 100
_PREFIX_CHARS = 512
_INVALID = "invalid_request"
_REQUIRED = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    RESPONSES: "input",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong with a batch's input, as OpenAI tells it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def shown(self) -> dict[str, Any]:
        """As an entry of a batch's `errors`."""
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}


class FaultError(Exception):
    """A line is no row that could be run."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        """What is longer than a fault may be is cut: a client's words may stand in it, and Redis keeps it for weeks."""
        self.code, self.message = code, _cut(message, _MOST_MESSAGE_CHARS)
        self.param = None if param is None else _cut(param, _MOST_PARAM_CHARS)
        super().__init__(self.message)

    def at(self, line: int) -> Fault:
        """The fault, in that line."""
        return Fault(self.code, self.message, self.param, line)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


class _Line(msgspec.Struct, gc=False):
    custom_id: Any = _UNSET
    method: Any = _UNSET
    url: Any = _UNSET
    body: msgspec.Raw | msgspec.UnsetType = _UNSET


class _Begins(msgspec.Struct, gc=False):
    """Of a body, what its prompt begins with."""

    messages: list[msgspec.Raw] = []
    tools: msgspec.Raw = msgspec.Raw(b"")
    instructions: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")


class _Streams(msgspec.Struct, gc=False):
    stream: Any = None


_line = msgspec.json.Decoder(_Line).decode
_begins = msgspec.json.Decoder(_Begins).decode
_streams = msgspec.json.Decoder(_Streams).decode


@dataclass(frozen=True, slots=True)
class Row:
    """A line, taken apart."""

    custom_id: str
    url: str
    body: bytes


def row_of(text: bytes) -> Row:
    """The row in a line. Raises FaultError."""
    try:
        line = _line(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FaultError("invalid_json_line", f"This line is not a valid JSON object: {error}.") from error
    for name in _FIELDS:
        if getattr(line, name) is _UNSET or getattr(line, name) is None:
            raise FaultError("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    custom_id, body = line.custom_id, line.body
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MOST_ID_CHARS:
        message = f"'custom_id' must be a string of 1 to {_MOST_ID_CHARS} characters."
        raise FaultError("invalid_type", message, "custom_id")
    if line.method != "POST":
        raise FaultError("invalid_method", "'method' must be 'POST'.", "method")
    if not isinstance(line.url, str):
        raise FaultError("invalid_url", "'url' must be a string.", "url")
    raw = bytes(body) if isinstance(body, msgspec.Raw) else b""
    if not raw.startswith(b"{"):
        raise FaultError("invalid_type", "'body' must be an object.", "body")
    return Row(custom_id, line.url, raw)


class Rules:
    """What the rows of one batch may ask for, by its endpoint. The validators are those of the HTTP routes."""

    def __init__(self, endpoint: str, limits: Limits, images: Images, most_bytes: int) -> None:
        self.endpoint = endpoint
        self._limits = limits
        self._images = images
        self._most_bytes = most_bytes

    def check(self, row: Row) -> ValidRequest:
        """What a row asks for, which names a model. Raises FaultError."""
        if row.url != self.endpoint:
            message = f"The row's url '{row.url[:60]}' differs from the batch's endpoint '{self.endpoint}'."
            raise FaultError("invalid_url", message, "url")
        if b'"stream"' in row.body and _streams(row.body).stream is True:
            raise FaultError("streaming_unsupported", "Rows of a batch cannot stream.", "body.stream")
        try:
            valid = self.valid(row.body)
        except RecursionError as error:
            raise FaultError(_INVALID, "The body is nested too deeply.", "body") from error
        except RequestError as error:
            code = _INVALID if error.code == "invalid_request_error" else error.code
            missing = f"`{_REQUIRED[self.endpoint]}`" in error.message
            param = error.param or (_REQUIRED[self.endpoint] if missing else None)
            raise FaultError(code, error.message, f"body.{param}" if param else "body") from error
        if not valid.model:
            raise FaultError(_INVALID, "`model` is required.", "body.model")
        return valid

    def valid(self, body: bytes) -> ValidRequest:
        """What a body asks for, in the batch lane. Raises RequestError (400, 413)."""
        if self.endpoint == RESPONSES:
            asked = asked_of(body)
            for name, given in (("background", asked.background), ("previous_response_id", asked.previous)):
                if given:
                    raise invalid_request(f"`{name}` has no place in a row of a batch.", param=name)
            if asked.fields.get("store"):
                raise invalid_request("`store` has no place in a row of a batch: leave it out.", param="store")
            valid = asked.valid(NONE, Lane.BATCH, self._most_bytes, self._limits)
        else:
            valid = BY_PATH[self.endpoint].validate(body, Lane.BATCH, self._limits)
        if valid.pictures is not None:
            self._images.check(valid.pictures)
        return replace(valid, user="") if valid.user else valid  # it is the batch's owner who shares


def prefix_of(body: bytes) -> int:
    """A hash of what the prompt in a body begins with; 0 where nothing is known that others may share."""
    try:
        begins = _begins(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0
    first = bytes(begins.messages[0]) if len(begins.messages) > 1 else b""
    shared = (first, bytes(begins.tools), bytes(begins.instructions), bytes(begins.prompt)[:_PREFIX_CHARS])
    return digest_of(b"\0".join(shared)) if any(shared) else 0


def digest_of(data: bytes) -> int:
    """64 bits of a hash: among 50 000 rows two are the same with a probability of one in ten thousand million."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def line_out(custom_id: str, rid: str, status: int, body: bytes, error: tuple[str, str] | None) -> bytes:
    """A line of the output or the error file. `body`: JSON. `error`: code and message of a row that failed."""
    if b"\n" in body:
        body = msgspec.json.encode(msgspec.json.decode(body))
    fault = b"null" if error is None else msgspec.json.encode({"code": error[0], "message": error[1]})
    name, own = msgspec.json.encode(custom_id), rid.removeprefix("req_").encode()
    return (
        b'{"id":"batch_req_%b","custom_id":%b,"response":{"status_code":%d,"request_id":"req_%b","body":%b},"error":%b}\n'
        % (own, name, status, own, body, fault)
    )


def line_without(custom_id: str, rid: str, code: str, message: str) -> bytes:
    """A line of the error file for a row that got no answer."""
    fault = {"id": f"batch_req_{rid.removeprefix('req_')}", "custom_id": custom_id, "response": None}
    return msgspec.json.encode({**fault, "error": {"code": code, "message": message}}) + b"\n"
