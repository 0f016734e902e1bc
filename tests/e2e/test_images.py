"""Images by URL, on real processes with the sim engine: what Redis and so a worker gets has the images themselves."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec
import pytest
import redis

from shared.wire import Request
from tests.support.pictures import DATA, ImageServer, answer, image_server
from tests.support.stack import Stack, eventually, free_port, running_stack

PORT = free_port()
URL = f"http://127.0.0.1:{PORT}/one.png"
FETCH = (
    "--fetch-images",
    f"127.0.0.1:{PORT}",
    "--fetch-images-networks",
    "127.0.0.0/8",
    "--fetch-images-timeout-s",
    "5",
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Two replicas: one that fetches from the test's server, one as it is by default. The worker takes its time."""
    with running_stack() as started:
        started.worker("--model", "sim-model", "--", "--ttft-ms", "400", "--itl-ms", "1", "--slots", "64")
        started.api(*FETCH)
        started.api()
        yield started


@pytest.fixture
async def server() -> AsyncIterator[ImageServer]:
    async with image_server(port=PORT) as running:
        yield running


def chat(url: str = URL, **more: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 5, **more}


def bodies(stack: Stack) -> list[bytes]:
    """The bodies that stand in Redis for workers."""
    with redis.Redis(port=stack.redis_port) as client:
        kept = [client.get(key) for key in client.scan_iter("ps:*:b:req_*")]
    return [msgspec.msgpack.decode(one, type=Request).body for one in kept if isinstance(one, bytes)]


async def body_of(stack: Stack, http: httpx.AsyncClient, path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What a worker gets for a request, which is answered well."""
    seen: list[bytes] = []

    def there() -> bool:
        seen.extend(bodies(stack))
        return bool(seen)

    (worker,) = stack.workers
    worker.popen.send_signal(signal.SIGSTOP)  # or it might be done with it before anybody looks
    try:
        answering = asyncio.create_task(http.post(path, json=asked))
        await eventually(lambda: there() or answering.done(), 60, "the request was admitted or refused")
    finally:
        worker.popen.send_signal(signal.SIGCONT)
    done = await answering
    assert done.status_code == 200, done.text
    assert seen, "it was answered before anybody looked"
    assert URL.encode() not in b"".join(seen)
    body = json.loads(seen[-1])
    assert isinstance(body, dict)
    return body


async def test_a_worker_gets_the_image_and_never_its_url(
    stack: Stack, http: httpx.AsyncClient, server: ImageServer
) -> None:
    told = await body_of(stack, http, "/v1/chat/completions", chat(temperature=0))
    assert told == chat(DATA, temperature=0)
    item = {"role": "user", "content": [{"type": "input_image", "image_url": URL, "detail": "auto"}]}
    told = await body_of(stack, http, "/v1/responses", {"input": [item]})
    assert told["input"][0]["content"][0]["image_url"] == DATA
    block = {"type": "image", "source": {"type": "url", "url": URL}}
    said = [{"role": "user", "content": [block, {"type": "text", "text": "?"}]}]
    told = await body_of(stack, http, "/v1/messages", {"model": "sim-model", "messages": said, "max_tokens": 5})
    source = {"type": "base64", "media_type": "image/png", "data": DATA.partition(",")[2]}
    assert told["messages"][0]["content"][0] == {"type": "image", "source": source}
    assert len(server.asked) == 3


async def test_a_stored_response_shows_the_url_as_it_was_sent_and_goes_on_with_it(
    http: httpx.AsyncClient, server: ImageServer
) -> None:
    item = {"role": "user", "content": [{"type": "input_image", "image_url": URL, "detail": "auto"}]}
    first = (await http.post("/v1/responses", json={"input": [item]})).json()
    listed = (await http.get(f"/v1/responses/{first['id']}/input_items")).json()
    assert listed["data"][0]["content"][0]["image_url"] == URL
    more = {"input": "And?", "previous_response_id": first["id"]}
    assert (await http.post("/v1/responses", json=more)).status_code == 200
    assert len(server.asked) == 2


async def test_a_retry_joins_its_request_without_fetching_again(http: httpx.AsyncClient, server: ImageServer) -> None:
    headers = {"Idempotency-Key": "picture"}
    first, joined = await asyncio.gather(
        http.post("/v1/chat/completions", json=chat(), headers=headers),
        http.post("/v1/chat/completions", json=chat(), headers=headers),
    )
    server.answers["/one.png"] = answer(b"", "", "403 Forbidden")  # as a signed URL that has run out
    asked = len(server.asked)
    again = await http.post("/v1/chat/completions", json=chat(), headers=headers)
    assert (again.status_code, again.headers["idempotency-status"]) == (200, "replayed")
    assert first.content == joined.content == again.content
    assert len(server.asked) == asked
    other = await http.post("/v1/chat/completions", json=chat(f"{URL}?2"), headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_mismatch")
    new = await http.post("/v1/chat/completions", json=chat(), headers={"Idempotency-Key": "another"})
    assert (new.status_code, new.json()["error"]["code"]) == (422, "image_not_fetched")


async def test_what_cannot_be_fetched_leaves_nothing_behind(
    stack: Stack, http: httpx.AsyncClient, server: ImageServer
) -> None:
    server.answers["/text"] = answer(b"secret", "text/plain")
    refused = await http.post("/v1/chat/completions", json=chat(URL.replace("one.png", "text")))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (422, "image_not_fetched", "invalid_request_error")
    assert error["param"] == "messages.0.content.1.image_url"
    assert refused.headers["x-should-retry"] == "false"
    assert bodies(stack) == []


async def test_the_clients_deadline_counts(http: httpx.AsyncClient, server: ImageServer) -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.wait_for(writer.wait_closed(), 20)

    server.answers["/silent"] = silent
    body = chat(URL.replace("one.png", "silent"))
    late = await http.post("/v1/chat/completions", json=body, headers={"X-Request-Timeout-Ms": "300"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_by_default_nothing_is_fetched_and_data_urls_pass(stack: Stack, server: ImageServer) -> None:
    async with httpx.AsyncClient(base_url=stack.apis[1].url, timeout=30) as plain:
        refused = await plain.post("/v1/chat/completions", json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request_error")
        assert (await plain.post("/v1/chat/completions", json=chat(DATA))).status_code == 200
    assert server.asked == []
