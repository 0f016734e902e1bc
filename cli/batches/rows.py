"""What users have → rows of a batch: prompts, one per line, objects with a prompt or messages, and whole rows.

Every line is looked at before anything is sent. Lines keep their numbers: what the server says of line 17 is about
line 17 of the user's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import msgspec

from shared.batches import ENDPOINTS, MOST_BYTES, MOST_ROWS

CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES = ENDPOINTS
NAMES = {"chat": CHAT, "completions": COMPLETIONS, "embeddings": EMBEDDINGS, "responses": RESPONSES}
"""How an endpoint may be called for short."""
LONGEST_LINE_BYTES = 64 << 20
MOST_FAULTS = 1_000
_SOURCES = ("prompt", "messages", "input")
_TAKES = {CHAT: ("prompt", "messages"), COMPLETIONS: ("prompt",), EMBEDDINGS: ("input", "prompt"), RESPONSES: _SOURCES}
"""From which of these a row is made."""
_INTO = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input", RESPONSES: "input"}
_LIMIT_NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_BOM = b"\xef\xbb\xbf"
_SHOWN_CHARS = 60


class LineError(Exception):
    """A line cannot become a row."""


@dataclass(frozen=True, slots=True)
class LineFault:
    """What is wrong with a line, counted from 1."""

    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Wishes:
    """What holds for every row whose line says nothing else.

    Attributes:
        endpoint: empty: what the first line asks for.
        body: parameters, as `temperature`.
        plain: every line is a prompt as it stands, also one that looks like JSON.
    """

    endpoint: str = ""
    system: str = ""
    max_tokens: int | None = None
    body: dict[str, Any] = field(default_factory=dict)
    plain: bool = False


@dataclass(slots=True)
class Made:
    """What was made of an input. `faults`: the first 1 000; with any of them, nothing may be sent."""

    rows: int = 0
    size_bytes: int = 0
    faults: list[LineFault] = field(default_factory=list)
    endpoint: str = ""


def make_rows(source: IO[bytes], target: IO[bytes], wishes: Wishes, model: Callable[[], str]) -> Made:
    """Reads lines, writes rows; one line is in memory. `model` is asked once, when a line names none.

    Raises OSError, and what `model` raises.
    """
    maker, made, ids = _Maker(wishes, model), Made(), set[str]()
    for number, text in _lines(source):
        line = b""
        try:
            if text.strip():
                custom_id, line = maker.row(number, text)
                _note(custom_id, ids)
                made.rows += 1
        except LineError as error:
            made.faults.append(LineFault(number, str(error)))
            if len(made.faults) >= MOST_FAULTS:
                break
        made.size_bytes += target.write(line + b"\n")
    made.endpoint = maker.endpoint
    if not made.faults:
        made.faults = _too_much(made)
    return made


def _note(custom_id: str, ids: set[str]) -> None:
    """Raises LineError for one that was there before."""
    if custom_id in ids:
        raise LineError(f"its custom_id {_short(custom_id)} was used in a line before")
    ids.add(custom_id)


def _too_much(made: Made) -> list[LineFault]:
    if not made.rows:
        return [LineFault(1, "there is no row: the input is empty")]
    if made.rows > MOST_ROWS:
        message = f"a batch has at most {MOST_ROWS} rows, and there are {made.rows}: `split -l {MOST_ROWS}` parts them"
        return [LineFault(MOST_ROWS + 1, message)]
    if made.size_bytes > MOST_BYTES:
        return [LineFault(made.rows, f"a batch has at most {MOST_BYTES} bytes, and these rows have {made.size_bytes}")]
    return []


def _lines(source: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines without their ends. One that is too long comes as far as it was read, and is the last."""
    number = 0
    while text := source.readline(LONGEST_LINE_BYTES + 1):
        number += 1
        yield number, (text.removeprefix(_BOM) if number == 1 else text).rstrip(b"\r\n")
        if len(text) > LONGEST_LINE_BYTES:
            return


