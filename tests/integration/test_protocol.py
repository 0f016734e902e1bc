"""The replica's end of a connection: what does not come is not waited for, and an answer that runs is left alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from api.__main__ import server_config
from api.protocol import Protocol
from shared.telemetry import Subject, subject
from tests.hostile.sending import code_of
from tests.support.stack import eventually

POST = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
CLOSE = b"\r\nConnection: close\r\n\r\n"
STALL_S = 0.3


class Impatient(Protocol):
    stall_s = STALL_S


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, then answers in four parts that take longer than a client may be silent."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(4):
        await send({"type": "http.response.body", "body": b"part %d;" % number, "more_body": True})
        await asyncio.sleep(STALL_S / 2)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(app, port=0, http=Impatient, lifespan="off", log_config=None, timeout_keep_alive=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    await eventually(lambda: server.started, 30, "the server listens")
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


async def test_a_pipelined_request_has_nothing_of_the_one_before_in_its_log_lines() -> None:
    seen: list[Subject] = []

    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        seen.append(subject.get())
        subject.set(Subject("req_of_the_first", "", ""))
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    config = server_config(telling, 1)
    config.port = 0
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    await eventually(lambda: server.started, 10, "the server listens")
    one = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    back, _ = await said(server.servers[0].sockets[0].getsockname()[1], one + one.replace(b"\r\n\r\n", CLOSE))
    server.should_exit = True
    await serving
    assert back.count(b"HTTP/1.1 200 OK") == 2
    assert [found.request_id for found in seen] == ["", ""]


async def said(port: int, *parts: bytes, pause_s: float = 0.0) -> tuple[bytes, float]:
    """Everything that comes back until the connection is closed, and the longest that the client was silent, in s."""
    began_s, longest_s = time.monotonic(), 0.0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(pause_s)
        longest_s, began_s = max(longest_s, time.monotonic() - began_s), time.monotonic()
    async with asyncio.timeout(10):
        back = await reader.read()
    writer.close()
    return back, longest_s


@pytest.mark.parametrize("sent", [POST, POST + b"1234", POST[:20], b"POST"])
async def test_a_request_whose_rest_does_not_come_is_a_408(port: int, sent: bytes) -> None:
    back, _ = await said(port, sent)
    head, _, body = back.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"connection: close" in head
    assert code_of(body) == "request_timeout"
    assert (b'"type":"error"' in body) is (b"/v1/messages" in sent), "in the envelope of its path"


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
async def test_who_says_nothing_is_hung_up_on(port: int, sent: bytes) -> None:
    assert (await said(port, sent))[0] == b""


async def test_a_slow_client_and_a_slow_answer_have_all_their_time(port: int) -> None:
    pieces = [POST[:10], POST[10:40], POST[40:], b"123", b"456", b"789"]
    for _ in range(5):
        back, longest_s = await said(port, *pieces, pause_s=STALL_S / 2)
        if longest_s < 0.9 * STALL_S:  # else the machine stood still, and a 408 would be right
            break
    assert back.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"part 3;" in back
    assert back.endswith(b"0\r\n\r\n")


async def test_what_is_no_http_cuts_an_answer_that_runs_and_does_not_stand_in_it(port: int) -> None:
    back, _ = await said(port, POST + b"123456789", b"no HTTP\r\n\r\n", pause_s=STALL_S / 3)
    assert back.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"part 0;" in back
    assert b"400" not in back
    assert not back.endswith(b"0\r\n\r\n"), "the client sees that it was cut"
