"""The relay against a real server: whatever happens to live frames, the client gets the log, once and in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest
import redis.asyncio

from api.cursors import cursor_of
from api.outlet import PENDING_BYTES
from api.relay import Relay
from api.watch import RelayWatch
from shared.channels import Channels
from shared.errors import RequestError
from shared.hot import HotClient
from shared.keys import Keys
from shared.outcomes import Admission, Claimed, Held
from shared.scripts import Scripts
from shared.wire import DELTA, END, HEAD, RESUME, Frame, Meta, encode
from tests.support import servers
from tests.support.polling import eventually, serving

RID = "req_0" + "0" * 26
ATTEMPT = "a1"
LOST_GRACE_S = 30.0
"""Longer than anything here takes: only where nobody brings the request back it is less."""
SSE = Meta(status=200, headers=[("content-type", "text/event-stream; charset=utf-8")])


def event(number: int, size: int = 0) -> bytes:
    return b"data: %d%b\n\n" % (number, b"x" * size)


class Engine:
    """The worker's side of one request, by hand."""

    def __init__(self, scripts: Scripts, client: redis.asyncio.Redis, keys: Keys) -> None:
        self._scripts = scripts
        self._client = client
        self._keys = keys
        self.log_len = 0
        self.log = b""
        self.sent = b""
        self.index = 0

    async def claim(self) -> None:
        await admit(self._scripts)
        (entry,) = await self._scripts.pull("w1", 1)
        claimed = await self._scripts.claim("w1", entry, ATTEMPT)
        assert isinstance(claimed, Claimed)
        self.claimed = claimed

    def keep(self, data: bytes) -> None:
        """A frame that has never reached the server."""
        self.log += self.frame(data)
        self.log_len = len(self.log)

    async def give_back(self, data: bytes) -> None:
        """Everything up to this event."""
        frame = self.frame(data)
        self.log += frame
        self.log_len = len(self.log)
        assert await self._scripts.restore("w1", Held(RID, ATTEMPT, self.claimed, self.log, len(frame))) == "OK"

    def frame(self, data: bytes, kind: int = DELTA, meta: Meta | None = None) -> bytes:
        if self.index == 0:
            kind, meta = kind | HEAD, Meta(200, SSE.headers, meta.state, meta.reason) if meta else SSE
        frame = encode(Frame(kind, ATTEMPT, self.index, [self.index], 0, meta, data))
        self.index += 1
        self.sent += data
        return frame

    async def step(self, data: bytes) -> None:
        frame = self.frame(data)
        stepped = await self._scripts.step("w1", [(RID, ATTEMPT, self.log_len, frame)])
        assert not stepped.refused
        self.log += frame
        self.log_len += len(frame)

    async def append_silently(self, data: bytes) -> None:
        """As `step`, but the live message is lost."""
        frame = self.frame(data)
        self.log_len = await self._client.append(self._keys.log(RID), frame)

    async def done(self, data: bytes = b"data: [DONE]\n\n") -> None:
        frame = self.frame(data, END, Meta(state="succeeded", reason="completed"))
        finished = await self._scripts.done(
            "w1", RID, ATTEMPT, state="succeeded", reason="completed", frame=frame, expected=self.log_len
        )
        assert finished.outcome == "OK"


async def admit(scripts: Scripts) -> None:
    admitted = await scripts.admit(Admission(RID, "f", "standard", b"body", "t", 100, 100, 1, 0))
    assert admitted.outcome == "OK"


@pytest.fixture
async def channels(server: servers.Server) -> AsyncIterator[Channels]:
    channels = Channels(server.url, "test-relay")
    async with serving(channels):
        yield channels


@pytest.fixture
async def engine(scripts: Scripts, client: redis.asyncio.Redis, keys: Keys) -> Engine:
    engine = Engine(scripts, client, keys)
    await engine.claim()
    return engine


@pytest.fixture
async def relay(hot: HotClient, keys: Keys, channels: Channels, scripts: Scripts) -> AsyncIterator[Relay]:
    relay = Relay(hot, keys, RID, grace_s=5, lost_grace_s=LOST_GRACE_S, readmit=lambda: admit(scripts))
    await channels.subscribe(keys.channel(RID), relay)
    yield relay
    channels.unsubscribe(keys.channel(RID), relay)


async def read_all(relay: Relay) -> bytes:
    return await asyncio.wait_for(relay.rest(), 10)


def without_ids(data: bytes) -> bytes:
    return b"".join(line + b"\n" for line in data.split(b"\n")[:-1] if not line.startswith(b"id: "))


