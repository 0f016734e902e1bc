"""A replica that is stopped: what its clients see, and where they go on."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tests.support.stack import Api, eventually, running_stack
from worker.engines.sim_answers import answer_text

BODY = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 150}


def text_of(lines: list[str]) -> str:
    """The text in the events of a stream, as lines."""
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def last_cursor(lines: list[str]) -> str:
    return [line for line in lines if line.startswith("id: ")][-1][4:]


async def begun(api: Api) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request that the replica has begun to read, and that misses its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(json.dumps(BODY))}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
    return reader, writer


async def test_a_stream_that_outlives_the_drain_is_cut_visibly_and_goes_on_at_another_replica(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        worker = stack.worker("--", "--itl-ms", "40")
        first, second = stack.api("--drain-s", "1"), stack.api()
        lines: list[str] = []
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - the stream breaks in the midst
            async with client.stream("POST", f"{first.url}/v1/chat/completions", json={**BODY, "stream": True}) as cut:
                rid = cut.headers["x-penstock-request"]
                stopping: asyncio.Task[int] | None = None
                async for line in cut.aiter_lines():
                    lines.append(line)
                    if stopping is None and line.startswith("data:"):
                        stopping = asyncio.create_task(asyncio.to_thread(first.stop))
        assert "retry: 200" in lines
        assert "data: [DONE]" not in lines
        assert not any("error" in line for line in lines)
        assert stopping is not None
        assert await stopping == 0
        headers = {"Last-Event-ID": last_cursor(lines)}
        async with client.stream("GET", f"{second.url}/v1/requests/{rid}/events", headers=headers) as rest:
            later = [line async for line in rest.aiter_lines()]
        assert later[-2] == "data: [DONE]"
        assert text_of(lines) + text_of(later) == answer_text(rid, 150)
        assert text_of(lines)
        assert text_of(later)
        assert worker.metric("penstock_attempts_total", outcome="cancelled") == 0


async def test_a_draining_replica_takes_nothing_new_and_ends_what_fits(client: httpx.AsyncClient) -> None:
    with running_stack() as stack:
        stack.worker("--", "--itl-ms", "10")
        api = stack.api("--drain-s", "20")
        body = {**BODY, "max_tokens": 600}
        asked = asyncio.create_task(client.post(f"{api.url}/v1/chat/completions", json=body))
        await eventually(lambda: api.metric("penstock_streams_open") == 1, 30, "the request runs")
        reader, writer = await begun(api)
        stopping = asyncio.create_task(asyncio.to_thread(api.stop))
        await eventually(lambda: "draining" in api.log.read_text(), 30, "it is told")
        writer.write(json.dumps(BODY).encode())
        refused = (await reader.read()).decode()
        writer.close()
        assert refused.startswith("HTTP/1.1 503")
        assert '"broker_unavailable"' in refused
        assert "x-should-retry: true" in refused
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{api.url}/livez")
        assert not asked.done()
        answer = await asked
        assert answer.status_code == 200
        assert await stopping == 0


async def test_a_whole_answer_that_outlives_the_drain_is_refused_and_the_sdks_retry_joins_it(
    client: httpx.AsyncClient,
) -> None:
    with running_stack() as stack:
        worker = stack.worker("--", "--itl-ms", "30")
        first, second = stack.api("--drain-s", "0.5"), stack.api()
        asked = asyncio.create_task(client.post(f"{first.url}/v1/chat/completions", json=BODY))
        await eventually(lambda: worker.metric("penstock_attempts_running") == 1, 30, "the request runs")
        stopping = asyncio.create_task(asyncio.to_thread(first.stop))
        refused = await asked
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "broker_unavailable")
        assert refused.headers["x-should-retry"] == "true"
        retry = {"x-stainless-retry-count": "1"}
        again = await client.post(f"{second.url}/v1/chat/completions", json=BODY, headers=retry)
        assert again.headers["idempotency-status"] == "coalesced"
        rid = again.headers["x-penstock-request"]
        assert again.json()["choices"][0]["message"]["content"] == answer_text(rid, 150)
        assert await stopping == 0
        assert worker.metric("penstock_attempts_total", outcome="succeeded") == 1
