"""What every engine must do, whatever runs inside it. The suite drives engines as the worker does."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from api.prompts import of_chat, of_completion
from api.tokens import Counter, Tokens
from shared.tokenizer import unpack
from shared.wire import WorkerCard
from tests.support.engines import Exchange, SimSubject, Subject, VllmSubject, engine_processes, text_of, until
from tests.support.tiny_models import model_folder
from worker.__main__ import load_engine
from worker.settings import WorkerSettings
from worker.vocabulary import vocabulary_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
FREED_S = 2.0
_TOKENS = 12

pytestmark = pytest.mark.asyncio(loop_scope="module")


def _folder_of_test_model(factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    return model_folder(factory.mktemp("model"))


@pytest_asyncio.fixture(
    loop_scope="module",
    scope="module",
    params=[
        "sim",
        # warnings of vLLM and torch are theirs; loading takes a minute or two on a small machine
        pytest.param(
            "vllm",
            marks=[pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")],
        ),
    ],
)
async def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Subject]:
    model = "sim" if request.param == "sim" else str(_folder_of_test_model(tmp_path_factory))
    flags = [] if request.param == "sim" else ["--enforce-eager", "--max-num-seqs", "8"]
    engine = load_engine(WorkerSettings(engine=request.param, model=model), flags)
    level = logging.getLogger().level
    try:
        await engine.start()
        assert logging.getLogger().level == level, "an engine leaves the worker's logs alone"
        yield SimSubject(engine) if request.param == "sim" else VllmSubject(engine)
    finally:
        await engine.stop()


def asking(path: str, **extra: Any) -> dict[str, Any]:
    """A request body for a chat or a completion."""
    prompt = (
        {"messages": [{"role": "user", "content": "Tell me about the queue."}]}
        if path == CHAT
        else {"prompt": "The queue"}
    )
    fixed: dict[str, Any] = {"max_tokens": _TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    return {**prompt, **fixed, **extra}


def choices_of(exchange: Exchange, *, stream: bool) -> list[dict[str, Any]]:
    if stream:
        return [choice for chunk in exchange.chunks for choice in chunk["choices"]]
    return list(exchange.json["choices"])


async def test_the_first_model_card_says_what_is_served_and_how_long_its_context_is(subject: Subject) -> None:
    cards = await subject.engine.models()
    assert cards[0]["object"] == "model"
    assert cards[0]["id"]
    assert "/" not in cards[0]["id"], "the name of a folder's model is not its path"
    assert cards[0]["max_model_len"] > 100


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stream_comes_piece_by_piece_and_ends_with_done(subject: Subject, path: str) -> None:
    exchange = await Exchange(subject.engine, path, asking(path, stream=True)).run()
    assert exchange.status == 200
    assert exchange.headers["content-type"].startswith("text/event-stream")
    assert exchange.complete
    assert exchange.events[-1] == "[DONE]"
    assert exchange.events.count("[DONE]") == 1
    assert len(exchange.pieces) >= _TOKENS // 2, "pieces must not be gathered up"
    assert exchange.piece_times_s[-1] > exchange.piece_times_s[0]
    reasons = [reason for choice in choices_of(exchange, stream=True) if (reason := choice.get("finish_reason"))]
    assert reasons == ["length"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_streamed_or_not_the_text_is_the_same(subject: Subject, path: str) -> None:
    streamed = await Exchange(subject.engine, path, asking(path, stream=True)).run()
    whole = await Exchange(subject.engine, path, asking(path)).run()
    assert whole.status == 200
    assert whole.headers["content-type"].startswith("application/json")
    text = text_of(choices_of(whole, stream=False))
    assert text
    assert text_of(choices_of(streamed, stream=True)) == text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_journal_holds_the_tokens_and_the_usage_of_the_answer(
    subject: Subject, path: str, *, stream: bool
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    exchange = await Exchange(subject.engine, path, asking(path, **options)).run()
    choices = choices_of(exchange, stream=stream)
    usage = exchange.chunks[-1]["usage"] if stream else exchange.json["usage"]
    journal = exchange.journal
    assert len(journal.token_ids) == _TOKENS
    assert journal.token_ids == subject.token_ids(choices)
    assert journal.text_chars == len(text_of(choices))
    assert (journal.prompt_tokens, journal.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert journal.prompt_tokens > 0


ASKED: list[tuple[str, dict[str, Any], int]] = [
    (COMPLETIONS, {"prompt": "The queue, the lease and the log.\nWhat else?"}, 0),
    (COMPLETIONS, {"prompt": ["The queue", "a  lease\tlives", "x"]}, 0),
    (COMPLETIONS, {"prompt": [5, 6, 7, 8]}, 0),
    (COMPLETIONS, {"prompt": [[5, 6], [7]]}, 0),
    (CHAT, {}, 0),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Tell me about leases."}]}]}, 0),
    (
        CHAT,
        {
            "messages": [
                {"role": "system", "content": "You are a helpful assistant. You answer in one sentence."},
                {"role": "user", "content": "What is a lease?"},
                {"role": "assistant", "content": "A key with a TTL that says that a worker lives."},
                {"role": "user", "content": "And a cursor?"},
            ]
        },
        4,
    ),
]
"""Requests, and by how many tokens a count may be wrong: texts may merge with their template's, one each."""


