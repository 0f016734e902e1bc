"""What happens to each generation on its way through the proxy. vLLM's types, and an engine made of a list."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.engines import RecordingJournal

if TYPE_CHECKING:
    from worker.engines.vllm_proxy import EngineProxy, Exchange

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


class ListEngine:
    """An engine client that answers with what it was given, and remembers how it was asked."""

    colour = "blue"

    def __init__(self, outputs: list[Any]) -> None:
        self._outputs = outputs
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.closed = 0

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        del prompt, sampling_params
        self.asked.append((request_id, options))
        try:
            for output in self._outputs:
                if isinstance(output, Exception):
                    raise output
                yield output
        finally:
            self.closed += 1


def output(*choices: tuple[int, list[int], str, str | None]) -> Any:
    """A RequestOutput: choices of index, token ids, text, finish reason; the prompt has three tokens."""
    from vllm.outputs import CompletionOutput, RequestOutput  # noqa: PLC0415 - slow

    made = [CompletionOutput(index, text, ids, None, None, finish_reason=end) for index, ids, text, end in choices]
    return RequestOutput("r", None, [7, 8, 9], None, made, finished=any(end for *_, end in choices))


def sampling(kind: str = "DELTA", n: int = 1) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415 - slow

    return SamplingParams(n=n, temperature=1, output_kind=RequestOutputKind[kind])


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    from worker.engines.vllm_proxy import Exchange, current_exchange  # noqa: PLC0415 - slow

    made = Exchange(RecordingJournal(attempt="at7", priority=20))
    token = current_exchange.set(made)
    yield made
    current_exchange.reset(token)


def proxy_of(engine: ListEngine, *, failed: bool = False, priorities: bool = True) -> EngineProxy:
    from worker.engines.vllm_proxy import EngineProxy  # noqa: PLC0415 - slow

    client: Any = engine
    return EngineProxy(client, lambda: failed, priorities=priorities)


async def drain(proxy: EngineProxy, params: Any, **options: Any) -> list[Any]:
    return [item async for item in proxy.generate("p", params, "chatcmpl-1", **options)]


def journal_of(exchange: Exchange) -> RecordingJournal:
    assert isinstance(exchange.journal, RecordingJournal)
    return exchange.journal


def test_it_looks_like_the_engine_that_it_stands_for() -> None:
    proxy: Any = proxy_of(ListEngine([]))
    assert isinstance(proxy, ListEngine)
    assert proxy.colour == "blue"


async def test_each_attempt_has_its_own_request_id_and_the_lanes_priority(exchange: Exchange) -> None:
    engine = ListEngine([output((0, [1], "a", "stop"))])
    await drain(proxy_of(engine), sampling(), priority=-5, lora_request=None)
    assert engine.asked == [("chatcmpl-1-at7", {"priority": 20, "lora_request": None})]
    assert exchange.running == set()


async def test_without_a_priority_scheduler_no_priority_reaches_it_not_even_a_clients_own(exchange: Exchange) -> None:
    del exchange
    engine = ListEngine([])
    await drain(proxy_of(engine, priorities=False), sampling(), priority=-7)
    assert engine.asked[0][1] == {"priority": 0}


async def test_outside_an_exchange_nothing_is_watched() -> None:
    engine = ListEngine([output((0, [1], "a", "abort"))])
    assert len(await drain(proxy_of(engine), sampling(), priority=3)) == 1
    assert engine.asked == [("chatcmpl-1", {"priority": 3})]


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("DELTA", [(0, [1], "a", None), (0, [2, 3], "bc", None), (0, [4], "d", "stop")]),
        ("CUMULATIVE", [(0, [1], "a", None), (0, [1, 2, 3], "abc", None), (0, [1, 2, 3, 4], "abcd", "stop")]),
        ("FINAL_ONLY", [(0, [1, 2, 3, 4], "abcd", "stop")]),
    ],
)
async def test_every_kind_of_output_is_journaled_once(exchange: Exchange, kind: str, outputs: list[Any]) -> None:
    given = [output(choice) for choice in outputs]
    assert await drain(proxy_of(ListEngine(given)), sampling(kind)) == given
    journal = journal_of(exchange)
    assert (journal.token_ids, journal.text_chars) == ([1, 2, 3, 4], 4)
    assert (journal.prompt_tokens, journal.completion_tokens) == (3, 4)


async def test_several_choices_are_counted_and_not_journaled(exchange: Exchange) -> None:
    given = [output((0, [1], "a", None), (1, [2], "b", None)), output((0, [3], "c", "stop"), (1, [4], "d", "stop"))]
    await drain(proxy_of(ListEngine(given)), sampling(n=2))
    journal = journal_of(exchange)
    assert journal.token_ids == []
    assert (journal.prompt_tokens, journal.completion_tokens) == (3, 4)


async def test_several_generations_are_counted_and_not_journaled(exchange: Exchange) -> None:
    proxy = proxy_of(ListEngine([output((0, [1], "a", "stop"))]))
    both = [proxy.generate("p", sampling(), f"cmpl-1-{index}") for index in range(2)]
    for outputs in both:
        assert len([item async for item in outputs]) == 1
    journal = journal_of(exchange)
    assert journal.token_ids == []
    assert (journal.prompt_tokens, journal.completion_tokens) == (6, 2)


async def test_a_dead_engine_means_waiting_until_cancelled(exchange: Exchange) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415 - slow

    engine = ListEngine([output((0, [1], "a", None)), EngineDeadError()])
    task = asyncio.create_task(drain(proxy_of(engine), sampling()))
    done, _ = await asyncio.wait({task}, timeout=0.1)
    assert not done
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert exchange.running == set()


async def test_an_abort_of_a_dying_engine_means_waiting_until_cancelled(exchange: Exchange) -> None:
    del exchange
    engine = ListEngine([output((0, [1], "a", "abort"))])
    task = asyncio.create_task(drain(proxy_of(engine, failed=True), sampling()))
    done, _ = await asyncio.wait({task}, timeout=0.1)
    assert not done
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert engine.closed == 1


async def test_any_other_abort_is_an_error(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine.exceptions import EngineGenerateError  # noqa: PLC0415 - slow

    monkeypatch.setattr("worker.engines.vllm_proxy._ABORT_GRACE_S", 0.05)
    with pytest.raises(EngineGenerateError):
        await drain(proxy_of(ListEngine([output((0, [1], "a", "abort"))])), sampling())
    assert journal_of(exchange).token_ids == []


async def test_when_the_exchange_is_over_nothing_more_comes_out(exchange: Exchange) -> None:
    engine = ListEngine([output((0, [1], "a", None)), output((0, [2], "b", "stop"))])
    outputs = proxy_of(engine).generate("p", sampling(), "chatcmpl-1")
    await anext(outputs)
    exchange.over = True
    with pytest.raises(asyncio.CancelledError):
        await anext(outputs)
    assert engine.closed == 1
    assert journal_of(exchange).token_ids == [1]


def verifying(exchange: Exchange, token_ids: list[int], text_len: int) -> RecordingJournal:
    from worker.engines.base import Policy, Resume  # noqa: PLC0415 - as its neighbours

    journal = journal_of(exchange)
    journal.resume = Resume(token_ids, text_len, Policy.VERIFY)
    return journal


async def replayed_after(proxy: EngineProxy, journal: RecordingJournal) -> list[tuple[list[int], str, str | None, int]]:
    """Tokens, text, finish reason of each output, and whether the journal had heard `replayed` when it came."""
    seen = []
    async for item in proxy.generate("p", sampling(), "chatcmpl-1"):
        (choice,) = item.outputs
        assert item.finished == (choice.finish_reason is not None)
        seen.append((list(choice.token_ids), choice.text, choice.finish_reason, journal.replays))
    return seen


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (
            [(0, [1], "a", None), (0, [2], "b", None), (0, [3], "c", "stop")],
            [([1], "a", None, 0), ([2], "b", None, 0), ([3], "c", "stop", 1)],
        ),
        (
            [(0, [1], "a", None), (0, [2, 3, 4], "bcd", "stop")],
            [([1], "a", None, 0), ([2], "b", None, 0), ([3, 4], "cd", "stop", 1)],
        ),
        ([(0, [1, 2, 3], "abc", None)], [([1, 2], "ab", None, 0), ([3], "c", None, 1)]),
        ([(0, [1], "a", None), (0, [2], "bc", "stop")], [([1], "a", None, 0), ([2], "bc", "stop", 1)]),
        ([(0, [1], "a", None), (0, [2], "bc", None)], [([1], "a", None, 0), ([2], "b", None, 0), ([], "c", None, 1)]),
    ],
    ids=["apart", "merged with the end", "all in one", "ends there", "text behind"],
)
async def test_a_verified_run_is_cut_where_the_old_tokens_end(
    exchange: Exchange, outputs: list[Any], expected: list[Any]
) -> None:
    journal = verifying(exchange, [1, 2], 2)
    assert await replayed_after(proxy_of(ListEngine([output(choice) for choice in outputs])), journal) == expected
    assert not journal.divergences


async def test_several_choices_cannot_be_resumed(exchange: Exchange) -> None:
    journal = verifying(exchange, [1], 1)
    engine = ListEngine([output((0, [1], "a", None))])
    assert await drain(proxy_of(engine), sampling(n=2)) == []
    assert len(journal.divergences) == 1
    assert engine.asked == []
