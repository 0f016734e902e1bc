"""The answer of a row's request, read from its log as a replica reads it: a line of the output or the error file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from api import dialects
from api.polled import read_answer
from api.relay import Relay
from api.responses.asked import asked_of
from api.responses.objects import base_of
from api.responses.view import View
from batch.rows import RESPONSES, line_out
from shared import errors
from shared.errors import RequestError
from shared.hot import HotClient
from shared.keys import Keys

_FIRST_ERROR = 400
_ASK_AGAIN = frozenset({"worker_lost", "history_lost"})
"""Ends of requests that say nothing of the row: nobody has seen any of their text, so it may be asked anew."""


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = 0
    reasoning_tokens: int | None = 0


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Body(msgspec.Struct, gc=False):
    usage: _Usage | None = None


_usage = msgspec.json.Decoder(_Body).decode


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a row ended: a line, the code of its error or nothing, and what it used."""

    row: int
    rid: str
    line: bytes
    code: str
    usage: dict[str, int]

    @property
    def good(self) -> bool:
        """Whether it goes to the output file."""
        return not self.code


@dataclass(frozen=True, slots=True)
class Asked:
    """A row's request, as far as its answer needs it. `body` only where the answer is made of it (responses)."""

    row: int
    rid: str
    custom_id: str
    model: str
    endpoint: str
    body: bytes = b""


async def outcome_of(client: HotClient, keys: Keys, asked: Asked) -> Outcome | None:
    """How a request that has ended has ended; None when it must be asked anew. Raises RequestError (broker)."""
    relay = Relay(client, keys, asked.rid, grace_s=0.0, lost_grace_s=0.0, readmit=None)
    try:
        told = await (_response(relay, asked) if asked.endpoint == RESPONSES else _answer(relay, asked))
    except RequestError as error:
        if error.code == errors.broker_unavailable().code:
            raise
        return None if error.code in _ASK_AGAIN else refused(asked, error)
    status, body = told["status_code"], bytes(told["body"])
    line = line_out(asked.custom_id, asked.rid, status, body, None)
    return Outcome(asked.row, asked.rid, line, "", usage_of(body))


async def _answer(relay: Relay, asked: Asked) -> dict[str, Any]:
    return await read_answer(relay, asked.model, asked.endpoint)


async def _response(relay: Relay, asked: Asked) -> dict[str, Any]:
    """The object of a response, of the events in its log."""
    base = base_of(asked_of(asked.body), asked.rid, asked.model, "batch")
    base["store"] = False
    view = View(base, relay, stream=False)
    return await read_answer(relay, asked.model, asked.endpoint, view)


def refused(asked: Asked, error: RequestError) -> Outcome:
    """The outcome of a row that was refused, at the door or by the engine."""
    body = dialects.envelope(error, asked.endpoint)
    fault = (error.code, error.message)
    line = line_out(asked.custom_id, asked.rid, error.status, body, fault)
    return Outcome(asked.row, asked.rid, line, error.code, {})


def usage_of(body: bytes) -> dict[str, int]:
    """What an answer says that it used, in the fields of a batch."""
    try:
        usage = _usage(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    if usage is None:
        return {}
    read = usage.prompt_tokens_details or usage.input_tokens_details or _Details()
    written = usage.completion_tokens_details or usage.output_tokens_details or _Details()
    return {
        "input_tokens": (usage.prompt_tokens or 0) + (usage.input_tokens or 0),
        "output_tokens": (usage.completion_tokens or 0) + (usage.output_tokens or 0),
        "cached_tokens": read.cached_tokens or 0,
        "reasoning_tokens": written.reasoning_tokens or 0,
    }
