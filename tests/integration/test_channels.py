"""Channels: one subscriber connection, many listeners, no silent loss."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from shared import channels as channels_module
from shared.channels import Channels
from shared.errors import BrokerUnavailableError
from shared.keys import Keys
from tests.support.polling import eventually, serving
from tests.support.servers import Server


class Ear:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.gaps = 0

    def on_message(self, message: bytes) -> None:
        self.messages.append(message)

    def on_gap(self) -> None:
        self.gaps += 1


class BadEar(Ear):
    """A listener that remembers, and raises."""

    def on_message(self, message: bytes) -> None:
        super().on_message(message)
        raise LookupError

    def on_gap(self) -> None:
        super().on_gap()
        raise LookupError


@pytest.fixture
async def channels(server: Server) -> AsyncIterator[Channels]:
    service = Channels(server.url, f"ear-{uuid.uuid4().hex}")
    async with serving(service):
        yield service


async def kill_connection(client: redis.asyncio.Redis, channels: Channels) -> None:
    """The server cuts the subscriber off."""
    connected = [found for found in await client.client_list() if found["name"] == channels._client.name]
    assert len(connected) == 1
    assert await client.client_kill_filter(_id=connected[0]["id"]) == 1


async def test_what_is_published_after_a_subscription_arrives_in_order(
    channels: Channels, client: redis.asyncio.Redis, keys: Keys
) -> None:
    ear = Ear()
    await channels.subscribe(keys.channel("r1"), ear)
    sent = [b"%d" % i for i in range(100)]
    for message in sent:
        assert await client.publish(keys.channel("r1"), message) == 1
    await eventually(lambda: ear.messages == sent, "the messages")
    assert ear.gaps == 0


async def test_listeners_hear_their_own_channel_and_share_one_subscription(
    channels: Channels, client: redis.asyncio.Redis, keys: Keys
) -> None:
    first, second, other = Ear(), Ear(), Ear()
    await channels.subscribe(keys.channel("r1"), first)
    await channels.subscribe(keys.channel("r1"), second)
    await channels.subscribe(keys.channel("r2"), other)
    assert await client.publish(keys.channel("r1"), b"hello") == 1
    await eventually(lambda: first.messages == second.messages == [b"hello"], "the message")
    assert other.messages == []


async def test_the_last_listener_that_goes_ends_the_subscription(
    channels: Channels, client: redis.asyncio.Redis, keys: Keys
) -> None:
    first, second = Ear(), Ear()
    for ear in (first, second):
        await channels.subscribe(keys.channel("r1"), ear)
    channels.unsubscribe(keys.channel("r1"), first)
    channels.unsubscribe(keys.channel("r1"), first)
    assert await client.publish(keys.channel("r1"), b"one") == 1
    await eventually(lambda: second.messages == [b"one"], "the message")
    channels.unsubscribe(keys.channel("r1"), second)
    await eventually(lambda: channels._listeners == {}, "the subscription is left")
    barrier = Ear()
    await channels.subscribe(keys.channel("r2"), barrier)
    assert await client.publish(keys.channel("r1"), b"two") == 0
    assert first.messages == []


async def test_who_comes_back_to_a_channel_just_left_hears_everything_at_once(
    channels: Channels, client: redis.asyncio.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels_module, "_LINGER_S", 0.05)
    first, second = Ear(), Ear()
    await channels.subscribe(keys.channel("r1"), first)
    channels.unsubscribe(keys.channel("r1"), first)
    await channels.subscribe(keys.channel("r1"), second)
    assert await client.publish(keys.channel("r1"), b"one") == 1
    await eventually(lambda: channels._deserted == [], "the time to leave has come")
    assert await client.publish(keys.channel("r1"), b"two") == 1
    await eventually(lambda: second.messages == [b"one", b"two"], "both messages")
    assert first.messages == []


async def test_a_cut_connection_is_renewed_and_every_listener_is_told_of_the_gap(
    channels: Channels, client: redis.asyncio.Redis, keys: Keys
) -> None:
    ears = {keys.channel(f"r{i}"): Ear() for i in range(3)}
    for channel, ear in ears.items():
        await channels.subscribe(channel, ear)
    await kill_connection(client, channels)
    await eventually(lambda: all(ear.gaps == 1 for ear in ears.values()), "the news of the gap")
    assert channels.reconnects == 1
    late = Ear()
    await channels.subscribe(keys.channel("late"), late)  # answered in order: the others are subscribed again by now
    for channel, ear in ears.items():
        assert await client.publish(channel, b"again") == 1
        await eventually(lambda ear=ear: ear.messages == [b"again"], "the message after the gap")  # type: ignore[misc]
    assert late.gaps == 0


async def test_a_listener_that_raises_costs_the_others_neither_their_messages_nor_their_gaps_nor_the_connection(
    server: Server, client: redis.asyncio.Redis, keys: Keys
) -> None:
    channels = Channels(server.url, f"ear-{uuid.uuid4().hex}")
    async with serving(channels) as running:
        bad, shared, other = BadEar(), Ear(), Ear()
        for ear in (bad, shared):
            await channels.subscribe(keys.channel("r1"), ear)
        await channels.subscribe(keys.channel("r2"), other)
        for number in range(2):
            for rid in ("r1", "r2"):
                assert await client.publish(keys.channel(rid), b"%d" % number) == 1
        await eventually(lambda: other.messages == [b"0", b"1"], "the messages of another channel")
        assert bad.messages == shared.messages == [b"0", b"1"]
        assert channels.reconnects == 0
        await kill_connection(client, channels)
        await eventually(lambda: bad.gaps == 1, "the news of the gap")
        await eventually(lambda: shared.gaps == other.gaps == 1, "the others' news of the gap")
        await channels.subscribe(keys.channel("late"), Ear())  # answered in order: the others are subscribed again
        assert await client.publish(keys.channel("r2"), b"again") == 1
        await eventually(lambda: other.messages[-1] == b"again", "the message after the gap")
        assert channels.reconnects == 1
        assert not running.done()


async def test_the_first_connect_is_no_gap(channels: Channels) -> None:
    assert channels.connected
    assert channels.reconnects == 0


async def test_a_subscriber_that_the_server_refuses_tries_again_with_pauses_until_it_is_let_in(
    server: Server, client: redis.asyncio.Redis, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    name, word = f"deaf-{uuid.uuid4().hex}", uuid.uuid4().hex
    may_do_all_but_listen = ("reset", "on", f">{word}", "+@all", "allkeys", "resetchannels")
    await client.execute_command("ACL", "SETUSER", name, *may_do_all_but_listen)
    channels = Channels(server.url.replace("://", f"://{name}:{word}@"), name)
    ear = Ear()
    try:
        async with serving(channels) as running:
            following = channels.follow(keys.channel("r1"), ear)
            await eventually(lambda: channels.reconnects >= 2, "a second attempt")
            tried, began_s = await connections(client), time.monotonic()
            await eventually(lambda: time.monotonic() > began_s + 1.0, "a second")
            assert await connections(client) - tried <= 12, "the pauses are 0.2 s, 0.4 s and 0.8 s"
            reconnects = channels.reconnects
            await eventually(lambda: channels.reconnects > reconnects, "one more attempt")
            assert not following.done()
            assert not running.done()
            await client.execute_command("ACL", "SETUSER", name, "allchannels")
            await Channels.confirmation(following)
            assert await client.publish(keys.channel("r1"), b"hello") == 1
            await eventually(lambda: ear.messages == [b"hello"], "the message")
            assert channels.connected
    finally:
        await client.execute_command("ACL", "DELUSER", name)
    assert "NOPERM" in caplog.text


async def connections(client: redis.asyncio.Redis) -> int:
    """How many connections the server has accepted so far."""
    info = await client.info("stats")
    return int(info["total_connections_received"])


async def test_a_subscription_that_nobody_confirms_fails_and_leaves_no_listener(
    server: Server, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels_module, "_CONFIRM_TIMEOUT_S", 0.02)
    unconnected = Channels(server.url, "never-run")
    with pytest.raises(BrokerUnavailableError):
        await unconnected.subscribe(keys.channel("r1"), Ear())
    assert not any(unconnected._listeners.values())
    unconnected._leave()
    assert unconnected._listeners == {}
    assert unconnected._unconfirmed == {}
