"""What stands between vLLM's serving layer and its engine: every generation passes through `EngineProxy`.

It writes down what is generated, gives each generation an id that no other attempt has, hands the lane's priority on,
and keeps two things from clients that are not answers: the error frame of an engine that has died (the worker ends,
and its requests run elsewhere), and the finish reason `abort`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from worker.engines.base import Journal
from worker.engines.vllm_resume import can_continue, resumed

_ABORT_GRACE_S = 3.0
_ABORT_LOOK_S = 0.02


class Exchange:
    """One HTTP request inside vLLM's application, and the generations that it has started.

    Attributes:
        journal: where to write down what they make.
        calls: generations so far. Beam search, several prompts and tool loops start more than one.
        running: the engine's ids of those that run.
        over: nobody reads the answer any more.
    """

    __slots__ = ("calls", "journal", "over", "running")

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal
        self.calls = 0
        self.running: set[str] = set()
        self.over = False

    def begin(self, request_id: str) -> str:
        """A generation begins. Returns its id for the engine: unique, since a lost attempt may still be running."""
        self.calls += 1
        engine_id = request_id if self.journal is None else f"{request_id}-{self.journal.attempt}"
        self.running.add(engine_id)
        return engine_id


current_exchange: ContextVar[Exchange | None] = ContextVar("current_exchange", default=None)
"""The exchange that the current task works for."""


async def for_ever() -> None:
    """Returns only by being cancelled."""
    await asyncio.Event().wait()


class Tally:
    """Counts the tokens of one generation and writes them into the journal."""

    def __init__(self, exchange: Exchange, params: SamplingParams | None) -> None:
        """`params` is None for a pooling request, which generates nothing."""
        self._exchange = exchange
        self._cumulative = params is not None and params.output_kind is RequestOutputKind.CUMULATIVE
        self._one_choice = params is not None and params.n == 1
        self._prompt_counted = False
        self._seen: dict[int, tuple[int, int]] = {}  # of cumulative outputs: tokens and characters by choice

    def note(self, output: RequestOutput | PoolingRequestOutput[Any]) -> None:
        """An output is on its way to the client."""
        journal = self._exchange.journal
        if journal is None:
            return
        prompt_tokens = 0 if self._prompt_counted else len(output.prompt_token_ids or ())
        self._prompt_counted = True
        completion_tokens = 0
        if isinstance(output, RequestOutput):
            for choice in output.outputs:
                token_ids, text_chars = self._news(choice.index, list(choice.token_ids), len(choice.text))
                completion_tokens += len(token_ids)
                if self._one_choice and self._exchange.calls == 1 and (token_ids or text_chars):
                    journal.tokens(token_ids, text_chars)
        if prompt_tokens or completion_tokens:
            journal.usage(prompt_tokens, completion_tokens)

    def _news(self, index: int, token_ids: list[int], text_chars: int) -> tuple[list[int], int]:
        if not self._cumulative:
            return token_ids, text_chars
        tokens, chars = self._seen.get(index, (0, 0))
        self._seen[index] = (len(token_ids), text_chars)
        return token_ids[tokens:], text_chars - chars


def _is_aborted(output: RequestOutput | PoolingRequestOutput[Any]) -> bool:
    """Whether the engine gave a generation up. The one output of a pooling request is no list, and never says so."""
    if isinstance(output, RequestOutput):
        for choice in output.outputs:  # once a token: a generator would cost more than the look
            if choice.finish_reason == "abort":
                return True
    return False


class EngineProxy:
    """An engine client like the one that it stands for; generations and pooling requests are watched."""

    def __init__(self, engine: EngineClient, failed: Callable[[], bool], *, priorities: bool) -> None:
        """`failed` tells whether the engine has died. `priorities`: its scheduler heeds them."""
        self._engine = engine
        self._failed = failed
        self._priorities = priorities

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property  # type: ignore[misc]  # vLLM asks its client with isinstance in places
    def __class__(self) -> type:
        return type(self._engine)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """See EngineClient."""
        exchange = current_exchange.get()
        outputs: AsyncGenerator[RequestOutput, None]
        if exchange is None:
            outputs = self._engine.generate(prompt, sampling_params, request_id, **options)
            return outputs
        engine_id = exchange.begin(request_id)
        ranked = self._ranked(exchange, options)

        def generate(prompt: Any, params: SamplingParams) -> AsyncGenerator[RequestOutput, None]:
            made: AsyncGenerator[RequestOutput, None] = self._engine.generate(prompt, params, engine_id, **ranked)
            return made

        journal = exchange.journal
        if journal is not None and not can_continue(self._engine, prompt, sampling_params):
            journal.cannot_continue()
        if journal is None or journal.resume is None:
            outputs = generate(prompt, sampling_params)
        else:
            outputs = resumed(self._engine, journal, journal.resume, (prompt, sampling_params), generate)
        return self._watched(exchange, engine_id, outputs, Tally(exchange, sampling_params))

    def encode(
        self, prompt: Any, pooling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[PoolingRequestOutput[Any], None]:
        """See EngineClient."""
        exchange = current_exchange.get()
        outputs: AsyncGenerator[PoolingRequestOutput[Any], None]
        if exchange is None:
            outputs = self._engine.encode(prompt, pooling_params, request_id, **options)
            return outputs
        engine_id = exchange.begin(request_id)
        outputs = self._engine.encode(prompt, pooling_params, engine_id, **self._ranked(exchange, options))
        return self._watched(exchange, engine_id, outputs, Tally(exchange, None))

    def _ranked(self, exchange: Exchange, options: dict[str, Any]) -> dict[str, Any]:
        """The priority is the lane's. What a client asks for in vLLM's own field would let it overtake its lane.

        A scheduler without priorities is told none: vLLM documents another than 0 as an error there.
        """
        if exchange.journal is None:
            return options
        return {**options, "priority": exchange.journal.priority if self._priorities else 0}

    async def _watched(
        self, exchange: Exchange, engine_id: str, outputs: AsyncGenerator[Any, None], tally: Tally
    ) -> AsyncGenerator[Any, None]:
        try:
            async for output in outputs:
                if exchange.over:
                    raise asyncio.CancelledError
                if _is_aborted(output):
                    await self._outlast_abort()
                tally.note(output)
                yield output
        except EngineDeadError:
            await for_ever()
        finally:
            exchange.running.discard(engine_id)
            await outputs.aclose()

    async def _outlast_abort(self) -> None:
        """An abort that nobody here asked for. Raises EngineGenerateError, unless it is the engine going down."""
        end_s = time.monotonic() + _ABORT_GRACE_S
        while time.monotonic() < end_s:
            if self._failed():
                await for_ever()
            await asyncio.sleep(_ABORT_LOOK_S)
        raise EngineGenerateError("The engine gave this request up.")
