"""The engine's events → the client's: numbered from 0 without a gap, with one id for each thing, ending as OpenAI's do.

Whoever reads a response reads its log from the beginning, so numbers and ids are the same for every reader on every
replica. That also hides where another worker went on: its engine counts and names anew, and is translated into what
was said first.

    response.created      with what the replica knows; in background: queued, and made here, before the engine has begun
    response.queued       in background only, made here
    response.completed    or `response.incomplete`, which vLLM does not tell apart
    error, response.failed   made here, from how the request ended
"""

from __future__ import annotations

from typing import Any

import msgspec

from api import problems
from api.assembly import events_of
from api.responses import objects
from api.responses.objects import Object
from shared import errors
from shared.errors import RequestError
from shared.wire import Meta

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.encode
_ENDS = {"incomplete": "response.incomplete", "failed": "response.failed"}
_ENDED = ("response.completed", "response.incomplete", "response.failed")
_OK = 200


class Events:
    """Translates one response's events.

    Attributes:
        base: the object as it was asked for.
        refusal: what the engine has said instead of an end, if so.
        final: the object as the engine has ended it; None until then.
        begun: whether there is anything of the answer.
        ended: whether a terminal event has been made.
    """

    def __init__(self, base: Object, *, after: int = -1) -> None:
        """`after`: the number of the last event that the reader has; it gets the later ones."""
        self.base = base
        self.final: Object | None = None
        self.refusal: RequestError | None = None
        self.begun = False
        self.ended = False
        self._after = after
        self._number = 0
        self._opened = False
        self._things: dict[int, dict[str, str]] = {}  # by output index: type and ids, as they were said first
        self._renamed: dict[str, str] = {}
        self._done: dict[int, Any] = {}

    @property
    def output(self) -> list[Any]:
        """The items that are complete."""
        return [self._done[index] for index in sorted(self._done)]

    def opening(self) -> bytes:
        """What a reader in background gets before the engine has begun; empty for others, and the second time."""
        if self._opened or not self.base["background"]:
            return b""
        self._opened = True
        queued = {**self.base, "status": "queued"}
        return self._event("response.created", {"response": queued}) + self._event(
            "response.queued", {"response": queued}
        )

    def take(self, data: bytes) -> bytes:
        """What the client gets for some whole events of the engine; may be empty."""
        out = [self.opening()]
        out += [self._translated(_decode(event)) for event in events_of(data) if not self.ended]
        return b"".join(out)

    def _translated(self, event: dict[str, Any]) -> bytes:
        kind = str(event.pop("type", ""))
        if "error" in event and not kind:
            fault = b"data: %b\n\n" % _encode({"error": event["error"]})
            self.refusal = problems.of_first_event(fault)
            return b""
        if kind == "response.created" and self.base["background"]:
            return b""  # it has one already
        if "output_index" in event:
            self.begun = True
            self._name(kind, event)
        elif isinstance(event.get("response"), dict):
            kind = self._state(kind, event)
        return self._event(kind, event)

    def _state(self, kind: str, event: dict[str, Any]) -> str:
        """An event that brings the object. Returns the event's right name."""
        response = event["response"] = objects.put_right(event["response"], self.base)
        if kind not in _ENDED:
            return kind
        for index, item in enumerate(response["output"]):
            self._same_names(index, item)
        self.final = response
        return _ENDS.get(response["status"], "response.completed")

    def _name(self, kind: str, event: dict[str, Any]) -> None:
        """Gives the thing that an event is about the ids under which the client knows it."""
        index, item = event["output_index"], event.get("item")
        if isinstance(item, dict):
            known = self._things.setdefault(index, _ids(item))
            self._rename(_ids(item), known)
            item.update({name: value for name, value in known.items() if name in item})
            if kind == "response.output_item.done":
                self._done[index] = item
        elif "item_id" in event and index in self._things:
            event["item_id"] = self._things[index].get("id", event["item_id"])

    def _rename(self, now: dict[str, str], known: dict[str, str]) -> None:
        for name, value in now.items():
            if known.get(name, value) != value:
                self._renamed[value] = known[name]

    def _same_names(self, index: int, item: Any) -> None:
        """An item of the final object gets the ids of the events; those of before a change of workers by its place."""
        known = self._things.get(index, {})
        there = {thing.get("id") for thing in self._things.values()}
        if not isinstance(item, dict) or item.get("id") in there:
            return
        if item.get("id") in self._renamed:
            item.update({name: self._renamed.get(item[name], item[name]) for name in ("id", "call_id") if name in item})
        elif known.get("type") == item.get("type"):
            item.update({name: value for name, value in known.items() if name in item})

    # ---- ends

    def end(self, end: Meta, fault: RequestError | None, refusal: RequestError | None) -> bytes:
        """What comes after the engine's own events; usually nothing.

        `fault`: why the request did not end as an answer. `refusal`: the engine's own, which came instead of events.
        """
        out = self.opening()
        if self.ended:
            return out
        error = fault or refusal or self.refusal or errors.engine_error("The engine's answer has no end.")
        out += self._event("error", _told(error))
        if end.state != "cancelled":
            self.final = objects.failed(self.base, error, self.output)
            out += self._event("response.failed", {"response": self.final})
        return out

    def fault(self, error: RequestError) -> bytes:
        """An error event that concerns this reader's connection alone.

        It has the number of the last event, so that whoever goes on behind it misses nothing.
        """
        last = max(self._after, self._number - 1)
        return _written("error", {**_told(error), "sequence_number": last})

    def _event(self, kind: str, event: dict[str, Any]) -> bytes:
        number = self._number
        self._number += 1
        self.ended = self.ended or kind in _ENDED
        if number <= self._after:
            return b""
        return b"id: %d\n%b" % (number, _written(kind, {**event, "sequence_number": number}))


def _told(error: RequestError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "param": error.param}


def _written(kind: str, event: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **event}))


def _ids(item: dict[str, Any]) -> dict[str, str]:
    return {name: item[name] for name in ("type", "id", "call_id") if isinstance(item.get(name), str)}


def refusal_in(head: Meta | None, body: bytes) -> RequestError | None:
    """The engine's refusal, when that is what its answer is."""
    return problems.of_refusal(head.status, body) if head is not None and head.status != _OK else None
