"""The benchmark's load client and its simulated engine, wired to each other without sockets."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from scripts.bench import backend, connection, load
from scripts.bench.window import Window, overlap_ratio, percentile_ms


class Wire(asyncio.Transport):
    """A transport that remembers what is written, and hands it to `peer` in a later turn of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.peer: asyncio.Protocol | None = None
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(data)
        if self.peer is not None:
            asyncio.get_running_loop().call_soon(self.peer.data_received, data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del high, low


class Client:
    """A client connection with its window open, and a transport that goes nowhere."""

    def __init__(self, *flags: str) -> None:
        options = load.parse(["127.0.0.1:1", "--tokens", "3", *flags])
        self.window = Window()
        self.window.from_s, self.window.to_s = time.monotonic() - 1, time.monotonic() + 60
        self.answers = 0
        self.lost = 0
        self.connection = connection.Connection(
            options, self.window, connection.build_request(options), self._answered, self._lost
        )
        self.wire = Wire()
        self.connection.connection_made(self.wire)

    def _answered(self, _: connection.Connection) -> None:
        self.answers += 1

    def _lost(self, _: connection.Connection) -> None:
        self.lost += 1

    def receive(self, *pieces: bytes) -> None:
        self.connection.send()
        for piece in pieces:
            self.connection.data_received(piece)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n\r\n0\r\n\r\n"


def clock_event() -> bytes:
    return b'data: {"content":"~%013x"}\n\n' % (time.monotonic_ns() // 1000)


async def answered(client: Client) -> None:
    for _ in range(200):
        if client.answers:
            return
        await asyncio.sleep(0)
    pytest.fail("the simulated engine did not answer")


@pytest.mark.parametrize("flags", [(), ("--no-stream",)])
async def test_the_client_understands_every_token_of_the_simulated_engine(flags: tuple[str, ...]) -> None:
    client = Client(*flags)
    engine = backend.Engine(asyncio.get_running_loop(), 0, 0)
    server, back = backend.Connection(engine, 128), Wire()
    client.wire.peer, back.peer = server, client.connection
    server.connection_made(back)
    client.connection.send()
    await answered(client)
    assert client.window.errors.total() == 0
    assert client.window.tokens == 3
    assert client.window.done == 1


def test_tokens_that_come_in_one_read_are_all_counted_and_the_gaps_between_them_are_nought() -> None:
    client = Client()
    client.receive(HEAD + clock_event(), clock_event() + clock_event(), DONE)
    assert client.window.tokens == 3
    assert client.window.reads == 2
    assert client.window.zero_gaps == 1
    assert client.window.done == 1


def test_a_stream_without_its_last_token_is_an_error() -> None:
    client = Client()
    client.receive(HEAD + clock_event() + clock_event(), DONE)
    assert client.window.errors == {"tokens": 1}
    assert client.window.done == 0


def test_a_stream_without_done_is_an_error() -> None:
    client = Client()
    client.receive(HEAD + clock_event() + clock_event() + clock_event(), b"\r\n0\r\n\r\n")
    assert client.window.errors == {"no_done": 1}


async def test_a_refusal_is_an_error_and_the_next_request_waits() -> None:
    client = Client()
    client.receive(b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\nno")
    assert client.window.errors == {"http_503": 1}
    assert client.answers == 0


def test_a_connection_that_is_cut_in_an_answer_is_an_error_and_is_replaced() -> None:
    client = Client()
    client.receive(HEAD + clock_event())
    client.connection.connection_lost(ConnectionResetError())
    assert client.window.errors == {"cut": 1}
    assert client.lost == 1


def test_a_real_engines_tokens_are_those_of_its_usage_however_its_events_are_merged() -> None:
    client = Client("--count", "usage")
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}\n\n'
    client.receive(HEAD + b'data: {"x":1}\n\n', usage + DONE)
    assert client.window.errors.total() == 0
    assert client.window.tokens == pytest.approx(3)
    short = Client("--count", "usage")
    short.receive(HEAD, usage.replace(b'completion_tokens":3', b'completion_tokens":2') + DONE)
    assert short.window.errors == {"tokens": 1}


def test_an_answer_counts_for_the_window_by_the_share_of_its_time_in_it() -> None:
    assert overlap_ratio(0, 10, 5, 100) == pytest.approx(0.5)
    assert overlap_ratio(0, 10, 2, 4) == pytest.approx(0.2)
    assert overlap_ratio(0, 10, 20, 30) == 0


def test_nothing_counts_outside_the_window() -> None:
    client = Client()
    client.window.to_s = client.window.from_s
    client.receive(HEAD + clock_event() + clock_event(), DONE)
    assert client.window.tokens == 0
    assert client.window.errors.total() == 0


def test_a_percentile_knows_the_noughts_that_were_not_written_down() -> None:
    assert percentile_ms([], 0.5) is None
    assert percentile_ms([0.001, 0.002, 0.003], 0.5) == pytest.approx(2)
    assert percentile_ms([0.001], 0.5, zeros=9) == 0
    assert percentile_ms([0.001], 0.99, zeros=9) == pytest.approx(1)


def test_the_window_reports_rates_of_its_own_length() -> None:
    window = Window()
    window.from_s, window.to_s = 10.0, 14.0
    window.tokens, window.done = 400, 8
    figures = cast("dict[str, Any]", window.figures())
    assert figures["tok_s"] == 100
    assert figures["req_s"] == 2
