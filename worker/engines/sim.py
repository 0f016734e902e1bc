"""The simulated engine: no model, no GPU, an answer that is known in advance.

Token `index` of request `rid` is `token_text(rid, index)`, so a gap, a repeat or a splice of two requests shows in the
text. Timing is that of a batching engine: a request's first token comes `--ttft-ms` after its start, later tokens come
in steps that all running sequences share, one each `--itl-ms`. With `--text clock` a token is `~` and the microsecond
at which it was made (13 hexadecimal digits of the monotonic clock), which is what the load generator measures with;
with `--text signs` its digits are characters of two to four bytes.

With `--faults` a request may do harm, for tests: see `sim_faults.py`.

It speaks the outline of vLLM's routes, its stream formats and its error envelope. Unlike a model it can do
everything: chat, vectors and scores. For tests, load tests and laptops.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import ConfigurationError
from worker.engines import sim_responses
from worker.engines.base import Capabilities, Capacity, Journal, Tokenizer, current_journal
from worker.engines.sim_answers import TEXTS, Job, completion, token_id
from worker.engines.sim_faults import do_harm
from worker.engines.sim_looks import LOOKS
from worker.engines.sim_prompts import TOKENIZER
from worker.engines.sim_requests import FORMS, Refusal, job_of
from worker.engines.sim_shapes import check
from worker.engines.sim_steps import Steps
from worker.engines.sim_streams import telling_of
from worker.settings import WorkerSettings

VERSION = "1"
_JSON_HEADERS = [(b"content-type", b"application/json")]
_SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]
_TURN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class SimOptions:
    """Flags of the engine."""

    name: str
    ttft_s: float
    itl_s: float
    slots: int
    text: str
    max_model_len: int
    faults: bool = False
    adapters: tuple[str, ...] = ()


def create(settings: WorkerSettings, flags: list[str]) -> SimEngine:
    """The engine for these settings and the flags after `--`. Raises ConfigurationError."""
    parser = argparse.ArgumentParser(prog="penstock worker --engine sim --", exit_on_error=False)
    parser.add_argument("--ttft-ms", type=float, default=20, help="from start to first token")
    parser.add_argument("--itl-ms", type=float, default=10, help="between tokens; 0 = as fast as the loop turns")
    parser.add_argument("--slots", type=int, default=settings.max_num_seqs or 256, help="sequences at once")
    parser.add_argument("--text", choices=sorted(TEXTS), default="seeded", help="what a token's text is")
    parser.add_argument("--max-model-len", type=int, default=settings.max_model_len or 32_768, help="context, tokens")
    parser.add_argument("--adapters", nargs="+", default=[], help="names that it serves beside the model's, as LoRA")
    parser.add_argument("--faults", action="store_true", help="tests only: requests may crash or hang this engine")
    try:
        options, unknown = parser.parse_known_args(flags)
    except argparse.ArgumentError as error:
        msg = f"sim engine: {error}"
        raise ConfigurationError(msg) from error
    if unknown:
        msg = f"sim engine: unknown flags: {' '.join(unknown)}. See `penstock worker --engine sim -- --help`."
        raise ConfigurationError(msg)
    if options.ttft_ms / 1000 >= settings.stall_s:
        msg = f"sim engine: --ttft-ms must be shorter than --stall-s ({settings.stall_s:g} s): it looks like a stall."
        raise ConfigurationError(msg)
    return SimEngine(
        SimOptions(
            name=settings.model or "sim",
            ttft_s=options.ttft_ms / 1000,
            itl_s=options.itl_ms / 1000,
            slots=options.slots,
            text=options.text,
            max_model_len=options.max_model_len,
            faults=options.faults,
            adapters=tuple(options.adapters),
        )
    )


class SimEngine:
    """An engines.base.Engine."""

    name = "sim"
    version = VERSION
    capabilities = Capabilities(journals=True, priorities=False)

    def __init__(self, options: SimOptions) -> None:
        self._options = options
        self._steps = Steps(options.itl_s)
        self._text = TEXTS[options.text]
        self.running = 0

    async def start(self) -> None:
        """Nothing to load."""

    @property
    def app(self) -> ASGIApp:
        """See Engine."""
        return self._serve

    async def models(self) -> list[dict[str, Any]]:
        """See Engine."""
        options = self._options
        card = {"id": options.name, "object": "model", "created": 0, "owned_by": "penstock", "root": options.name}
        base = {**card, "parent": None, "max_model_len": options.max_model_len, "permission": []}
        adapters = [
            {**base, "id": name, "root": f"/adapters/{name}", "parent": options.name} for name in options.adapters
        ]
        return [base, *({**adapter, "max_model_len": None} for adapter in adapters)]

    async def tokenizer(self) -> Tokenizer:
        """See Engine."""
        return TOKENIZER

    def capacity(self) -> Capacity:
        """See Engine."""
        return Capacity(self._options.slots)

    def failure(self) -> str | None:
        """It never fails on its own."""
        return "a request asked for it" if time.monotonic() >= self._steps.fails_at_s else None

    async def stop(self) -> None:
        """Nothing to free."""

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            path, fields, rid = await self._read(scope, receive)
            if path in LOOKS:
                await self._look(path, fields, send)
            else:
                job = job_of(path, fields, rid, self._options.max_model_len)
                await self._generate(job, self._named(fields), send)
        except Refusal as refusal:
            await _reply(send, refusal.status, refusal.body())

    async def _read(self, scope: Scope, receive: Receive) -> tuple[str, dict[str, Any], str]:
        """Path, body and id of a request. Raises Refusal."""
        path = scope["path"]
        if path not in FORMS and path not in LOOKS:
            raise Refusal(404, "Not Found")
        body = (await _body(receive)) or b"{}"
        if self._options.faults:
            do_harm(body, self._steps)
        headers = dict(scope["headers"])
        fields = msgspec.json.decode(body)
        check(path, fields)
        return path, fields, headers.get(b"x-request-id", b"sim").decode()

    def _named(self, fields: dict[str, Any]) -> str:
        """The name under which it answers: an adapter's for who asks for that, as vLLM does, else the model's."""
        asked = fields.get("model")
        return asked if asked in self._options.adapters else self._options.name

    async def _look(self, path: str, fields: dict[str, Any], send: Send) -> None:
        """An answer that takes no steps."""
        journal = current_journal.get()
        self.running += 1
        try:
            answer, tokens = LOOKS[path](fields, self._named(fields))
            if "max_model_len" in answer:
                answer["max_model_len"] = self._options.max_model_len
            await self._read_prompt()
            if journal is not None and tokens:
                journal.usage(tokens, 0)
            await _reply(send, 200, msgspec.json.encode(answer))
        finally:
            self.running -= 1

    async def _generate(self, job: Job, model: str, send: Send) -> None:
        journal = current_journal.get()
        self.running += 1
        try:
            if job.stream:
                await self._stream(job, model, journal, send)
            else:
                await self._whole(job, model, journal, send)
        finally:
            self.running -= 1

    async def _stream(self, job: Job, model: str, journal: Journal | None, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
        answer = telling_of(job, model)
        await _send_all(send, answer.begun())
        await self._read_prompt()
        if journal is not None:
            journal.usage(job.prompt_tokens, 0)
        await _send_all(send, answer.opening())
        text = self._text
        resume = journal.resume if journal is not None else None
        there = min(len(resume.token_ids), job.tokens) if resume is not None else 0
        for index in range(job.tokens):
            if index == there and journal is not None and resume is not None:
                journal.replayed()
            if index > there:
                await self._steps.next()
            elif index and index % _TURN_TOKENS == 0:
                await asyncio.sleep(0)  # the other streams must not wait for a long replay
            piece = text(job.rid, index)
            if journal is not None:
                journal.tokens([token_id(job.rid, index)], len(piece))
                journal.usage(0, 1)
            await send({"type": "http.response.body", "body": answer.token(piece), "more_body": True})
        if there == job.tokens and journal is not None:
            journal.replayed()
        await _send_all(send, answer.tail())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read_prompt(self) -> None:
        await asyncio.sleep(self._options.ttft_s)
        if self._steps.hung:
            await self._steps.next()

    async def _whole(self, job: Job, model: str, journal: Journal | None, send: Send) -> None:
        await self._read_prompt()
        if journal is not None:
            journal.usage(job.prompt_tokens, 0)
        pieces = []
        for index in range(job.tokens):
            if index:
                await self._steps.next()
            pieces.append(self._text(job.rid, index))
            if journal is not None:
                journal.tokens([token_id(job.rid, index)], len(pieces[-1]))
                journal.usage(0, 1)
        if job.response is not None:
            body = sim_responses.whole(job, model, job.response, pieces.__getitem__)
        else:
            body = msgspec.json.encode(completion(job, model, "".join(pieces)))
        await _reply(send, 200, body)


async def _send_all(send: Send, events: Iterable[bytes]) -> None:
    for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})


async def _body(receive: Receive) -> bytes:
    parts = []
    more = True
    while more:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _reply(send: Send, status: int, body: bytes) -> None:
    headers = [*_JSON_HEADERS, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
