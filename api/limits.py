"""How much one request may ask for. What is over a limit is refused at the door, before it costs anybody anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from shared.errors import RequestError, invalid_request, limit_exceeded

MOST_SEQUENCES = 1024
"""That one request may make the engine run."""
MOST_METADATA, METADATA_KEY_CHARS, METADATA_VALUE_CHARS = 16, 64, 512
"""Pairs in `metadata`, and how long their keys and values may be. OpenAI's, as its objects store them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings `max_…` of a replica.

    Attributes:
        depth: levels of objects and lists in a body.
        messages: of a conversation.
        inputs: texts or pairs of an embedding, a score, a classification.
        n: choices.
        tools: that a model may call.
        stops: stop strings.
        schema_bytes: of each JSON schema, regular expression, grammar or list of choices that an answer must follow.
    """

    depth: int = 100
    messages: int = 2048
    inputs: int = 2048
    n: int = 128
    tools: int = 128
    stops: int = 4
    schema_bytes: int = 131_072


DEFAULTS = Limits()
_NO_BRACKETS = bytes(set(range(256)) - set(b"{["))
"""Counting by taking everything else away is three times as fast as `bytes.count`."""


def check_body(body: bytes, fields: dict[str, Any], limits: Limits) -> None:
    """Raises RequestError (400) for a body that is nested too deeply. Most have few brackets at all."""
    if len(body.translate(None, _NO_BRACKETS)) > limits.depth and _deeper(fields, limits.depth):
        raise invalid_request(f"The request body is nested too deeply: at most {limits.depth} levels are allowed.")


def check_list(fields: dict[str, Any], name: str, most: int) -> None:
    """Raises RequestError (400) for a list of more than `most` items."""
    given = fields.get(name)
    if isinstance(given, list) and len(given) > most:
        raise limit_exceeded(f"`{name}` has {len(given)} items", most, param=name)


def check_generation(fields: dict[str, Any], limits: Limits) -> None:
    """Raises RequestError (400) for what a generation asks too much of."""
    n = fields.get("n")
    if isinstance(n, int) and n > limits.n:
        raise limit_exceeded(f"`n` is {n}", limits.n, param="n")
    check_list(fields, "messages", limits.messages)
    if _LIMITED.isdisjoint(fields):
        return
    check_list(fields, "tools", limits.tools)
    check_list(fields, "stop", limits.stops)
    check_list(fields, "stop_sequences", limits.stops)
    wanted = fields.get("structured_outputs")
    if wanted is not None and not isinstance(wanted, dict):  # vLLM's validator breaks on it
        raise invalid_request("`structured_outputs` must be an object.", param="structured_outputs")
    for name, schema in _schemas(fields):
        size = len(msgspec.json.encode(schema))
        if size > limits.schema_bytes:
            raise limit_exceeded(f"A JSON schema in `{name}` has {size} bytes", limits.schema_bytes, param=name)


def too_many_sequences(sequences: int) -> RequestError:
    """400: choices times prompts."""
    return limit_exceeded(f"`n` times prompts is {sequences}", MOST_SEQUENCES, param="n")


def _schemas(fields: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Everything that an engine would compile, with the field in which it stands."""
    for name, *path in _PLACES:
        if (found := _at(fields.get(name), path)) is not None:
            yield name, found
    tools = fields.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        ways = (("function", "parameters"), ("input_schema",), ("parameters",))
        if (found := next(filter(None, (_at(tool, way) for way in ways)), None)) is not None:
            yield "tools", found


_PLACES = (
    ("response_format", "json_schema", "schema"),
    *(("structured_outputs", name) for name in ("json", "regex", "choice", "grammar", "structural_tag")),
    ("guided_json",),
    ("output_config", "format", "schema"),
    ("text", "format", "schema"),
)
_LIMITED = frozenset({"tools", "stop", "stop_sequences", *(place[0] for place in _PLACES)})


def _at(value: object, path: tuple[str, ...] | list[str]) -> object:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _deeper(value: object, most: int) -> bool:
    """Whether something lies deeper than `most` levels. Level by level, so no depth is too much for it."""
    level: list[Any] = [value]
    for _ in range(most):
        below: list[Any] = []
        for one in level:
            for part in one.values() if type(one) is dict else one:
                kind = type(part)  # of JSON there are no other classes
                if kind is dict or kind is list:
                    below.append(part)
        if not below:
            return False
        level = below
    return True