class _Maker:
    """Makes the rows of one batch."""

    def __init__(self, wishes: Wishes, model: Callable[[], str]) -> None:
        self._wishes = wishes
        self._ask_model = model
        self._model = ""
        self.endpoint = wishes.endpoint

    def row(self, number: int, text: bytes) -> tuple[str, bytes]:
        """A row's `custom_id`, and its line. Raises LineError."""
        if len(text) > LONGEST_LINE_BYTES:
            raise LineError(f"it is longer than {LONGEST_LINE_BYTES} bytes")
        value = {"prompt": _text(text)} if self._wishes.plain else _read(text)
        self.endpoint = self.endpoint or _endpoint_of(value)
        before = msgspec.json.encode(value)
        row = self._whole(number, value) if "body" in value else self._made(number, value)
        body = row["body"]
        if not body.get("model"):
            self._model = self._model or self._ask_model()
            body["model"] = self._model
        custom_id: str = row["custom_id"]
        # a row that was complete goes out as it came, to the byte
        same = "body" in value and msgspec.json.encode(row) == before
        return custom_id, text if same else msgspec.json.encode(row)

    def _whole(self, number: int, value: dict[str, Any]) -> dict[str, Any]:
        """A row as OpenAI and `vllm run-batch` have it; what is missing beside its body is filled in."""
        body = value["body"]
        if not isinstance(body, dict):
            raise LineError("`body` must be an object")
        url = value.get("url") or self.endpoint
        if url != self.endpoint:
            raise LineError(
                f"its url is {_short(url)}, and this batch asks for {self.endpoint}: one endpoint per batch"
            )
        given = {**value, "body": self._filled(dict(body))}
        return {**given, "custom_id": _custom_id(value.get("custom_id"), number), "method": "POST", "url": url}

    def _made(self, number: int, value: dict[str, Any]) -> dict[str, Any]:
        """A row of a prompt, messages or an input; other fields are parameters."""
        rest = dict(value)
        custom_id = rest.pop("custom_id", None)
        custom_id = _custom_id(rest.pop("id", None) if custom_id is None else custom_id, number)
        named = [name for name in _SOURCES if name in rest]
        if len(named) != 1:
            said = " and ".join(f"`{name}`" for name in named)
            raise LineError(f"it has {said}" if named else "it has no `prompt`, `messages`, `input` or `body`")
        if named[0] not in _TAKES[self.endpoint]:
            raise LineError(f"it has `{named[0]}`, of which no row for {self.endpoint} can be made")
        body = {_INTO[self.endpoint]: self._asked(named[0], rest.pop(named[0])), **rest}
        return {"custom_id": custom_id, "method": "POST", "url": self.endpoint, "body": self._filled(body)}

    def _asked(self, name: str, value: Any) -> Any:
        if name == "messages":
            if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
                raise LineError("`messages` must be a list of objects")
            return value
        if name == "prompt" and self.endpoint == CHAT:
            if not isinstance(value, str):
                raise LineError("`prompt` must be a text")
            return [{"role": "user", "content": value}]
        if not isinstance(value, (str, list)):
            raise LineError(f"`{name}` must be a text or a list")
        return value

    def _filled(self, body: dict[str, Any]) -> dict[str, Any]:
        """With what the user wishes for every row, as far as this one says nothing else."""
        wishes = self._wishes
        for name, value in wishes.body.items():
            body.setdefault(name, value)
        limited = self.endpoint == EMBEDDINGS or any(name in body for name in _LIMIT_NAMES)
        if wishes.max_tokens is not None and not limited:
            body["max_output_tokens" if self.endpoint == RESPONSES else "max_tokens"] = wishes.max_tokens
        system = body.pop("system", None) or wishes.system
        if system and self.endpoint not in {CHAT, RESPONSES}:
            raise LineError(f"a system prompt has no place in {self.endpoint}")
        if system and self.endpoint == RESPONSES:
            body.setdefault("instructions", system)
        elif system and isinstance(body.get("messages"), list) and not _has_system(body["messages"]):
            body["messages"] = [{"role": "system", "content": system}, *body["messages"]]
        return body


def _has_system(messages: list[Any]) -> bool:
    return any(isinstance(one, dict) and one.get("role") in {"system", "developer"} for one in messages)


def _read(text: bytes) -> dict[str, Any]:
    """The object in a line; a line that is none is a prompt. Raises LineError."""
    begins = text.lstrip()[:1]
    if begins == b"{":
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"it begins with {{ and is no JSON: {error}. Prompts that look like this need --plain"
            raise LineError(message) from error
        return dict(value)
    if begins == b'"':
        try:
            quoted = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            quoted = _text(text)  # somebody begins with a quotation
        return {"prompt": quoted}
    return {"prompt": _text(text)}


def _text(text: bytes) -> str:
    try:
        return text.decode().strip()
    except UnicodeDecodeError as error:
        raise LineError(f"it is not UTF-8 at byte {error.start + 1}") from error


def _endpoint_of(value: dict[str, Any]) -> str:
    """What the first line asks for. Raises LineError."""
    if "body" in value:
        url = value.get("url", CHAT)
        if url not in ENDPOINTS:
            raise LineError(f"its url {_short(url)} is none of {', '.join(ENDPOINTS)}")
        return str(url)
    if "input" in value:
        raise LineError("it has `input`: say --endpoint embeddings or --endpoint responses")
    return CHAT


def _custom_id(value: Any, number: int) -> str:
    if value is None:
        return f"row-{number}"
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise LineError("`custom_id` must be a text")
    return str(value)


def _short(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…")
