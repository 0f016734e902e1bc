"""The short way to the socket, on a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Self

import httpx
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from api.transport import socket_writer


class Served:
    """A uvicorn that runs `body(send)` for each request, after the head of a chunked response."""

    def __init__(self, body: Callable[[Send], object], *, http: str = "httptools") -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._body = body
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app, http=http, interface="asgi3", lifespan="off", ws="none", log_config=None, access_log=False
            )  # type: ignore[arg-type]
        )

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        result = self._body(send)
        if asyncio.iscoroutine(result):
            await result
        await send({"type": "http.response.body", "body": b"end", "more_body": False})

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started:
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        await self._task


async def test_what_is_written_past_the_server_arrives_in_order_as_one_body() -> None:
    def body(send: Send) -> None:
        write = socket_writer(send)
        assert write is not None, "uvicorn has changed: events take the long way now"
        for number in range(100):
            assert write(b"%d," % number)

    async with Served(body) as served, httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{served.port}/")
    assert answer.content == b"".join(b"%d," % number for number in range(100)) + b"end"


async def test_for_a_client_that_does_not_read_the_writer_declines_instead_of_filling_memory() -> None:
    written = asyncio.get_running_loop().create_future()

    async def body(send: Send) -> None:
        write = socket_writer(send)
        assert write is not None
        taken = 0
        while taken < 10_000 and write(b"x" * 65_536):
            taken += 1
        written.set_result(taken)

    async with Served(body) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        taken = await asyncio.wait_for(written, 10)
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    assert 0 < taken < 1_000


async def test_with_another_protocol_implementation_there_is_no_short_way() -> None:
    seen: list[object] = []

    def body(send: Send) -> None:
        seen.append(socket_writer(send))

    async with Served(body, http="h11") as served, httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{served.port}/")).content == b"end"
    assert seen == [None]


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def cycle_of(send: Send) -> RequestResponseCycle:
    """What uvicorn knows about the request."""
    cycle = getattr(send, "__self__", None)
    assert isinstance(cycle, RequestResponseCycle)
    return cycle


async def written_until_gone(requests: bytes) -> RequestResponseCycle:
    """Writes to a client that has sent `requests` and hangs up. The first request, once its writer declines."""
    declined: asyncio.Future[RequestResponseCycle] = asyncio.get_running_loop().create_future()

    async def body(send: Send) -> None:
        write = socket_writer(send)
        assert write is not None
        try:
            async with asyncio.timeout(5):
                while write(b"x"):
                    await asyncio.sleep(0)
                for _ in range(3):
                    assert not write(b"later"), "it has declined and takes more"
        except Exception as error:
            declined.set_exception(error)
            raise
        declined.set_result(cycle_of(send))

    async with Served(body) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(requests)
        await asyncio.wait_for(reader.readuntil(b"x\r\n"), 5)
        writer.transport.abort()
        cycle = await asyncio.wait_for(declined, 10)
    assert cycle.transport.is_closing(), "it was slow, not gone"
    assert cycle.transport.get_write_buffer_size() == 0
    return cycle


def test_to_a_client_that_is_gone_the_writer_writes_nothing() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(written_until_gone(GET)).disconnected


def test_nor_when_uvicorn_tells_only_a_later_request_of_the_connection_that_it_is_lost() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert not runner.run(written_until_gone(2 * GET)).disconnected
