"""What a driver commits, without a server: each row once, objects before the script, and what TAKEN leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch.answers import Outcome
from batch.committing import Committer
from shared.batch_scripts import Kept
from shared.batches import Batch, Part
from shared.storage import Storage, open_storage


class Server:
    """What stands for an Owned: the rules of `batch_commit`, in a few lines."""

    def __init__(self, folder: Path, mark: str = "d1") -> None:
        self.id = "batch_1"
        self.batch = Batch("batch_1", {"epoch": "1"})
        self.status = "in_progress"
        self.mark = mark
        self.rows: set[int] = set()
        self.parts: list[Part] = []
        self.seen: list[list[int]] = []
        self.folder = folder

    async def commit(self, part: Part, rows: Sequence[int], grows: dict[str, int]) -> Kept:
        self.seen.append(list(rows))
        for suffix, size in (("out", part.out_bytes), ("err", part.err_bytes)):
            path = self.folder / "parts" / f"{part.name}.{suffix}"
            assert (path.stat().st_size if path.exists() else 0) == size, "the objects are there first"
        if taken := self.rows & set(rows):
            return Kept("TAKEN", str(taken.pop()))
        self.rows |= set(rows)
        self.parts.append(part)
        assert sum(grows.get(name, 0) for name in ("completed", "failed")) == len(rows)
        return Kept("OK", "in_progress")

    async def committed(self) -> bytearray:
        bitmap = bytearray(4)
        for row in self.rows:
            bitmap[row // 8] |= 0x80 >> row % 8
        return bitmap


def outcome(row: int, code: str = "") -> Outcome:
    return Outcome(row, f"req_{row}", b"%d\n" % row, code, {"output_tokens": 2})


def committer(server: Server, storage: Storage, forgotten: list[str], bitmap: bytes = b"") -> Committer:
    async def forget(rids: list[str]) -> None:
        forgotten.extend(rids)

    stand_in: Any = server
    return Committer(stand_in, storage, "parts", bytearray(bitmap), forget, most_rows=10)


async def test_a_row_that_ends_twice_counts_once(tmp_path: Path) -> None:
    server, forgotten = Server(tmp_path), list[str]()
    own = committer(server, open_storage(str(tmp_path)), forgotten)
    for row in (3, 3, 4):
        own.add(outcome(row))
    own.add(outcome(5, "engine_error"))
    await own.commit()
    own.add(outcome(4))
    assert not own.busy
    assert (server.seen, own.count) == ([[3, 4, 5]], 3)
    assert [own.has(row) for row in range(7)] == [False, False, False, True, True, True, False]
    assert forgotten == ["req_3", "req_4", "req_5"]
    assert (tmp_path / "parts" / "000001-d1-000001.out").read_bytes() == b"3\n4\n"
    assert (tmp_path / "parts" / "000001-d1-000001.err").read_bytes() == b"5\n"


async def test_of_rows_that_somebody_else_has_committed_the_others_are(tmp_path: Path) -> None:
    server, forgotten = Server(tmp_path), list[str]()
    own = committer(server, open_storage(str(tmp_path)), forgotten)
    server.rows = {1}
    for row in range(3):
        own.add(outcome(row))
    await own.commit()
    assert server.seen == [[0, 1, 2], [0, 2]]
    assert own.count == 3
    assert forgotten == ["req_0", "req_2"]


async def test_who_brings_too_much_waits_until_it_is_committed(tmp_path: Path) -> None:
    server = Server(tmp_path)
    own = committer(server, open_storage(str(tmp_path)), [])
    for row in range(10):
        own.add(outcome(row))
    waiting = asyncio.create_task(own.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await own.commit()
    await waiting
    assert own.count == 10


async def test_parts_of_two_drivers_have_different_names_although_redis_has_counted_their_epoch_twice(
    tmp_path: Path,
) -> None:
    for mark, row in (("d1", 1), ("d2", 2)):
        own = committer(Server(tmp_path, mark), open_storage(str(tmp_path)), [])
        own.add(outcome(row))
        await own.commit()
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"000001-d1-000001.out", "000001-d2-000001.out"}