async def test_live_frames_arrive_in_order_and_the_answer_is_the_log(relay: Relay, engine: Engine) -> None:
    reading = asyncio.create_task(read_all(relay))
    for number in range(20):
        await engine.step(event(number))
    await engine.done()
    assert without_ids(await reading) == engine.sent
    assert relay.end is not None
    assert relay.end.state == "succeeded"


async def test_a_lost_message_is_repaired_from_the_log_before_anything_later_is_shown(
    relay: Relay, engine: Engine
) -> None:
    reading = asyncio.create_task(read_all(relay))
    await engine.step(event(0))
    await engine.append_silently(event(1))
    await engine.append_silently(event(2))
    await engine.step(event(3))
    await engine.done()
    assert without_ids(await reading) == engine.sent


async def test_a_message_that_comes_twice_is_shown_once(relay: Relay, engine: Engine, scripts: Scripts) -> None:
    reading = asyncio.create_task(read_all(relay))
    await engine.step(event(0))
    before = engine.log_len
    frame = engine.frame(event(1))
    for _ in range(3):  # a blind retry publishes again
        await scripts.step("w1", [(RID, ATTEMPT, before, frame)])
    engine.log_len += len(frame)
    await engine.done()
    assert without_ids(await reading) == engine.sent


async def test_without_any_live_message_the_watch_finds_the_answer_in_the_log(
    relay: Relay, engine: Engine, channels: Channels, keys: Keys
) -> None:
    channels.unsubscribe(keys.channel(RID), relay)
    reading = asyncio.create_task(read_all(relay))
    await engine.step(event(0))
    await engine.done()
    for _ in range(12):  # what RelayWatch does in three seconds
        relay.tick()
    assert without_ids(await reading) == engine.sent


def _noticed(channels: Channels, reconnects: int) -> bool:
    return not channels.connected or channels.reconnects > reconnects


async def test_a_killed_subscriber_connection_loses_nothing(
    relay: Relay, engine: Engine, client: redis.asyncio.Redis, channels: Channels
) -> None:
    reading = asyncio.create_task(read_all(relay))
    for number in range(6):
        await engine.step(event(number))
        if number % 2:
            before = channels.reconnects
            async with asyncio.timeout(30):
                while not await client.client_kill_filter(_type="pubsub"):  # until it has subscribed, it is none
                    await asyncio.sleep(0.01)
            # it may be connected again before anybody looks
            await eventually(partial(_noticed, channels, before), "the kill is noticed")
    await engine.done()
    assert without_ids(await reading) == engine.sent
    assert channels.reconnects >= 1


async def test_memory_for_a_client_that_does_not_read_is_bounded_and_it_gets_everything_later(
    relay: Relay, engine: Engine
) -> None:
    size = 4_000
    for number in range(100):
        await engine.step(event(number, size))
    await eventually(lambda: len(relay.first_bytes) >= PENDING_BYTES, "what may be pending")
    await asyncio.sleep(0.05)  # for what must not come
    assert PENDING_BYTES <= len(relay.first_bytes) <= PENDING_BYTES + size + 100
    await engine.done()
    assert without_ids(await read_all(relay)) == engine.sent


async def test_a_frame_larger_than_a_slice_of_the_log_is_read_whole(relay: Relay, engine: Engine) -> None:
    await engine.append_silently(event(0, 300_000))
    await engine.done()
    assert without_ids(await read_all(relay)) == engine.sent


async def test_every_cursor_is_the_logs_offset_of_the_end_of_its_event(
    relay: Relay, engine: Engine, client: redis.asyncio.Redis, keys: Keys
) -> None:
    reading = asyncio.create_task(read_all(relay))
    await engine.step(event(0) + event(1) + event(2))
    await engine.step(event(3))
    await engine.done()
    seen = await reading
    log = await client.get(keys.log(RID))
    events = [part.split(b"\n", 1) for part in seen.split(b"\n\n")[:-1]]
    assert len(events) == 5
    for cursor, data in events:
        end = cursor_of(cursor[4:].decode())
        assert log[: end.offset].endswith(data + b"\n\n")
        assert end.mark == ATTEMPT
    assert end.offset == len(log)


@pytest.mark.parametrize("writer", ["", "another"])
async def test_an_end_by_another_writer_that_does_not_stand_in_the_log_is_not_believed(
    relay: Relay, engine: Engine, client: redis.asyncio.Redis, keys: Keys, writer: str
) -> None:
    reading = asyncio.create_task(read_all(relay))
    await engine.step(event(0))
    await eventually(lambda: relay.head is not None, "the first event")
    liar = encode(Frame(END, writer, 1, [], 0, Meta(state="succeeded"), b""))
    head = b"\x92\xce" + (engine.log_len + len(liar)).to_bytes(4, "big")
    await client.publish(keys.channel(RID), head + liar)
    await engine.step(event(1))
    await engine.done()
    assert without_ids(await reading) == engine.sent


