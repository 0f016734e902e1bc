"""Several models at once: a pool for each, adapters in the pool of their base model, models without a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import redis
from openai import AsyncOpenAI

from tests.support.stack import Stack, eventually, running_stack

SAY: Any = [{"role": "user", "content": "count"}]
FAST = ("--ttft-ms", "5", "--itl-ms", "2")


@pytest.fixture
def stack() -> Iterator[Stack]:
    """Two models, one of them with two adapters."""
    with running_stack() as started:
        started.worker("--model", "zebra", "--", *FAST, "--adapters", "a-poet", "a-clerk", "--max-model-len", "1000")
        started.worker("--model", "lion", "--", *FAST)
        started.api()
        yield started


async def answered_by(sdk: AsyncOpenAI, model: str) -> str:
    answer = await sdk.chat.completions.create(model=model, messages=SAY, max_tokens=4)
    streamed = [chunk async for chunk in await sdk.completions.create(model=model, prompt="x", stream=True)]
    vectors = await sdk.embeddings.create(model=model, input="x")
    assert {answer.model, vectors.model, *(chunk.model for chunk in streamed)} == {answer.model}
    return answer.model


async def test_every_model_and_every_adapter_is_listed_and_answers_under_its_own_name(
    stack: Stack, sdk: AsyncOpenAI
) -> None:
    listed: dict[str, Any] = {model.id: model.to_dict() for model in (await sdk.models.list()).data}
    assert set(listed) == {"zebra", "a-poet", "a-clerk", "lion"}
    assert {card["penstock"]["state"] for card in listed.values()} == {"ready"}
    assert {name: card["parent"] for name, card in listed.items()} == {
        **dict.fromkeys(("zebra", "lion")),
        **dict.fromkeys(("a-poet", "a-clerk"), "zebra"),
    }
    for name, card in listed.items():
        assert await answered_by(sdk, name) == name
        assert (await sdk.models.retrieve(name)).to_dict() == card
    zebra, lion = stack.workers
    for worker, attempts in ((zebra, 9), (lion, 3)):
        await eventually(
            lambda one=worker, many=attempts: one.metric("penstock_attempts_total") == many, 30, "the ends"
        )  # type: ignore[misc]
    with redis.Redis.from_url(stack.redis_url) as server:
        pools: Any = server.hgetall("ps:pools")
    assert pools == {b"zebra": b"zebra", b"a-poet": b"zebra", b"a-clerk": b"zebra", b"lion": b"lion"}


async def test_who_names_no_model_gets_a_base_model_and_requests_know_their_names(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=30) as client:
        for _ in range(3):
            answer = await client.post("/v1/chat/completions", json={"messages": SAY, "max_tokens": 2})
            facts = (await client.get(f"/v1/requests/{answer.headers['x-penstock-request']}")).json()
            assert facts["model"] == answer.json()["model"]
            assert facts["model"] in {"zebra", "lion"}
        for name in ("a-poet", "zebra", "a-poet"):
            await client.post("/v1/chat/completions", json={"model": name, "messages": SAY, "max_tokens": 2})
        listed = (await client.get("/v1/requests", params={"model": "a-poet"})).json()["data"]
        assert [one["model"] for one in listed] == ["a-poet"] * 2


async def test_a_model_without_a_worker_is_listed_as_cold_until_one_comes_back(stack: Stack, sdk: AsyncOpenAI) -> None:
    warm: dict[str, Any] = {model.id: model.to_dict() for model in (await sdk.models.list()).data}
    assert stack.workers[0].stop() == 0

    async def states() -> dict[str, str]:
        return {model.id: model.to_dict()["penstock"]["state"] for model in (await sdk.models.list()).data}  # type: ignore[index]

    gone = {"zebra": "cold", "a-poet": "cold", "a-clerk": "cold", "lion": "ready"}
    await until(states, gone)
    cold: Any = (await sdk.models.retrieve("a-poet")).to_dict()
    assert 0 < cold["penstock"].pop("cold_start_s") < 60
    assert cold == {**warm["a-poet"], "penstock": {"state": "cold"}}, "what was said of it last"
    with pytest.raises(openai.InternalServerError) as refused:
        await sdk.chat.completions.create(model="a-poet", messages=SAY)
    assert (refused.value.status_code, refused.value.code) == (503, "no_capacity")
    assert await answered_by(sdk, "lion") == "lion"
    stack.worker("--model", "zebra", "--", *FAST, "--adapters", "a-poet", "--max-model-len", "1000")
    # the adapter that nobody brought back is known to nobody who could serve it
    await until(states, {"zebra": "ready", "a-poet": "ready", "lion": "ready"})
    assert await answered_by(sdk, "a-poet") == "a-poet"


async def until(look: Any, wanted: dict[str, str]) -> None:
    """Polls until a look shows what is wanted."""
    seen: dict[str, str] = {}

    async def looks() -> None:
        nonlocal seen
        while (seen := await look()) != wanted:
            await asyncio.sleep(0.05)

    try:
        async with asyncio.timeout(20):
            await looks()
    except TimeoutError:
        assert seen == wanted
