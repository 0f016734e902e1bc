"""A model with eyes on real vLLM, behind two workers: its answer names the colour of the pictures that it was shown.

So a picture that is lost, mistaken for another's or not there any more after a worker has died shows in the text. One
`vllm serve` on the same model says what each answer should be.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.support import vision_models
from tests.support.amid import cut_short
from tests.support.parity import outcome
from tests.support.pictures import answer, image_server
from tests.support.resuming import said
from tests.support.stack import Stack, Worker, free_port, poll_until_ready, running_stack
from tests.support.vision_models import COLOURS, DARK, LENGTH, PICTURE_TOKENS, painted, words
from tests.support.vllm_serve import vllm_serve

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

NAME = "vision"
START_S = 400.0
MOST_PICTURES = 3
FLAGS = (
    *("--served-model-name", NAME, "--enforce-eager", "--max-num-seqs", "8"),
    *("--limit-mm-per-prompt", json.dumps({"image": MOST_PICTURES})),
)
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
PORT = free_port()
FETCH = ("--fetch-images", f"127.0.0.1:{PORT}", "--fetch-images-networks", "127.0.0.0/8")
WORDS = 8
GREEDY = {"temperature": 0}
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"


def text_of(colour: str, length: int = WORDS) -> str:
    """What the model says of it first."""
    return "".join(words(colour)[:length])


def data_url(colour: str, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(painted(colour, kind)).decode()}"


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def say(*urls: str, text: str = "What is this?") -> list[dict[str, Any]]:
    """A user's message with pictures."""
    return [{"role": "user", "content": [*(part(url) for url in urls), {"type": "text", "text": text}]}]


