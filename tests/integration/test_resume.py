"""seek, and the relay that goes on from there: whose text a cursor stands for, and exactly the rest behind it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from api.cursors import Cursor, cursor_of, suffix_of, with_cursors
from api.relay import Relay
from api.resume import seek
from shared.errors import RequestError
from shared.hot import HotClient
from shared.ids import new_attempt_id
from shared.wire import DELTA, END, HEAD, RESUME, Frame, Meta, encode
from tests.integration.shard import Shard

RID = "r1"
SSE = Meta(status=200, headers=[("content-type", "text/event-stream; charset=utf-8")])
FIRST, SECOND, THIRD = (new_attempt_id() for _ in range(3))


def event(number: int) -> bytes:
    return b"data: %d\n\n" % number


@dataclass
class Written:
    """A log, and what a client that has read all of it has seen."""

    log: bytes = b""
    seen: bytes = b""
    ends: list[int] = field(default_factory=list)

    def add(self, attempt: str, data: bytes, kind: int = DELTA, meta: Meta | None = None) -> None:
        self.log += encode(Frame(kind, attempt, 0, [7], 0, meta, data))
        self.ends.append(len(self.log))
        if data:
            self.seen += with_cursors(data, len(self.log), suffix_of(attempt))

    @property
    def ids(self) -> list[str]:
        return [line[4:].decode() for line in self.seen.splitlines() if line.startswith(b"id: ")]

    def behind(self, event_id: str) -> bytes:
        return self.seen.partition(b"id: %b\n" % event_id.encode())[2].partition(b"\n\n")[2]


def opened() -> Written:
    """One attempt's first two frames, the second of three events."""
    written = Written()
    written.add(FIRST, event(0), HEAD, SSE)
    written.add(FIRST, event(1) + event(2) + event(3))
    return written


def continued() -> Written:
    """Three attempts, each behind the other."""
    written = opened()
    written.add(SECOND, event(4) + event(5), RESUME, Meta(after=FIRST))
    written.add(SECOND, event(6))
    written.add(THIRD, event(7), RESUME, Meta(after=SECOND))
    written.add(THIRD, event(8) + b"data: [DONE]\n\n", END, Meta(state="succeeded", reason="completed"))
    return written


async def put(shard: Shard, written: Written, state: str = "running") -> None:
    await shard.client.set(shard.keys.log(RID), written.log)
    await shard.client.hset(shard.keys.record(RID), "state", state)  # type: ignore[misc]


async def going_on(hot: HotClient, shard: Shard, cursor: Cursor) -> Relay:
    """A relay behind a cursor, before it has read anything."""
    relay = Relay(hot, shard.keys, RID, grace_s=5, lost_grace_s=0.1, readmit=None)
    relay.resume(await seek(hot, shard.keys, RID, cursor, lost_grace_s=0.1))
    return relay


async def rest_of(relay: Relay) -> bytes:
    relay.on_gap()
    rest = await asyncio.wait_for(relay.rest(), 5)
    assert rest is not None
    return rest


async def test_behind_every_id_of_a_continued_answer_comes_exactly_the_rest(hot: HotClient, shard: Shard) -> None:
    written = continued()
    await put(shard, written, "succeeded")
    assert len(written.ids) == 10
    for event_id in written.ids:
        assert await rest_of(await going_on(hot, shard, cursor_of(event_id))) == written.behind(event_id)


async def test_a_bare_offset_is_gone_on_from_whoever_wrote_there(hot: HotClient, shard: Shard) -> None:
    written = continued()
    await put(shard, written, "succeeded")
    for event_id in written.ids:
        cursor = cursor_of(event_id.partition("-")[0])
        assert await rest_of(await going_on(hot, shard, cursor)) == written.behind(event_id)


@pytest.mark.parametrize("stranger", [SECOND, THIRD], ids=["second", "third"])
async def test_an_id_of_an_attempt_that_did_not_write_there_is_an_explicit_error(
    hot: HotClient, shard: Shard, stranger: str
) -> None:
    """Also when that attempt stands elsewhere in the log: the frame in which the cursor lies decides."""
    written = continued()
    await put(shard, written, "succeeded")
    own = len(opened().ids)  # events of the first attempt, at frames' ends and inside
    for event_id in written.ids[:own]:
        with pytest.raises(RequestError) as raised:
            await going_on(hot, shard, Cursor(cursor_of(event_id).offset, stranger[:6]))
        assert raised.value.code == "history_lost"


