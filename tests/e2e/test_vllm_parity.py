"""An answer through Penstock is the answer of `vllm serve`: the same tokens, the same fields, the same usage.

The two have the same model and the same flags; the reference is asked first and its answers are kept. Only
what names one exchange may differ: ids, times, and the fingerprint of the configuration.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support import parity
from tests.support.engines import engine_processes, lives, text_of
from tests.support.stack import Stack, poll_until_ready, running_stack
from tests.support.tiny_models import model_folder
from tests.support.vllm_serve import vllm_serve

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

START_S = 400.0
NAME = "parity"
FLAGS = (
    *("--served-model-name", NAME, "--enforce-eager", "--max-num-seqs", "8"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
)
_SUBJECTS = ("queue", "worker", "stream", "lane", "lease", "replica", "token", "log", "cursor", "gate")
_QUESTIONS = ("What is a {}?", "Why does the {} stop?", "{}", "Explain the {} to a child.", "List: {}, {}, {}")
PROMPTS = [question.format(*[subject] * 3) for question in _QUESTIONS for subject in _SUBJECTS]
REFUSED: list[dict[str, Any]] = [
    {"max_tokens": -1},
    {"temperature": 9},
    {"top_p": 2},
    {"messages": [{"role": "user", "content": "word " * 3000}]},  # over twice the context the replica refuses it itself
    {"tools": []},
]
_OWN = {"id", "created", "system_fingerprint"}


def bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    """All requests: every prompt as chat and as completion, streamed and not."""
    fixed: dict[str, Any] = {"model": NAME, "max_tokens": 16, "temperature": 0, "return_token_ids": True}
    for prompt in PROMPTS:
        for stream in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
            chat = [{"role": "user", "content": prompt}]
            yield "/v1/chat/completions", {**fixed, **stream, "messages": chat}
            yield "/v1/completions", {**fixed, **stream, "prompt": prompt}


def without_names(value: dict[str, Any]) -> dict[str, Any]:
    return {key: field for key, field in value.items() if key not in _OWN}


def stream_of(text: str) -> dict[str, Any]:
    """A stream in a form that does not depend on where an engine under load cuts its deltas."""
    events = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    return {
        "first": without_names(chunks[0]) if "delta" in choices[0] else sorted(chunks[0]),
        "last": without_names(chunks[-1]),
        "text": text_of(choices),
        "token_ids": [token for choice in choices for token in choice.get("token_ids") or ()],
        "ends": [(choice["finish_reason"], choice.get("stop_reason")) for choice in choices if choice["finish_reason"]],
        "fields": sorted({tuple(sorted(without_names(chunk))) for chunk in chunks}),
        "choice_fields": sorted({tuple(sorted(choice)) for choice in choices}),
        "delta_fields": sorted({tuple(sorted(choice["delta"])) for choice in choices if "delta" in choice}),
    }


def answers(url: str) -> list[dict[str, Any]]:
    """What the server at `url` answers to all requests, one after the other."""
    got = []
    with httpx.Client(base_url=url, timeout=60) as client:
        for path, body in bodies():
            response = client.post(path, json=body)
            assert response.status_code == 200, response.text
            got.append(stream_of(response.text) if body.get("stream") else without_names(response.json()))
    return got


def refusals(url: str) -> list[tuple[int, str]]:
    """Status and message of requests that must be refused."""
    plain = {"model": NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    with httpx.Client(base_url=url, timeout=60) as client:
        got = [client.post("/v1/chat/completions", json={**plain, **wrong}) for wrong in REFUSED]
    return [(response.status_code, response.json()["error"]["message"]) for response in got]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def both(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, dict[str, Any]]]:
    """Penstock, and the answers of `vllm serve`, which has gone. The two start at once."""
    with running_stack() as started:
        worker = started.worker("--model", str(model), "--", *FLAGS, engine="vllm", ready_s=0)
        with vllm_serve(model, FLAGS, tmp_path_factory.mktemp("reference")) as ready:
            url = ready()
            said = {"outcomes": parity.outcomes(url, NAME), "differences": parity.differences(url, NAME)}
            said |= {"answers": answers(url), "refusals": refusals(url)}
        poll_until_ready(worker, f"http://127.0.0.1:{worker.ops_port}/readyz", START_S)
        started.api()
        yield started, said


@pytest.fixture
def stack(both: tuple[Stack, dict[str, Any]]) -> Stack:
    return both[0]


@pytest.fixture
def reference(both: tuple[Stack, dict[str, Any]]) -> dict[str, Any]:
    return both[1]


def test_every_answer_is_the_one_of_vllm_serve(stack: Stack, reference: dict[str, Any]) -> None:
    mine = answers(stack.apis[0].url)
    assert len(mine) == 4 * len(PROMPTS) == 200
    assert any(len(set(answer["token_ids"])) > 3 for answer in mine if "token_ids" in answer), (
        "the model says something"
    )
    for (path, body), theirs, ours in zip(bodies(), reference["answers"], mine, strict=True):
        assert ours == theirs, (path, body)


def test_what_vllm_refuses_is_refused_with_the_same_status_and_words(stack: Stack, reference: dict[str, Any]) -> None:
    for wrong, theirs, ours in zip(REFUSED, reference["refusals"], refusals(stack.apis[0].url), strict=True):
        assert ours == theirs, wrong
        assert ours[0] == 400


def test_every_parameter_does_what_it_does_on_vllm_serve(stack: Stack, reference: dict[str, Any]) -> None:
    mine = parity.outcomes(stack.apis[0].url, NAME)
    asked = list(parity.requests(NAME))
    assert len(asked) == len(mine) > 300
    theirs = reference["outcomes"]
    assert sum(one["status"] == 200 for one in theirs) > 100, "good ones"
    assert sum(one["status"] != 200 for one in theirs) > 80, "bad ones"
    wrong = [(path, body, a, b) for (path, body), a, b in zip(asked, theirs, mine, strict=True) if a != b]
    assert not wrong, "\n\n".join(f"{path} {body}\n  serve:    {a}\n  penstock: {b}" for path, body, a, b in wrong)


def test_where_penstock_answers_otherwise_it_is_on_purpose(stack: Stack, reference: dict[str, Any]) -> None:
    mine = parity.differences(stack.apis[0].url, NAME)
    for (path, body, status, why), theirs, ours in zip(parity.DIFFERENT, reference["differences"], mine, strict=True):
        assert ours["status"] == status, (path, body, ours)
        assert ours != theirs, f"no difference any more: {path} {body} ({why})"


def test_the_openai_sdk_chats_and_streams(stack: Stack) -> None:
    messages: Any = [{"role": "user", "content": "What is a queue?"}]
    with openai.OpenAI(base_url=f"{stack.apis[0].url}/v1", api_key="none", max_retries=0) as sdk:
        assert [model.id for model in sdk.models.list().data] == [NAME]
        whole = sdk.chat.completions.create(model=NAME, messages=messages, max_tokens=12, temperature=0)
        text = whole.choices[0].message.content
        chunks = list(
            sdk.chat.completions.create(model=NAME, messages=messages, max_tokens=12, temperature=0, stream=True)
        )
        assert text
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 12


def test_the_engines_metrics_are_among_the_workers(stack: Stack) -> None:
    worker = stack.workers[0]
    said = httpx.get(f"http://127.0.0.1:{worker.ops_port}/metrics", timeout=10).text
    about = [line for line in said.splitlines() if "generation_tokens" in line or line.startswith("penstock_attempts")]
    assert worker.metric("vllm:generation_tokens_total") > 0, about
    end_s = time.monotonic() + 30
    while worker.metric("vllm:num_requests_running") > 0:
        assert time.monotonic() < end_s, "the engine has no more to do"
        time.sleep(0.05)


def test_a_killed_worker_leaves_no_engine_process(stack: Stack) -> None:
    """The last test of the module: no worker is there afterwards."""
    worker = stack.workers[0]
    processes = engine_processes(worker.pid)
    assert processes
    os.kill(worker.pid, signal.SIGKILL)  # the process alone, not its group
    worker.popen.wait(30)
    end_s = time.monotonic() + 30
    while left := [pid for pid in processes if lives(pid)]:
        assert time.monotonic() < end_s, f"still there: {left}"
        time.sleep(0.02)