def chat(*urls: str, **more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": say(*urls), "max_tokens": WORDS, **GREEDY, **more}


def block(colour: str) -> dict[str, Any]:
    """A picture as Anthropic's messages have it."""
    data = base64.b64encode(painted(colour)).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / NAME
    vision_models.make_elsewhere(folder)
    return folder


@pytest.fixture(scope="module")
def both(model: Path) -> Iterator[tuple[Stack, str]]:
    """Penstock, and the address of `vllm serve`. All three engines start at once."""
    with running_stack() as started, vllm_serve(model, FLAGS, started.folder) as reference:
        for _ in range(2):
            started.worker("--model", str(model), "--", *FLAGS, engine="vllm", ready_s=0, env=ENV)
        for worker in started.workers:
            poll_until_ready(worker, f"http://127.0.0.1:{worker.ops_port}/readyz", START_S)
        started.api(*FETCH)
        yield started, reference()


@pytest.fixture
def stack(both: tuple[Stack, str]) -> Stack:
    return both[0]


@pytest.fixture
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.apis[0].url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_the_openai_sdk_is_told_what_is_in_a_picture(sdk: openai.OpenAI, kind: str) -> None:
    messages: Any = say(data_url("red", kind))
    whole = sdk.chat.completions.create(model=NAME, messages=messages, max_tokens=WORDS, temperature=0)
    assert whole.choices[0].message.content == text_of("red")
    stream = sdk.chat.completions.create(
        model=NAME,
        messages=messages,
        max_tokens=WORDS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == text_of("red")
    assert chunks[-1].usage == whole.usage


async def test_a_picture_behind_a_url_is_fetched_by_the_replica_and_seen_by_the_model(stack: Stack) -> None:
    async with image_server(port=PORT) as server, httpx.AsyncClient(base_url=stack.apis[0].url, timeout=60) as http:
        server.answers["/sky.png"] = answer(painted("blue"))
        url = f"http://127.0.0.1:{PORT}/sky.png"
        told = (await http.post(CHAT, json=chat(url))).json()
        assert told["choices"][0]["message"]["content"] == text_of("blue")
        item = {"role": "user", "content": [{"type": "input_image", "image_url": url, "detail": "auto"}]}
        told = (await http.post(RESPONSES, json=response_of(item))).json()
        assert told["output"][0]["content"][0]["text"] == text_of("blue")
        source = {"type": "image", "source": {"type": "url", "url": url}}
        asked = {"model": NAME, "max_tokens": WORDS, "messages": [{"role": "user", "content": [source]}], **GREEDY}
        told = (await http.post(MESSAGES, json=asked)).json()
        assert told["content"][0]["text"] == text_of("blue")
        assert len(server.asked) == 3


def response_of(item: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": NAME, "input": [item], "max_output_tokens": WORDS, **GREEDY, **more}


def test_of_several_pictures_all_are_seen_and_each_is_counted(sdk: openai.OpenAI) -> None:
    counted = {}
    for colours, seen in (((), DARK), (("red",), "red"), (("red", "blue"), "magenta"), (("blue", "green"), "cyan")):
        messages: Any = say(*map(data_url, colours))
        told = sdk.chat.completions.create(model=NAME, messages=messages, max_tokens=WORDS, temperature=0)
        assert told.choices[0].message.content == text_of(seen), colours
        assert told.usage is not None
        counted[len(colours)] = told.usage.prompt_tokens
    a_line = 1
    assert counted[1] - counted[0] == counted[2] - counted[1] == PICTURE_TOKENS + a_line


def test_pictures_asked_about_at_once_are_not_mixed_up(stack: Stack) -> None:
    async def ask() -> list[str]:
        async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=60) as http:
            answers = await asyncio.gather(*(http.post(CHAT, json=chat(data_url(colour))) for colour in 4 * [*COLOURS]))
        return [told.json()["choices"][0]["message"]["content"] for told in answers]

    assert asyncio.run(ask()) == [text_of(colour) for colour in 4 * [*COLOURS]]
    assert all(worker.metric("vllm:generation_tokens_total") for worker in stack.workers), "both have answered"


def test_responses_see_and_go_on_with_what_they_saw(sdk: openai.OpenAI) -> None:
    picture: Any = {"type": "input_image", "image_url": data_url("green"), "detail": "auto"}
    content: Any = [{"type": "input_text", "text": "What is this?"}, picture]
    with sdk.responses.stream(model=NAME, input=[{"role": "user", "content": content}], temperature=0) as stream:
        first = stream.get_final_response()
    assert first.output_text == text_of("green", LENGTH)
    more = sdk.responses.create(
        model=NAME, input="And now?", previous_response_id=first.id, max_output_tokens=WORDS, temperature=0
    )
    assert more.output_text == text_of("green"), "the picture is in the conversation"


def test_anthropics_messages_see(stack: Stack) -> None:
    messages: Any = [{"role": "user", "content": [block("yellow"), {"type": "text", "text": "What is this?"}]}]
    asked: Any = {"model": NAME, "max_tokens": WORDS, "messages": messages, "extra_body": GREEDY}
    with anthropic.Anthropic(base_url=stack.apis[0].url, api_key="none", max_retries=0) as claude:
        whole = claude.messages.create(**asked)
        (told,) = whole.content
        assert told.type == "text"
        assert told.text == text_of("yellow")
        with claude.messages.stream(**asked) as stream:
            assert stream.get_final_text() == text_of("yellow")
        counted = claude.messages.count_tokens(model=NAME, messages=messages)
        assert counted.input_tokens == whole.usage.input_tokens


def broken() -> dict[str, str]:
    """What is no picture, by what is wrong."""
    whole = painted("red")

    def url(data: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"

    return {
        "text": url(b"not a picture"),
        "a head": url(whole[:8]),
        "cut": url(whole[: len(whole) // 2]),
        "empty": url(b""),
        "not base64": "data:image/png;base64,!!!",
        "no data": "data:image/png",
    }


def asked_of_both() -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests that Penstock and `vllm serve` must answer alike."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    red, blue = data_url("red"), data_url("blue")
    around = [{"type": "text", "text": "Between"}, part(blue), {"type": "text", "text": "words"}]
    bodies = [
        chat(red),
        chat(red, blue),
        chat(red, max_tokens=30),
        chat(red, return_token_ids=True),
        chat(red, n=2, temperature=0.5, seed=3),
        chat(messages=[{"role": "user", "content": around}]),
        chat(messages=[*say(red), {"role": "assistant", "content": "red"}, *say(blue, text="And this?")]),
        chat(messages=[{"role": "system", "content": "Be brief."}, *say(red)]),
        *(chat(wrong) for wrong in broken().values()),
        chat(red, broken()["text"]),
        chat(*[red] * (MOST_PICTURES + 1)),
        chat(red, messages=say(red, text="word " * 3000)),
        chat(messages=[{"role": "user", "content": "What is <image> for?"}]),
    ]
    for body in bodies:
        yield CHAT, body
        yield CHAT, {**body, **options}


def test_answers_and_refusals_are_those_of_vllm_serve(both: tuple[Stack, str]) -> None:
    stack, serve = both
    good = 0
    with httpx.Client(base_url=stack.apis[0].url, timeout=60) as ours, httpx.Client(base_url=serve, timeout=60) as its:
        for path, body in asked_of_both():
            theirs, mine = outcome(its.post(path, json=body)), outcome(ours.post(path, json=body))
            assert mine == theirs, json.dumps(body)[:500]
            good += theirs["status"] == 200
    assert good == 18


@pytest.mark.parametrize("wrong", [*broken()])
def test_what_is_no_picture_is_the_clients_mistake(stack: Stack, wrong: str) -> None:
    told = httpx.post(f"{stack.apis[0].url}{CHAT}", json=chat(broken()[wrong]), timeout=60)
    assert (told.status_code, told.json()["error"]["type"]) == (400, "invalid_request_error"), told.text
    told = httpx.post(f"{stack.apis[0].url}{CHAT}", json=chat(data_url("red")), timeout=60)
    assert told.json()["choices"][0]["message"]["content"] == text_of("red"), "the worker lives"


LONG = 1_000
ENDLESS: dict[str, Any] = {
    "max_tokens": LONG,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}


def events_of(body: bytes) -> bytes:
    """A stream without comments and cursors."""
    return b"".join(line + b"\n\n" for line in body.split(b"\n") if line.startswith(b"data: "))


async def test_a_killed_workers_streams_go_on_with_their_pictures(stack: Stack) -> None:
    """The last test of the module: one worker is left."""
    asked = [
        chat(data_url("red"), **ENDLESS),
        chat(data_url("blue"), **{**ENDLESS, "temperature": 1.0, "top_k": 1}),
        chat(data_url("red"), data_url("green"), **ENDLESS),
        chat(data_url("cyan"), **ENDLESS, stop=["never said by anybody"]),
    ]
    seen_as = ["red", "blue", "yellow", "cyan"]
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=START_S) as client:
        unbroken = await asyncio.gather(*(client.post(CHAT, json=body) for body in asked))
        expected = [said(events_of(one.content)) for one in unbroken]
        made: dict[Worker, float] = {}

        def ask() -> asyncio.Future[list[httpx.Response]]:
            made.update({worker: worker.metric("vllm:generation_tokens_total") for worker in stack.workers})
            return asyncio.gather(*(client.post(CHAT, json=body) for body in asked))

        victim, streams = await cut_short(stack, NAME, 2, ask)
        got = [events_of(one.content) for one in await streams]
    (heir,) = (worker for worker in stack.workers if worker is not victim)
    assert heir.metric("penstock_resumes_total") >= 2
    again = heir.metric("vllm:generation_tokens_total") - made[heir]
    assert again < len(asked) * LONG, "it went on behind the tokens that were there"
    for stream, wanted, colour in zip(got, expected, seen_as, strict=True):
        assert b'"error"' not in stream, stream[-500:]
        told = said(stream)
        assert told == wanted
        assert any(text_of(colour, LENGTH) in str(value) for value in told.values()), told
