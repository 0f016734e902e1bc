"""Drill 41 on real vLLM: a worker is killed under answers of every kind, and each client reads one generation.

The scripted model's answers are the same in any batch, also under a grammar and from a seed: its logits are exact. So
everything is compared to the letter, the greedy answers with the script itself. Two kinds are left to chance on
purpose. A free choice among sentences is made anew when it is made again: mostly another one, and then the client has
to get an explicit error behind what it has seen of the first. A sample without a seed is continued, and whatever its
first token is, the script follows it word for word.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import string
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from shared.keys import Keys
from tests.drills.acting import control
from tests.drills.conftest import Figures
from tests.drills.streams import Counts, Streams
from tests.support.client import Seen
from tests.support.history import check_history
from tests.support.load import Ask
from tests.support.scripted_models import CALL, SIGNS, THOUGHT, WORDS
from tests.support.stack import Stack, poll_until_ready, running_stack

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

K = Keys("scripted")
START_S = 400.0
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}
FLAGS = (
    *("--served-model-name", "scripted", "--enforce-eager", "--max-num-seqs", "64"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    # where no word is prescribed the model might fill a grammar's answer with blanks
    *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
)
OF_EACH = 8
"""Streams of each kind. How two workers share them is chance; the killed one needs some of each kind."""

SAID = "".join(THOUGHT).join(("<think>", "</think>")) + "".join(WORDS) + SIGNS
SCRIPT = SAID + "".join(CALL)
PERIODS = 14
TOKENS = PERIODS * (2 + len(THOUGHT) + len(WORDS) + len(SIGNS.encode()) + len(CALL) + 1)
"""With the end of the script, which is a token, too, and ignored."""

PLACES = {f"p{number}": f"w{number}" for number in range(56)}
SCHEMA = {
    "type": "object",
    "properties": {name: {"enum": [value]} for name, value in PLACES.items()},
    "required": list(PLACES),
    "additionalProperties": False,
}
SENTENCES = [" ".join(f"{letter}{number}" for number in range(160)) for letter in string.ascii_lowercase]
"""Their first letter tells them apart: each word that comes from another generation shows."""

_LONG: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
_GREEDY = {"temperature": 0, "max_tokens": 1200}
_CHOICE = {"temperature": 1, "max_tokens": 1200, "structured_outputs": {"choice": SENTENCES}}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "places", "schema": SCHEMA}}
_LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
_NOTE = {"type": "function", "function": {"name": "note", "strict": True, "parameters": SCHEMA}}
KINDS: dict[str, dict[str, Any]] = {
    "plain": _LONG,
    "stop string": {**_LONG, "min_tokens": TOKENS - 100, "stop": ["never said by anybody", "".join(WORDS[20:23])]},
    "tool calls": {**_LONG, "tools": [_LOOK]},
    "sample": {**_LONG, "temperature": 1},
    "seed": {**_LONG, "temperature": 1},
    "log probabilities": {**_LONG, "logprobs": True, "top_logprobs": 1},
    "schema": {**_GREEDY, "response_format": _FORMAT},
    "named tool": {**_GREEDY, "tools": [_NOTE], "tool_choice": {"type": "function", "function": {"name": "note"}}},
    "choice": _CHOICE,
    "choice, seed": _CHOICE,
}
CONTINUED = ("plain", "stop string", "tool calls", "sample")
"""The others are generated again and compared."""
BY_CHANCE = ("sample", "choice")


def asks_of_every_kind(url: str) -> list[Ask]:
    """The kinds take turns, so that every worker gets some of each. Each seed is another one."""
    return [
        Ask(
            [url],
            TOKENS,
            body={
                **body,
                **({"seed": number} if kind.endswith("seed") else {}),
                "stream_options": {"include_usage": True},
            },
            patience_s=120,
        )
        for number in range(OF_EACH)
        for kind, body in KINDS.items()
    ]


def by_kind(seen: list[Seen]) -> Iterator[tuple[str, Seen]]:
    """Each client with the kind of its request."""
    return zip(islice(cycle(KINDS), len(seen)), seen, strict=True)


def told(one: Seen) -> tuple[object, ...]:
    """All that a client has been told."""
    return one.text, one.tools, one.logprob_tokens, one.finish_reasons, one.completion_tokens


def check_the_script(kind: str, one: Seen) -> None:
    """An answer that nothing happened to says what the model was made to say."""
    assert one.whole, one
    if KINDS[kind]["max_tokens"] == TOKENS and kind != "stop string":
        assert (one.finish_reasons, one.completion_tokens) == (["length"], TOKENS)
    if kind in ("plain", "log probabilities"):
        assert one.text == SCRIPT * PERIODS
        assert len(one.logprob_tokens) == TOKENS * (kind == "log probabilities")
    if kind == "stop string":
        assert one.text == SCRIPT * (PERIODS - 2) + SCRIPT[: SCRIPT.index(WORDS[20])]
        assert one.finish_reasons == ["stop"]
    if kind == "tool calls":  # what is said between its calls, vLLM's parser leaves out
        assert (one.text, one.tools) == (SAID + '{"at": "the queue"}' * PERIODS, ["look"] * PERIODS)
    if kind in ("schema", "named tool"):
        assert list(json.loads(one.text).items()) == list(PLACES.items())
        assert one.tools == ["note"] * (kind == "named tool")
    if kind in ("seed", "sample"):
        check_a_sample(one.text)
    if kind.startswith("choice"):
        assert one.text in SENTENCES


def check_a_sample(text: str) -> None:
    """Wherever a sample has begun with the script, it follows it to its end, but for the end of the text."""
    *rounds, last = text.split(CALL[-1])
    for said in rounds:
        begun = _BEGUN.search(said)
        assert begun is None or SCRIPT.endswith(said[begun.start() :] + CALL[-1]), f"gap, repeat or splice: {said}"
    begun = _BEGUN.search(last)
    assert begun is None or last[begun.start() :].rstrip("\N{REPLACEMENT CHARACTER}") in SCRIPT, f"splice: {last}"


_BEGUN = re.compile(r"<think>| [tw]\d+(?= [tw]\d)")
"""One word alone may be chance."""


def expected_of(kind: str, one: Seen, unbroken: Seen) -> str:
    """The whole text of which a client has read all, or a part and then an error."""
    if kind == "sample":
        return one.text
    if kind == "choice":
        return next((sentence for sentence in SENTENCES if sentence.startswith(one.text)), "none of the sentences")
    return unbroken.text


@pytest.fixture(scope="module")
def stack(scripted_model: Path) -> Iterator[Stack]:
    with running_stack() as started:
        for _ in range(2):
            started.worker("--model", str(scripted_model), "--", *FLAGS, engine="vllm", ready_s=0, env=ENV)
        for worker in started.workers:
            poll_until_ready(worker, f"http://127.0.0.1:{worker.ops_port}/readyz", START_S)
        started.api("--heartbeat-s", "600")  # a comment would count as the end of a pause
        yield started


def kills(stack: Stack, one: Seen) -> int:
    """How many workers have died under a request."""
    with control(stack) as server:
        return int(server.hget(K.record(one.rid), "kills") or 0)


@pytest.mark.drill(41)
@pytest.mark.long
async def test_an_answer_of_any_kind_is_one_generation_or_an_explicit_error(stack: Stack, figures: Figures) -> None:
    asks = asks_of_every_kind(stack.apis[0].url)
    unbroken = await Streams(asks).ended()  # at once, and on both workers: their first batches are slow
    for kind, one in by_kind(unbroken):
        check_the_script(kind, one)

    streams = Streams(asks)
    victim, heir = await streams.caught(stack, K, 1, (5, TOKENS // 2), len(KINDS))
    before = Counts(heir)
    shown = [one.tokens for one in streams.seen]
    os.kill(victim.pid, signal.SIGKILL)
    seen = await streams.ended()

    kinds = [kind for kind, _ in by_kind(seen)]
    expected = {one.rid: expected_of(kind, one, whole) for kind, one, whole in zip(kinds, seen, unbroken, strict=True)}
    verdict = await check_history(stack.redis_url, seen, expected, pool=K.pool)
    middle = zip(by_kind(seen), shown, strict=True)
    hit = [(kind, one) for (kind, one), tokens in middle if tokens and kills(stack, one)]
    lost = [kind for kind, one in by_kind(seen) if one.errors]
    verified = Counts(heir).verified - before.verified
    continued = Counts(heir).resumes - before.resumes - verified
    figures |= {"engine": "vLLM", "streams": len(seen), "hit in the middle": len(hit), "lost": len(lost)}
    figures |= pauses(hit)

    assert {kind for kind, _ in hit} == set(KINDS), "the kill came too late"
    assert set(verdict.errors) == {"worker_lost"}, "what was said by chance was said again, or there are other errors"
    assert set(lost) == {"choice"}, "what can be made again was not"
    assert continued >= sum(kind in CONTINUED for kind, _ in hit)
    assert verified >= sum(kind not in CONTINUED for kind, _ in hit)
    for kind, one, whole in zip(kinds, seen, unbroken, strict=True):
        if one.whole:
            check_the_script(kind, one)
            assert kind in BY_CHANCE or told(one) == told(whole)


def pauses(hit: list[tuple[str, Seen]]) -> Figures:
    """How long clients of the killed worker waited for their next words, or an error: median and most, seconds."""
    continued = [one.longest_pause_s for kind, one in hit if kind in CONTINUED]
    again = [one.longest_pause_s for kind, one in hit if kind not in CONTINUED and one.whole]
    lost = [one.longest_pause_s for _, one in hit if one.errors]
    groups = {"continued": continued, "made again": again, "lost": lost}
    return {f"pause s, {name}": f"{median(found):.2f} to {max(found):.2f}" for name, found in groups.items() if found}