async def test_after_a_failover_that_lost_the_tail_a_client_gets_no_other_attempts_text(
    hot: HotClient, shard: Shard
) -> None:
    """Another attempt has written frames as long as those that were lost, as it does when tokens are as long."""
    lost, found = opened(), Written(opened().log, opened().seen)
    lost.add(FIRST, event(4) + event(5))
    lost.add(FIRST, event(6))
    found.add(SECOND, event(7) + event(8))
    found.add(SECOND, event(9))
    assert len(found.log) == len(lost.log)
    await put(shard, found)
    for event_id in lost.ids[len(opened().ids) :]:
        with pytest.raises(RequestError) as raised:
            await going_on(hot, shard, cursor_of(event_id))
        assert (raised.value.status, raised.value.code) == (500, "history_lost")
    assert (await seek(hot, shard.keys, RID, cursor_of(lost.ids[0]), lost_grace_s=0)).attempt == FIRST


async def test_a_scripts_frame_is_no_attempts(hot: HotClient, shard: Shard) -> None:
    written = opened()
    written.add("", b"", END, Meta(state="cancelled", reason="cancelled"))
    await put(shard, written, "cancelled")
    with pytest.raises(RequestError) as raised:
        await going_on(hot, shard, Cursor(len(written.log), FIRST[:6]))
    assert raised.value.code == "history_lost"
    relay = await going_on(hot, shard, Cursor(len(written.log), ""))
    assert (await rest_of(relay), relay.end) == (b"", Meta(state="cancelled", reason="cancelled"))


async def test_a_frame_that_another_attempt_replaces_before_the_relay_reads_is_not_mixed_with_it(
    hot: HotClient, shard: Shard
) -> None:
    """The client has a part of the frame. Its other part comes from the same frame, or not at all."""
    seen, found = opened(), Written()
    found.add(FIRST, event(0), HEAD, SSE)
    await put(shard, seen)
    relay = await going_on(hot, shard, cursor_of(seen.ids[1]))
    found.add(SECOND, event(7) + event(8) + event(9), RESUME, Meta(after=FIRST))
    found.add(SECOND, b"data: [DONE]\n\n", END, Meta(state="succeeded", reason="completed"))
    await put(shard, found, "succeeded")
    assert relay.first_bytes == seen.behind(seen.ids[1])
    with pytest.raises(RequestError) as raised:
        await rest_of(relay)
    assert raised.value.code == "history_lost"


@pytest.mark.parametrize("mark", ["", FIRST[:6]], ids=["bare", "marked"])
async def test_what_is_no_events_end_is_the_clients_error(hot: HotClient, shard: Shard, mark: str) -> None:
    written = opened()
    await put(shard, written)
    ends = {cursor_of(event_id).offset for event_id in written.ids}
    for offset in range(1, len(written.log) + (1 if mark else 3)):
        if offset not in ends:
            with pytest.raises(RequestError) as raised:
                await seek(hot, shard.keys, RID, Cursor(offset, mark), lost_grace_s=5)
            assert (raised.value.status, raised.value.code) == (400, "invalid_cursor"), offset


@pytest.mark.parametrize("left", ["a part", "no record"])
async def test_a_cursor_behind_the_end_waits_for_the_worker_to_bring_back_what_a_failover_has_lost(
    hot: HotClient, shard: Shard, left: str
) -> None:
    written = continued()
    if left == "a part":
        await put(shard, opened())
    coming_back = asyncio.create_task(
        seek(hot, shard.keys, RID, cursor_of(written.ids[5]), lost_grace_s=5)  # of the second attempt
    )
    for _ in range(5):
        await hot.call("PING", timeout_s=5)
    assert not coming_back.done()
    await put(shard, written, "succeeded")
    relay = Relay(hot, shard.keys, RID, grace_s=5, lost_grace_s=0.1, readmit=None)
    relay.resume(await coming_back)
    assert await rest_of(relay) == written.behind(written.ids[5])


@pytest.mark.parametrize(("state", "grace_s"), [("running", 0.3), ("queued", 0.3), ("cancelled", 60)])
async def test_a_cursor_behind_the_end_that_nobody_brings_back_is_an_explicit_error(
    hot: HotClient, shard: Shard, state: str, grace_s: float
) -> None:
    """At once where the request has ended: then nobody brings anything back."""
    written = opened()
    if state == "cancelled":
        written.add("", b"", END, Meta(state="cancelled", reason="cancelled"))
    await put(shard, written, state)
    async with asyncio.timeout(30):
        with pytest.raises(RequestError) as raised:
            await seek(hot, shard.keys, RID, Cursor(len(written.log) + 40, FIRST[:6]), lost_grace_s=grace_s)
    assert (raised.value.status, raised.value.code) == (500, "history_lost")


async def test_a_cursor_behind_the_end_that_its_own_attempt_wrote_is_the_clients_error(
    hot: HotClient, shard: Shard
) -> None:
    """That end stands behind everything that the attempt has published."""
    written = continued()
    await put(shard, written, "succeeded")
    for mark in ("", THIRD[:6]):
        with pytest.raises(RequestError) as raised:
            await seek(hot, shard.keys, RID, Cursor(len(written.log) + 1, mark), lost_grace_s=60)
        assert (raised.value.status, raised.value.code) == (400, "invalid_cursor")
