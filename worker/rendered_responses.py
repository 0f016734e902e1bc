"""What a stream of Responses events says, however it is cut into events. See `rendered.py`.

Left out are numbers, times and ids: the engine that goes on makes other ones, and replicas put those right. Every event
says something, if only that it was there, so that none is taken for a part of another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PREFIX = b"event: response."
_SAID = ("type", "role", "name", "arguments", "text", "input", "status")

Part = tuple[tuple[object, ...], str | list[Any]]


def parts_of_event(event: dict[str, Any]) -> Iterator[Part]:
    """What one event adds. Raises AttributeError, KeyError or TypeError when it is of another shape."""
    kind: str = event["type"]
    place = (kind, event.get("output_index"), event.get("content_index"))
    if kind.endswith(".delta"):
        yield place, event["delta"]
        yield (*place, "logprobs"), [entry["token"] for entry in event.get("logprobs") or ()]
        return
    yield place, [_said(event)]


def _said(event: dict[str, Any]) -> dict[str, Any]:
    """What an event says that is the same in every rendering."""
    said = {name: event[name] for name in _SAID if name in event}
    for name in ("item", "part", "response"):
        inner = event.get(name)
        if isinstance(inner, dict):
            said[name] = {key: inner[key] for key in _SAID if key in inner and not isinstance(inner[key], dict)}
    return said
