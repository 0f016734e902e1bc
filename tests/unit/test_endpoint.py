"""Whom the thin clients connect to when Sentinels say where the server is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from shared.endpoint import Endpoint
from shared.errors import BrokerUnavailableError
from shared.resp import CommandConnection

MASTER = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
SLAVE = b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$9\r\nconnected\r\n:0\r\n"
UNKNOWN = b"*-1\r\n"


class Answering:
    """A server that answers everything alike."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                self.asked.append(data)
                writer.write(self.answer)
        writer.close()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()


def naming(port: int) -> bytes:
    """A Sentinel's answer."""
    return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(port)), port)


@pytest.fixture
async def there() -> AsyncIterator[tuple[Answering, Answering, Answering]]:
    """Two Sentinels and a server."""
    one, two, server = Answering(UNKNOWN), Answering(UNKNOWN), Answering(MASTER)
    async with one.serving(), two.serving(), server.serving():
        yield one, two, server


def address(*ports: int) -> str:
    return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/mine/0"


async def test_the_first_sentinel_that_knows_a_master_is_believed_and_asked_first_from_then_on(
    there: tuple[Answering, Answering, Answering], unused_port: int
) -> None:
    one, two, server = there
    two.answer = naming(server.port)
    endpoint = Endpoint(address(unused_port, one.port, two.port))
    for _ in range(2):
        protocol = await endpoint.open(CommandConnection)
        assert await protocol.send(("ROLE",), 1) == [b"master", 0, []]
        protocol.abort()
    assert len(one.asked) == 1
    assert b"".join(two.asked).count(b"mine") == 2


async def test_a_server_that_says_itself_that_it_is_none_is_not_taken_for_the_master(
    there: tuple[Answering, Answering, Answering],
) -> None:
    one, two, server = there
    one.answer = two.answer = naming(server.port)
    server.answer = SLAVE
    endpoint = Endpoint(address(one.port, two.port))
    with pytest.raises(BrokerUnavailableError, match="which is a slave"):
        await endpoint.open(CommandConnection)
    server.answer = MASTER
    (await endpoint.open(CommandConnection)).abort()


async def test_without_any_sentinel_that_answers_the_broker_is_unavailable(unused_port: int) -> None:
    with pytest.raises(BrokerUnavailableError, match="no Sentinel knows a master mine"):
        await Endpoint(address(unused_port)).open(CommandConnection)


@pytest.fixture
def unused_port() -> int:
    """A port on which nobody listens."""
    return 1
