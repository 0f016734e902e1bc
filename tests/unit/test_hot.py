"""hot: the thin client, against a server inside the test that answers what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest
import redis.exceptions

from shared import hot
from shared.connection import translate
from shared.errors import BrokerUnavailableError, FencedError
from shared.frames import read_log
from shared.hot import HotClient, PushClient
from shared.keys import Keys
from shared.resp import ScriptMissingError, raise_reply
from tests.support.polling import eventually, serving


class FakeServer:
    """Takes commands; what it answers is the test's business.

    Attributes:
        commands: what has arrived, the greeting of each connection included.
        greets: whether greetings (CLIENT SETNAME …) are answered by themselves.
    """

    def __init__(self) -> None:
        self.commands: list[list[bytes]] = []
        self.greets = True
        self.connections: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def open(self) -> str:
        """Listens on a free port. Returns the URL."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        parser = hiredis.Reader()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    self._take(command, writer)
        writer.close()

    def _take(self, command: list[bytes], writer: asyncio.StreamWriter) -> None:
        self.commands.append(command)
        if self.greets and command[0] in {b"CLIENT", b"AUTH", b"SELECT"}:
            writer.write(b"+OK\r\n")

    def say(self, data: bytes) -> None:
        """Writes to the newest connection."""
        self.connections[-1].write(data)

    def names(self) -> list[bytes]:
        """The commands' names."""
        return [command[0] for command in self.commands]

    async def close(self) -> None:
        """Hangs up on everybody."""
        for writer in self.connections:
            writer.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    server = FakeServer()
    yield server
    await server.close()


@pytest.fixture
async def client(fake: FakeServer) -> AsyncIterator[HotClient]:
    """A connected client."""
    connected = HotClient(await fake.open(), "name")
    async with serving(connected):
        yield connected


async def arrived(fake: FakeServer, count: int) -> None:
    """Waits for commands, the greeting included."""
    await eventually(lambda: len(fake.commands) >= count, f"{count} commands")


async def test_a_connection_opens_with_its_name(fake: FakeServer, client: HotClient) -> None:
    assert fake.commands == [[b"CLIENT", b"SETNAME", client.name.encode()]]


async def test_a_password_and_a_database_come_before_the_name(fake: FakeServer) -> None:
    url = (await fake.open()).replace("redis://", "redis://user:secret@") + "/3"
    async with serving(HotClient(url, "name")):
        assert fake.commands[:2] == [[b"AUTH", b"user", b"secret"], [b"SELECT", b"3"]]
        assert fake.names() == [b"AUTH", b"SELECT", b"CLIENT"]


async def test_commands_leave_at_once_and_replies_come_in_their_order(fake: FakeServer, client: HotClient) -> None:
    waiting = [asyncio.ensure_future(client.send("GET", f"k{i}", timeout_s=5)) for i in range(3)]
    await arrived(fake, 4)
    assert fake.commands[1:] == [[b"GET", b"k0"], [b"GET", b"k1"], [b"GET", b"k2"]]
    fake.say(b"$1\r\n0\r\n$1\r\n1\r\n$1\r\n2\r\n")
    assert await asyncio.gather(*waiting) == [b"0", b"1", b"2"]


async def test_a_reply_may_come_in_any_number_of_pieces(fake: FakeServer, client: HotClient) -> None:
    waiting = asyncio.ensure_future(client.call("LRANGE", "k", "0", "-1", timeout_s=5))
    await arrived(fake, 2)
    for byte in b"*2\r\n$5\r\nhe\r\no\r\n$0\r\n\r\n":
        assert not waiting.done()
        fake.say(bytes([byte]))
        await fake.connections[-1].drain()
        await asyncio.sleep(0)
    assert await waiting == [b"he\r\no", b""]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"-NOSCRIPT No matching script.", ScriptMissingError),
        (b"-ERR user_script:1: FENCED", FencedError),
        (b"-FENCED", FencedError),
        (b"-LOADING Redis is loading the dataset in memory", BrokerUnavailableError),
        (b"-READONLY You can't write against a read only replica.", BrokerUnavailableError),
        (b"-BUSY Redis is busy running a script.", BrokerUnavailableError),
        (b"-CLUSTERDOWN The cluster is down", BrokerUnavailableError),
        (b"-WRONGTYPE Operation against a key", hiredis.ReplyError),
        (b"-BUSYGROUP Consumer Group name already exists", hiredis.ReplyError),
    ],
)
async def test_an_error_reply_is_raised_as_one_of_our_errors(
    fake: FakeServer, client: HotClient, reply: bytes, error: type[Exception]
) -> None:
    waiting = asyncio.ensure_future(client.call("EVALSHA", "x", timeout_s=5))
    await arrived(fake, 2)
    fake.say(reply + b"\r\n")
    with pytest.raises(error):
        await waiting