@pytest.mark.parametrize(("path", "extra", "tolerance_tokens"), ASKED)
async def test_a_replica_counts_the_tokens_of_a_prompt_as_the_engine_does(
    subject: Subject, path: str, extra: dict[str, Any], tolerance_tokens: int
) -> None:
    vocabulary = await vocabulary_of(subject.engine)
    assert vocabulary is not None
    counter = Counter(unpack(vocabulary.counting.tokenizer, vocabulary.packed))
    fields = asking(path, max_tokens=1, **extra)
    exchange = await Exchange(subject.engine, path, fields).run()
    assert exchange.status == 200, exchange.body
    tokens = Tokens(_nothing)
    tokens._counters[vocabulary.counting.tokenizer] = counter
    worker = WorkerCard("w", "", "", 1, [], counting=vocabulary.counting)
    counted = await tokens.count((of_chat if path == CHAT else of_completion)(fields), [worker])
    await tokens.close()
    assert abs(counted - exchange.json["usage"]["prompt_tokens"]) <= tolerance_tokens


async def _nothing(_: str) -> bytes | None:
    return None


@pytest.mark.parametrize("stream", [True, False])
async def test_a_parameter_out_of_range_is_refused_with_an_error_body(subject: Subject, *, stream: bool) -> None:
    exchange = await Exchange(subject.engine, CHAT, asking(CHAT, max_tokens=-1, stream=stream)).run()
    assert exchange.status == 400
    assert exchange.json["error"]["message"]
    assert exchange.complete


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_over_the_context_is_refused_with_an_error_body(subject: Subject, *, stream: bool) -> None:
    longest = (await subject.engine.models())[0]["max_model_len"]
    messages = [{"role": "user", "content": "word " * (longest + 1)}]
    exchange = await Exchange(subject.engine, CHAT, asking(CHAT, messages=messages, stream=stream)).run()
    assert exchange.status == 400
    assert "maximum context length" in exchange.json["error"]["message"]
    assert exchange.journal.completion_tokens == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_the_task_frees_the_engine_and_shows_no_abort(subject: Subject, *, stream: bool) -> None:
    exchange = Exchange(subject.engine, CHAT, asking(CHAT, max_tokens=800, stream=stream))
    exchange.start()
    if stream:
        await asyncio.wait_for(exchange.arrived.wait(), 30)
    await until(subject.busy, 30, "the engine runs the request")
    await exchange.stop()
    await until(lambda: subject.busy() == 0, FREED_S, "the engine has let the request go")
    assert not exchange.complete, "it was stopped midway"
    assert b"abort" not in exchange.body
    assert subject.engine.failure() is None


