"""read_log: the truth, in slices."""

from __future__ import annotations

import msgspec
import pytest

from shared.frames import SLICE_BYTES, LogSlice, read_log
from shared.hot import HotClient
from shared.states import State
from shared.wire import decode_frame
from tests.integration.shard import Shard, delta, ending


async def read_all(hot: HotClient, shard: Shard, cursor: int = 0) -> list[LogSlice]:
    slices = []
    while True:
        part = await read_log(hot, shard.keys, "r1", cursor)
        slices.append(part)
        if not part.more:
            return slices
        cursor = part.frames[-1][0]


async def test_a_request_that_nobody_knows_has_no_state_and_no_frames(hot: HotClient, shard: Shard) -> None:
    assert await read_log(hot, shard.keys, "r1", 0) == LogSlice(None, "", [], more=False)


async def test_a_queued_request_has_a_state_and_no_frames(hot: HotClient, shard: Shard) -> None:
    await shard.admit()
    part = await read_log(hot, shard.keys, "r1", 0)
    assert (part.state, part.frames, part.more, part.terminal) == (State.QUEUED, [], False, False)


async def test_frames_come_with_the_cursor_behind_them(hot: HotClient, shard: Shard) -> None:
    await shard.claimed()
    frames = [delta("a1", b"one"), delta("a1", b"two", 1), ending("a1")]
    await shard.client.set(shard.keys.log("r1"), b"".join(frames))
    part = await read_log(hot, shard.keys, "r1", 0)
    ends = [len(frames[0]), len(frames[0] + frames[1]), len(b"".join(frames))]
    assert part.frames == list(zip(ends, map(decode_frame, frames), strict=True))
    again = await read_log(hot, shard.keys, "r1", ends[0])
    assert again.frames == part.frames[1:]
    assert (await read_log(hot, shard.keys, "r1", ends[2])).frames == []


async def test_a_finished_request_says_why_it_ended(hot: HotClient, shard: Shard) -> None:
    await shard.claimed()
    await shard.scripts.done(
        "w1", "r1", "a1", state="failed", reason="engine_error", frame=ending("a1", "failed"), expected=0
    )
    part = await read_log(hot, shard.keys, "r1", 0)
    assert (part.state, part.reason, part.terminal, len(part.frames)) == (State.FAILED, "engine_error", True, 1)


async def test_a_long_log_comes_in_slices_that_together_are_the_log(hot: HotClient, shard: Shard) -> None:
    frames = [delta("a1", b"x" * 10_000, i) for i in range(30)]
    await shard.client.set(shard.keys.log("r1"), b"".join(frames))
    slices = await read_all(hot, shard)
    assert len(slices) > 3
    assert all(sum(len(frame.data) for _, frame in part.frames) <= SLICE_BYTES for part in slices)
    assert [frame for part in slices for _, frame in part.frames] == [decode_frame(frame) for frame in frames]
    assert slices[-1].frames[-1][0] == len(b"".join(frames))


async def test_a_frame_that_is_larger_than_a_slice_comes_whole(hot: HotClient, shard: Shard) -> None:
    frames = [delta("a1", b"small"), delta("a1", b"x" * (5 * SLICE_BYTES), 1), delta("a1", b"small", 2)]
    await shard.client.set(shard.keys.log("r1"), b"".join(frames))
    got = [frame for part in await read_all(hot, shard) for _, frame in part.frames]
    assert got == [decode_frame(frame) for frame in frames]


async def test_a_log_that_ends_exactly_with_a_slice_is_read_to_its_end(hot: HotClient, shard: Shard) -> None:
    head = len(delta("a1", b"x" * (SLICE_BYTES - 100))) - (SLICE_BYTES - 100)
    frame = delta("a1", b"x" * (SLICE_BYTES - head))
    assert len(frame) == SLICE_BYTES
    await shard.client.set(shard.keys.log("r1"), frame)
    slices = await read_all(hot, shard)
    assert [len(part.frames) for part in slices] == [1, 0]


async def test_a_cursor_inside_a_frame_is_an_error_and_never_text(hot: HotClient, shard: Shard) -> None:
    frame = delta("a1", b"some text")
    await shard.client.set(shard.keys.log("r1"), frame + frame)
    for cursor in range(1, len(frame) - len(b"some text")):
        with pytest.raises(msgspec.MsgspecError):
            await read_log(hot, shard.keys, "r1", cursor)
