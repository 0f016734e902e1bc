"""An answer that is cut anywhere and continued is the answer of an unbroken run, on every engine."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from tests.conformance.conftest import RESUMED
from tests.support import scripted_models
from tests.support.resuming import Cut, Resumed, Unbroken, said
from worker.engines.base import Engine, Policy

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = "/v1/messages"
PATHS = [CHAT, COMPLETIONS]
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

pytestmark = pytest.mark.asyncio(loop_scope="package")


def asking(path: str, **extra: Any) -> dict[str, Any]:
    if path == MESSAGES:
        say = [{"role": "user", "content": "What is a queue?"}]
        return {"model": RESUMED, "messages": say, "max_tokens": 16, "temperature": 0, "stream": True, **extra}
    prompt = {"messages": [{"role": "user", "content": "What is a queue?"}]} if path == CHAT else {"prompt": "A queue"}
    return {**prompt, "max_tokens": 16, "temperature": 0, **USAGE, **extra}


async def unbroken(engine: Engine, path: str, body: dict[str, Any]) -> Unbroken:
    """The whole stream."""
    exchange = Unbroken(engine, path, body)
    await exchange.run()
    assert exchange.status == 200, exchange.body
    last = exchange.body.rstrip().rpartition(b"\n\n")[2]
    assert last == b"data: [DONE]" or last.startswith(b"event: message_stop\n")
    assert b'"error"' not in exchange.body, exchange.body
    return exchange


async def _stride(engine: Engine) -> int:
    """The demo model's text is arbitrary, the scripted one's is made to be cut anywhere."""
    return 1 if engine.name == "sim" or "scripted" in str((await engine.models())[0]["root"]) else 3


async def check_every_cut(engine: Engine, path: str, body: dict[str, Any], policy: Policy) -> dict[Any, Any]:
    """Continues behind each event of the stream. Returns what the stream says."""
    whole = await unbroken(engine, path, body)
    expected = said(whole.body)
    assert len(whole.cuts) > 4
    for number, cut in list(enumerate(whole.cuts))[:: await _stride(engine)]:
        resumed = await Resumed(engine, path, body, cut).to_end()
        where = f"behind event {number}, {len(cut.token_ids)} tokens: {cut.data[-200:]!r} + {resumed.sent[:400]!r}"
        assert not resumed.lost, where
        assert resumed.policy is policy
        assert said(cut.data + resumed.sent) == expected, where
        names = re.findall(rb'"(?:id|created)":(?:"c[^"]+"|\d+)', cut.data + resumed.sent)
        assert len({name for name in names if b"tool" not in name}) == (1 if path == MESSAGES else 2), names
        assert resumed.token_ids == whole.journal.token_ids, where
        assert getattr(engine, "unfinished", 0) == 0, "the engine still generates for nobody"
        assert resumed.usage == (whole.journal.prompt_tokens, whole.journal.completion_tokens), where
    return expected


def text(expected: dict[Any, Any]) -> str:
    return str(expected.get((0, "content")) or expected[0, "text"])


@pytest.mark.parametrize("path", PATHS)
async def test_up_to_its_token_limit(engine: Engine, path: str) -> None:
    expected = await check_every_cut(engine, path, asking(path), Policy.CONTINUE)
    assert expected[0, "finish_reason"] == ["length"]


@pytest.mark.parametrize("path", PATHS)
async def test_with_token_ids_and_usage_in_every_event(vllm: Engine, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = asking(path, return_token_ids=True, stream_options=options)
    await check_every_cut(vllm, path, body, Policy.CONTINUE)


@pytest.mark.parametrize("path", PATHS)
async def test_to_the_end_that_the_model_chooses(vllm: Engine, path: str) -> None:
    expected = await check_every_cut(vllm, path, asking(path, max_tokens=200), Policy.CONTINUE)
    assert expected[0, "finish_reason"] == ["stop"]


@pytest.mark.parametrize("included", [True, False])
@pytest.mark.parametrize("path", PATHS)
async def test_stop_strings_hold_text_back_across_the_cut(vllm: Engine, path: str, *, included: bool) -> None:
    plain = said((await unbroken(vllm, path, asking(path, max_tokens=40))).body)
    stop = text(plain)[30:39]
    body = asking(path, max_tokens=40, stop=["never said by anybody", stop], include_stop_str_in_output=included)
    expected = await check_every_cut(vllm, path, body, Policy.CONTINUE)
    assert (expected[0, "finish_reason"], expected[0, "stop_reason"]) == (["stop"], [stop])
    assert text(expected) == text(plain)[: text(plain).index(stop) + len(stop) * included]


async def test_a_stop_string_counts_only_behind_the_least_tokens(vllm: Engine) -> None:
    plain = said((await unbroken(vllm, COMPLETIONS, asking(COMPLETIONS, max_tokens=40))).body)
    body = asking(COMPLETIONS, max_tokens=40, stop=[text(plain)[3:7]], min_tokens=20)
    expected = await check_every_cut(vllm, COMPLETIONS, body, Policy.CONTINUE)
    assert len(text(expected)) > 7


async def test_stop_tokens(vllm: Engine) -> None:
    whole = await unbroken(vllm, COMPLETIONS, asking(COMPLETIONS, max_tokens=24))
    token = whole.journal.token_ids[12]
    body = asking(COMPLETIONS, max_tokens=24, stop_token_ids=[token])
    expected = await check_every_cut(vllm, COMPLETIONS, body, Policy.CONTINUE)
    assert expected[0, "stop_reason"] == [token]


async def test_characters_of_several_tokens(vllm: Engine, kind: str) -> None:
    if kind != "scripted":
        pytest.skip("only the scripted model says bytes one by one")
    expected = await check_every_cut(vllm, COMPLETIONS, asking(COMPLETIONS, max_tokens=60), Policy.CONTINUE)
    assert scripted_models.SIGNS in text(expected)
    body = asking(COMPLETIONS, max_tokens=60, stop=[scripted_models.SIGNS[1:]])
    expected = await check_every_cut(vllm, COMPLETIONS, body, Policy.CONTINUE)
    assert text(expected).endswith(scripted_models.WORDS[-1] + scripted_models.SIGNS[0])


@pytest.mark.parametrize(
    "extra",
    [
        {"seed": 7, "temperature": 0.8},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"logprobs": True, "top_logprobs": 2},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}}}},
        {"bad_words": ["zebra"], "stop": ["never said"]},
    ],
    ids=["seed", "penalties", "logprobs", "grammar", "bad words"],
)
async def test_what_depends_on_more_than_tokens_is_made_again(vllm: Engine, extra: dict[str, Any]) -> None:
    await check_every_cut(vllm, CHAT, asking(CHAT, **extra), Policy.VERIFY)


async def test_a_completion_that_echoes_its_prompt_with_log_probabilities(vllm: Engine) -> None:
    await check_every_cut(vllm, COMPLETIONS, asking(COMPLETIONS, echo=True, logprobs=1), Policy.VERIFY)


@pytest.mark.parametrize("policy", list(Policy))
async def test_a_continued_sample_keeps_its_beginning_and_its_length(vllm: Engine, policy: Policy) -> None:
    body = asking(CHAT, temperature=1.5, max_tokens=24, ignore_eos=True)
    whole = await unbroken(vllm, CHAT, body)
    lost = 0
    for cut in whole.cuts[::4]:
        resumed = await Resumed(vllm, CHAT, body, cut, policy=policy).to_end()
        if resumed.lost:
            lost += 1
            assert resumed.sent == b"", "never a splice"
        else:
            assert said(cut.data + resumed.sent)["usage",] == [resumed.usage]
            assert resumed.usage[1] == 24
    assert policy is Policy.VERIFY or not lost


async def test_another_text_than_the_engines_is_lost_and_nothing_is_added(engine: Engine) -> None:
    body = asking(CHAT)
    whole = await unbroken(engine, CHAT, body)
    cut = whole.cuts[5]
    for wrong in (
        Cut(cut.data.replace(b'"content":"', b'"content":"x'), cut.token_ids, cut.text_len),
        Cut(cut.data, [*cut.token_ids[:-1], cut.token_ids[-1] + 1], cut.text_len),
    ):
        resumed = await Resumed(engine, CHAT, body, wrong, policy=Policy.VERIFY).to_end()
        assert resumed.lost
        assert resumed.sent == b""


async def test_a_request_that_is_refused_now_is_lost(engine: Engine) -> None:
    whole = await unbroken(engine, CHAT, asking(CHAT))
    resumed = await Resumed(engine, CHAT, asking(CHAT, max_tokens=10**6), whole.cuts[3]).to_end()
    assert resumed.lost
    assert resumed.sent == b""


async def test_reasoning_words_and_a_tool_call_of_a_script(vllm: Engine, kind: str) -> None:
    if kind != "scripted":
        pytest.skip("only the scripted model thinks and calls")
    body = asking(CHAT, max_tokens=60, tools=[LOOK])
    expected = await check_every_cut(vllm, CHAT, body, Policy.CONTINUE)
    assert expected[0, "reasoning"].split() == [word.strip() for word in scripted_models.THOUGHT]
    assert expected[0, "content"].strip() == ("".join(scripted_models.WORDS) + scripted_models.SIGNS).strip()
    assert expected[0, "call", 0, "name"] == "look"
    assert json.loads(expected[0, "call", 0, "arguments"]) == {"at": "the queue"}
    assert expected[0, "finish_reason"] == ["tool_calls"]


async def test_a_message_up_to_its_token_limit(engine: Engine) -> None:
    expected = await check_every_cut(engine, MESSAGES, asking(MESSAGES), Policy.CONTINUE)
    assert expected["message_delta",][0][0] == ("max_tokens", None)


async def test_a_message_with_a_thought_words_and_a_tool_call_of_a_script(vllm: Engine, kind: str) -> None:
    if kind != "scripted":
        pytest.skip("only the scripted model thinks and calls")
    look = {"name": "look", "input_schema": {"type": "object"}}
    expected = await check_every_cut(vllm, MESSAGES, asking(MESSAGES, max_tokens=60, tools=[look]), Policy.CONTINUE)
    assert expected[0, "thinking"].split() == [word.strip() for word in scripted_models.THOUGHT]
    assert expected[1, "text"].strip() == ("".join(scripted_models.WORDS) + scripted_models.SIGNS).strip()
    assert expected[2, "content_block_start"] == [("tool_use", "look")]
    assert json.loads(expected[2, "partial_json"]) == {"at": "the queue"}
    assert expected["message_delta",][0][0] == ("tool_use", None)


@pytest.mark.parametrize(
    "extra",
    [
        {"stop_sequences": ["never said by anybody", " w7"]},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "boolean"}}}},
    ],
    ids=["stop", "grammar"],
)
async def test_messages_that_end_early_or_by_a_grammar(vllm: Engine, extra: dict[str, Any]) -> None:
    policy = Policy.VERIFY if "output_config" in extra else Policy.CONTINUE
    await check_every_cut(vllm, MESSAGES, asking(MESSAGES, max_tokens=40, **extra), policy)


async def test_many_at_once(vllm: Engine, kind: str) -> None:
    if kind != "scripted":
        pytest.skip("only the scripted model says the same in any batch")
    bodies = [
        (CHAT, asking(CHAT, max_tokens=60, tools=[LOOK])),
        (CHAT, asking(CHAT, max_tokens=60, seed=3, return_token_ids=True)),
        (COMPLETIONS, asking(COMPLETIONS, max_tokens=60, stop=["never said by anybody"])),
        (COMPLETIONS, asking(COMPLETIONS, max_tokens=60, logprobs=1)),
    ]
    wholes = await asyncio.gather(*(unbroken(vllm, path, body) for path, body in bodies))
    for whole, (path, body) in zip(wholes, bodies, strict=True):
        cuts = whole.cuts[::3]
        resumed = await asyncio.gather(*(Resumed(vllm, path, body, cut).to_end() for cut in cuts))
        for one, cut in zip(resumed, cuts, strict=True):
            assert not one.lost
            assert said(cut.data + one.sent) == said(whole.body)