async def test_an_error_for_one_command_leaves_the_others_alone(fake: FakeServer, client: HotClient) -> None:
    waiting = [asyncio.ensure_future(client.call("GET", "k", timeout_s=5)) for _ in range(2)]
    await arrived(fake, 3)
    fake.say(b"-WRONGTYPE no\r\n:7\r\n")
    with pytest.raises(hiredis.ReplyError):
        await waiting[0]
    assert await waiting[1] == 7


async def test_a_lost_connection_fails_everything_that_waits(fake: FakeServer, client: HotClient) -> None:
    waiting = [asyncio.ensure_future(client.call("GET", "k", timeout_s=5)) for _ in range(3)]
    await arrived(fake, 4)
    fake.connections[-1].close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, BrokerUnavailableError)
        assert "connection lost" in str(outcome)


async def test_a_lost_connection_is_no_news_where_nobody_waits_for_the_reply_any_more(
    fake: FakeServer, client: HotClient, recwarn: pytest.WarningsRecorder
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    reading = asyncio.ensure_future(read_log(client, Keys("p"), "req", 0))
    await arrived(fake, 3)
    fake.connections[-1].close()
    with pytest.raises(BrokerUnavailableError):
        await reading
    del reading
    gc.collect()
    assert told == []
    assert [str(warning.message) for warning in recwarn] == []


async def test_without_a_connection_a_command_fails_at_once() -> None:
    with pytest.raises(BrokerUnavailableError, match="not connected"):
        await HotClient("redis://127.0.0.1:1", "nobody").call("PING", timeout_s=5)


async def test_a_client_connects_again_by_itself(fake: FakeServer, client: HotClient) -> None:
    fake.connections[-1].close()
    await eventually(lambda: len(fake.connections) == 2, "the second connection")
    await arrived(fake, 2)
    await eventually(lambda: client.connected, "the client is connected")
    waiting = asyncio.ensure_future(client.call("PING", timeout_s=5))
    await arrived(fake, 3)
    fake.say(b"+PONG\r\n")
    assert await waiting == b"PONG"


@pytest.mark.parametrize("word", [b"READONLY", b"LOADING", b"MASTERDOWN"])
async def test_a_server_that_is_not_the_one_to_talk_to_is_left(
    fake: FakeServer, client: HotClient, word: bytes
) -> None:
    waiting = asyncio.ensure_future(client.call("SET", "k", "v", timeout_s=5))
    await arrived(fake, 2)
    fake.say(b"-" + word + b" not here.\r\n")
    with pytest.raises(BrokerUnavailableError, match=word.decode()):
        await waiting
    await eventually(lambda: len(fake.connections) == 2, "the second connection")


@pytest.mark.parametrize("text", [b"OOM command not allowed", b"ERR Error running script: -OOM command not allowed"])
async def test_a_server_without_room_keeps_its_connection(fake: FakeServer, client: HotClient, text: bytes) -> None:
    for number in (2, 3):
        waiting = asyncio.ensure_future(client.call("SET", "k", "v", timeout_s=5))
        await arrived(fake, number)
        fake.say(b"-" + text + b" when used memory > 'maxmemory'.\r\n")
        with pytest.raises(BrokerUnavailableError, match="OOM"):
            await waiting
    assert len(fake.connections) == 1


async def test_a_reply_that_stays_away_closes_the_connection_for_all(fake: FakeServer, client: HotClient) -> None:
    patient = asyncio.ensure_future(client.call("GET", "patient", timeout_s=60))
    hasty = asyncio.ensure_future(client.call("GET", "hasty", timeout_s=0.02))
    for waiting in (hasty, patient):
        with pytest.raises(BrokerUnavailableError):
            await asyncio.wait_for(waiting, 2)
    await eventually(lambda: len(fake.connections) == 2, "the second connection")


async def test_a_late_reply_is_never_taken_for_the_answer_to_another_command(
    fake: FakeServer, client: HotClient
) -> None:
    given_up = asyncio.ensure_future(client.call("GET", "first", timeout_s=5))
    await arrived(fake, 2)
    given_up.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await given_up
    second = asyncio.ensure_future(client.call("GET", "second", timeout_s=5))
    await arrived(fake, 3)
    fake.say(b"$5\r\nfirst\r\n$6\r\nsecond\r\n")
    assert await second == b"second"


async def test_a_server_that_refuses_the_greeting_is_tried_again(fake: FakeServer) -> None:
    fake.greets = False
    client = HotClient(await fake.open(), "name")
    task = asyncio.create_task(client.run(started := asyncio.Event()))
    await arrived(fake, 1)
    assert not started.is_set()
    fake.greets = True
    fake.say(b"-LOADING not yet\r\n")
    await asyncio.wait_for(started.wait(), 5)
    assert len(fake.connections) == 2
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_script_that_the_server_has_lost_is_sent_and_called_again(fake: FakeServer, client: HotClient) -> None:
    waiting = asyncio.ensure_future(client.evalsha("sha", "return 1", ["k"], [b"a", 2]))
    await arrived(fake, 2)
    fake.say(b"-NOSCRIPT no\r\n")
    await arrived(fake, 3)
    fake.say(b":1\r\n")
    assert await waiting == 1
    called = [b"1", b"k", b"a", b"2"]
    assert fake.commands[1:] == [[b"EVALSHA", b"sha", *called], [b"EVAL", b"return 1", *called]]


class Subscriber:
    """A push client and what it heard."""

    def __init__(self, url: str) -> None:
        self.heard: list[Any] = []
        self.connects = 0
        self.client = PushClient(url, "push", self.heard.append, self._on_connect)

    def _on_connect(self) -> None:
        self.connects += 1
        self.client.send("SUBSCRIBE", "c")


async def test_messages_are_handed_over_as_they_come(fake: FakeServer) -> None:
    subscriber = Subscriber(await fake.open())
    async with serving(subscriber.client):
        await arrived(fake, 2)
        fake.say(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$3")
        fake.say(b"\r\nyou\r\n")
        await eventually(lambda: [b"message", b"c", b"you"] in subscriber.heard, "the second message")
        assert [b"message", b"c", b"hi"] in subscriber.heard


async def test_a_subscriber_that_is_cut_off_connects_and_subscribes_again(fake: FakeServer) -> None:
    subscriber = Subscriber(await fake.open())
    async with serving(subscriber.client):
        await arrived(fake, 2)
        fake.connections[-1].close()
        await eventually(lambda: fake.names().count(b"SUBSCRIBE") == 2, "the second subscription")
        assert subscriber.connects == 2


async def test_a_half_open_connection_is_noticed_by_the_missing_answer_to_a_ping(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot, "_PING_EVERY_S", 0.03)
    subscriber = Subscriber(await fake.open())
    async with serving(subscriber.client):
        await eventually(lambda: subscriber.connects >= 2, "the second connection")
        assert b"PING" in fake.names()


async def test_a_silent_connection_that_answers_pings_is_kept(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot, "_PING_EVERY_S", 0.03)
    subscriber = Subscriber(await fake.open())
    async with serving(subscriber.client):
        for answered in range(1, 8):
            await eventually(lambda n=answered: fake.names().count(b"PING") >= n, "a ping")  # type: ignore[misc]
            fake.say(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
        assert subscriber.connects == 1


async def test_what_cannot_be_sent_says_so() -> None:
    subscriber = Subscriber("redis://127.0.0.1:1")
    assert not subscriber.client.connected
    assert not subscriber.client.send("SUBSCRIBE", "c")


PASSING = [
    "OOM command not allowed when used memory > 'maxmemory'.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "NOREPLICAS Not enough good replicas to write.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
]


@pytest.mark.parametrize("text", PASSING)
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "ERR Error running script (call to f_0a): @user_script:7: @user_script: 7: -{}",
        "Command # 1 (HSET ps:pools a b) of pipeline caused error: ('{}',)",
    ],
    ids=["alone", "in a script", "in a pipeline"],
)
def test_what_says_nothing_about_the_command_is_an_unavailable_broker(text: str, form: str) -> None:
    said = form.format(text)
    with pytest.raises(BrokerUnavailableError):
        raise_reply(hiredis.ReplyError(said))
    assert isinstance(translate(redis.exceptions.ResponseError(said)), BrokerUnavailableError)


@pytest.mark.parametrize("text", ["BUSYGROUP Consumer Group name already exists", "WRONGTYPE Operation against a key"])
def test_what_is_a_mistake_of_ours_stays_one(text: str) -> None:
    with pytest.raises(hiredis.ReplyError):
        raise_reply(hiredis.ReplyError(text))
    error = redis.exceptions.ResponseError(text)
    assert translate(error) is error