async def test_the_end_of_the_attempt_that_wrote_everything_is_believed_without_reading_the_log(
    relay: Relay, engine: Engine, hot: HotClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = asyncio.create_task(read_all(relay))
    await engine.step(event(0))
    await eventually(lambda: relay.head is not None, "the first event")
    reads: list[object] = []
    monkeypatch.setattr(hot, "send", lambda *command, **_: reads.append(command))
    await engine.step(event(1))
    await engine.done()
    assert without_ids(await reading) == engine.sent
    assert reads == []


async def test_a_request_that_the_server_forgot_is_admitted_again_when_nothing_was_visible(
    relay: Relay, scripts: Scripts, client: redis.asyncio.Redis, keys: Keys
) -> None:
    await admit(scripts)
    names = [name async for name in client.scan_iter(match=f"{keys.base}*")]
    await client.delete(*names)
    reading = asyncio.create_task(read_all(relay))
    for _ in range(12):
        relay.tick()
    engine = Engine(scripts, client, keys)
    async with asyncio.timeout(5):
        while not await client.exists(keys.record(RID)):
            await asyncio.sleep(0.01)
    await engine.claim()
    await engine.step(event(0))
    await engine.done()
    assert without_ids(await reading) == engine.sent


async def forget(client: redis.asyncio.Redis, keys: Keys) -> None:
    """The server loses everything."""
    names = [name async for name in client.scan_iter(match=f"{keys.base}*")]
    await client.delete(*names)


@pytest.fixture
async def watched(relay: Relay) -> AsyncIterator[Relay]:
    """The relay, with ticks."""
    watch = RelayWatch()
    async with serving(watch):
        watch.add(relay)
        yield relay


async def test_a_request_that_nobody_brings_back_ends_with_an_explicit_error_after_the_grace(
    watched: Relay, engine: Engine, client: redis.asyncio.Redis, keys: Keys
) -> None:
    await engine.step(event(0))
    assert await asyncio.wait_for(watched.opened(5), 5)
    await forget(client, keys)
    watched._lost_grace_s = 1.0
    watched.on_gap()
    began_s = time.monotonic()
    with pytest.raises(RequestError) as raised:
        await read_all(watched)
    assert raised.value.code == "history_lost"
    assert time.monotonic() - began_s >= 1.0
    assert not await client.exists(keys.record(RID)), "what was visible is not run again"


async def test_a_stream_goes_on_when_its_worker_brings_the_request_back(
    watched: Relay, engine: Engine, client: redis.asyncio.Redis, keys: Keys
) -> None:
    reading = asyncio.create_task(read_all(watched))
    await engine.step(event(0))
    await eventually(lambda: watched.cursor == engine.log_len, "the first event is taken")
    for number in (1, 3):  # once the frame that comes with it is what the reader waits for, once it misses one more
        await forget(client, keys)
        watched.on_gap()
        await eventually(lambda: watched._lost_since_s is not None, "it has noticed")
        if number == 3:
            engine.keep(event(2))
        await engine.give_back(event(number))
        await eventually(lambda: watched._lost_since_s is None, "it is found again")
    await engine.done()
    assert without_ids(await reading) == engine.sent
    assert await client.hget(keys.record(RID), "state") == b"succeeded"


async def test_a_reader_that_may_not_admit_waits_for_the_worker_too(
    hot: HotClient, keys: Keys, engine: Engine, client: redis.asyncio.Redis
) -> None:
    reader = Relay(hot, keys, RID, grace_s=5, lost_grace_s=LOST_GRACE_S, readmit=None)
    watch = RelayWatch()
    async with serving(watch):
        watch.add(reader)
        await forget(client, keys)
        reader.on_gap()
        reading = asyncio.create_task(read_all(reader))
        await eventually(lambda: reader._lost_since_s is not None, "it has noticed")
        await engine.give_back(event(0))
        await engine.done()
        assert without_ids(await reading) == engine.sent


class Successors:
    """Attempts that write behind the one of `engine`, straight into the log."""

    def __init__(self, engine: Engine, client: redis.asyncio.Redis, keys: Keys) -> None:
        self._engine = engine
        self._client = client
        self._keys = keys

    async def write(self, attempt: str, data: bytes, kind: int = DELTA, meta: Meta | None = None) -> None:
        """A frame that is appended and published."""
        frame = encode(Frame(kind, attempt, 0, [], 0, meta, data))
        log_len = await self._client.append(self._keys.log(RID), frame)
        await self._client.publish(self._keys.channel(RID), b"\x92\xce" + log_len.to_bytes(4, "big") + frame)

    async def append(self, attempt: str, data: bytes, kind: int = DELTA, meta: Meta | None = None) -> None:
        """A frame whose live message is lost."""
        await self._client.append(self._keys.log(RID), encode(Frame(kind, attempt, 0, [], 0, meta, data)))

    async def end(self, attempt: str, meta: Meta) -> None:
        """The terminal frame, and what belongs to it in the record."""
        await self._client.hset(self._keys.record(RID), "state", meta.state)  # type: ignore[misc]
        await self.write(attempt, b"", END, meta)


DONE = Meta(state="succeeded", reason="completed")


@pytest.fixture
def successors(engine: Engine, client: redis.asyncio.Redis, keys: Keys) -> Successors:
    return Successors(engine, client, keys)


@pytest.mark.parametrize("live", [True, False])
async def test_an_attempt_that_resumes_behind_the_one_that_the_client_has_seen_goes_on_with_its_text(
    relay: Relay, engine: Engine, successors: Successors, *, live: bool
) -> None:
    reading = asyncio.create_task(read_all(relay))
    await engine.step(event(0))
    write = successors.write if live else successors.append
    await write("a2", event(1), RESUME, Meta(after=ATTEMPT))
    await write("a2", event(2))
    await write("a3", event(3), RESUME, Meta(after="a2"))
    await successors.end("a3", DONE)
    assert without_ids(await reading) == b"".join(map(event, range(4)))


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(
    ("kind", "meta"),
    [
        (DELTA, None),
        (HEAD, SSE),
        (RESUME, Meta(after="a7")),
        (RESUME, Meta()),
        (END, DONE),
        (RESUME | END, Meta(state="succeeded", after="a7")),
    ],
    ids=["plain", "fresh", "behind another", "behind nobody", "end", "end behind another"],
)
async def test_any_other_change_of_the_attempt_is_an_explicit_error(
    relay: Relay, engine: Engine, successors: Successors, *, kind: int, meta: Meta | None, live: bool
) -> None:
    """What a failover can bring: the log was rolled back, others went on, and one begins where this client has read."""
    reading = asyncio.create_task(read_all(relay))
    await engine.step(event(0))
    write = successors.write if live else successors.append
    await write("a2", b"" if kind & END else event(1), kind, meta)
    if not live:
        relay.on_gap()
    with pytest.raises(RequestError) as raised:
        await reading
    assert raised.value.code == "history_lost"


async def test_another_attempts_explicit_error_ends_the_clients_text(
    relay: Relay, engine: Engine, successors: Successors
) -> None:
    reading = asyncio.create_task(read_all(relay))
    await engine.step(event(0))
    await successors.end("a2", Meta(state="failed", reason="worker_lost"))
    assert without_ids(await reading) == event(0)
    assert relay.end is not None
    assert relay.end.reason == "worker_lost"


async def test_while_nothing_but_a_head_was_taken_another_attempt_may_start_anew(
    relay: Relay, engine: Engine, successors: Successors
) -> None:
    reading = asyncio.create_task(read_all(relay))
    await engine.step(b"")
    await successors.write("a2", event(5), HEAD, SSE)
    await successors.end("a2", DONE)
    assert without_ids(await reading) == event(5)


@pytest.mark.parametrize(
    ("kind", "meta"),
    [(DELTA, None), (RESUME, Meta(after="a7")), (END, DONE), (RESUME | END, Meta(state="succeeded", after="a7"))],
    ids=["plain", "behind another", "end", "end behind another"],
)
async def test_where_nothing_but_a_head_was_taken_no_other_attempt_may_go_on_behind_what_is_lost(
    relay: Relay, engine: Engine, successors: Successors, kind: int, meta: Meta | None
) -> None:
    """The log was rolled back to before the head; what others wrote instead, this client has not seen."""
    reading = asyncio.create_task(read_all(relay))
    await engine.step(b"")
    await successors.write("a2", b"" if kind & END else event(1), kind, meta)
    with pytest.raises(RequestError) as raised:
        await reading
    assert raised.value.code == "history_lost"


async def test_opened_gives_up_waiting_after_its_time(relay: Relay, engine: Engine) -> None:
    assert not await relay.opened(0.05)
    await engine.step(event(0))
    assert await relay.opened(5)