async def test_requests_that_run_together_do_not_disturb_each_other(subject: Subject) -> None:
    bodies = [asking(COMPLETIONS, prompt=f"The {number} queue", stream=number % 2 == 0) for number in range(6)]
    alone = [await Exchange(subject.engine, COMPLETIONS, body, f"r{i}").run() for i, body in enumerate(bodies)]
    together = [Exchange(subject.engine, COMPLETIONS, body, f"r{i}") for i, body in enumerate(bodies)]
    await asyncio.gather(*(exchange.run() for exchange in together))
    for before, now in zip(alone, together, strict=True):
        assert now.status == 200
        assert now.journal == before.journal
    assert subject.busy() == 0


async def test_capacity_is_known_and_an_idle_engine_is_not_saturated(subject: Subject) -> None:
    capacity = subject.engine.capacity()
    assert capacity.slots >= 8
    assert not capacity.saturated
    assert subject.engine.failure() is None


async def test_the_scheduler_hears_the_lanes_priority_and_not_the_clients_own(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(subject, VllmSubject):
        pytest.skip("the simulated engine has no scheduler")
    core = subject.engine._engine.engine_core  # type: ignore[attr-defined]
    heard: list[int] = []
    add = core.add_request_async

    async def listening(request: Any) -> None:
        heard.append(request.priority)
        await add(request)

    monkeypatch.setattr(core, "add_request_async", listening)
    for stream in (True, False):
        exchange = Exchange(subject.engine, CHAT, asking(CHAT, stream=stream, priority=-9))
        assert (await exchange.run()).status == 200
        assert exchange.journal.continuable == stream, "only a stream is gone on with"
    assert heard == [exchange.journal.priority] * 2
    for extra in ({"seed": 1}, {"logprobs": True}, {"presence_penalty": 0.5}):
        exchange = Exchange(subject.engine, CHAT, asking(CHAT, stream=True, **extra))
        await exchange.run()
        assert not exchange.journal.continuable, extra


async def test_an_abort_from_elsewhere_is_an_error_and_never_a_finish_reason(subject: Subject) -> None:
    if not isinstance(subject, VllmSubject):
        pytest.skip("only vLLM knows aborts")
    exchange = Exchange(subject.engine, CHAT, asking(CHAT, max_tokens=800, stream=True))
    task = exchange.start()
    await asyncio.wait_for(exchange.arrived.wait(), 30)
    await subject.abort_everything()
    await asyncio.wait_for(task, 30)
    assert b'"finish_reason":"abort"' not in exchange.body
    assert exchange.chunks[-1]["error"]["code"] == 500
    assert subject.engine.failure() is None


async def test_a_dead_engine_says_so_and_its_clients_hear_nothing_of_it(subject: Subject) -> None:
    """The next-to-last test of the suite: the engine is gone afterwards."""
    if not isinstance(subject, VllmSubject):
        pytest.skip("the simulated engine has no process that could die")
    exchanges = [
        Exchange(subject.engine, CHAT, asking(CHAT, max_tokens=800, stream=stream), f"r{stream}")
        for stream in (True, False)
    ]
    tasks = [exchange.start() for exchange in exchanges]
    await asyncio.wait_for(exchanges[0].arrived.wait(), 30)
    await until(lambda: subject.busy() == 2, 30, "both requests run")
    subject.kill_engine_process()
    await until(lambda: subject.engine.failure() is not None, 10, "the engine reports its death")
    late = Exchange(subject.engine, CHAT, asking(CHAT), "late")
    await asyncio.wait({*tasks, late.start()}, timeout=1)
    assert not any(task.done() for task in tasks), "they wait to be cancelled"
    assert b"error" not in exchanges[0].body
    assert exchanges[1].status == 0
    assert late.status == 0
    for exchange in [*exchanges, late]:
        await exchange.stop()
    assert subject.engine.failure() is not None, "once set it stays"


async def test_stopping_twice_is_safe(subject: Subject) -> None:
    """The last test of the suite: nothing runs afterwards."""
    await subject.engine.stop()
    await subject.engine.stop()
    assert subject.busy() == 0
    assert engine_processes() == []
