"""The object storage: a folder, and S3 over real HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.errors import ConfigurationError, ObjectMissingError, StorageFullError, StorageUnavailableError
from shared.storage import BLOCK_BYTES, PART_BYTES, Storage, open_storage
from tests.support.buckets import BUCKET, S3, running_s3
from tests.support.polling import eventually


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as running:
        yield running


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "files"))
    bucket: S3 = request.getfixturevalue("s3")
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    return open_storage(f"{bucket.url}/{tmp_path.name}")


async def some(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def collect(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def names(storage: Storage, prefix: str) -> list[str]:
    return sorted([found.name async for found in storage.list(prefix)])


async def test_what_is_put_is_read_again(storage: Storage) -> None:
    assert await storage.put("a/small", b"bytes") == 5
    assert await storage.put("a/streamed", some(b"some ", b"", b"bytes")) == 10
    assert await storage.put("a/empty", some()) == 0
    assert await storage.read("a/small") == b"bytes"
    assert await collect(storage.chunks("a/streamed")) == b"some bytes"
    assert await collect(storage.chunks("a/empty")) == b""
    assert await storage.size("a/streamed") == 10
    assert [(found.name, found.bytes) async for found in storage.list("a")] == unordered(
        ("a/small", 5), ("a/streamed", 10), ("a/empty", 0)
    )


class unordered(list[tuple[str, int]]):  # noqa: N801 - reads as a function
    """Equal to a list with the same elements."""

    def __init__(self, *elements: tuple[str, int]) -> None:
        super().__init__(elements)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and sorted(self) == sorted(other)

    __hash__ = None  # type: ignore[assignment]


async def test_a_large_object_goes_in_parts_and_comes_back_the_same(storage: Storage) -> None:
    block = os.urandom(BLOCK_BYTES // 2 + 1)
    whole = block * (2 * PART_BYTES // len(block) + 3)
    chunks = [whole[at : at + 70_001] for at in range(0, len(whole), 70_001)]
    assert await storage.put("large", some(*chunks)) == len(whole)
    assert await collect(storage.chunks("large")) == whole


@pytest.mark.parametrize(("start", "end"), [(0, 1), (3, 7), (5, None), (9, 10), (4, 4), (0, 100)])
async def test_ranges(storage: Storage, start: int, end: int | None) -> None:
    await storage.put("digits", b"0123456789")
    assert await collect(storage.chunks("digits", start, end)) == b"0123456789"[start:end]


async def test_what_is_not_there_is_missing(storage: Storage) -> None:
    with pytest.raises(ObjectMissingError):
        await storage.read("nothing")
    with pytest.raises(ObjectMissingError):
        await collect(storage.chunks("nothing"))
    assert await storage.size("nothing") is None
    await storage.delete("nothing", "nothing/at/all")
    assert await names(storage, "nothing") == []


async def test_an_object_is_deleted_and_replaced(storage: Storage) -> None:
    await storage.put("a/b", b"first")
    await storage.put("a/b", some(b"second"))
    assert await storage.read("a/b") == b"second"
    await storage.delete("a/b", "a/c")
    assert await names(storage, "a") == []


def left(storage: Storage, s3: S3) -> list[str]:
    """Everything that lies there, finished or not."""
    if storage._folder is not None:
        return [name for _, _, files in os.walk(storage._folder) for name in files]
    return [*s3.objects(), *["unfinished"] * s3.uploads()]


async def arrived(storage: Storage, s3: S3, before: list[str]) -> None:
    """Returns once what is sent in parts has come: S3 may keep an upload whose end crosses a part on its way."""
    await eventually(lambda: left(storage, s3) != before, "the upload")
    await eventually(lambda: storage._folder is not None or s3.parts() == 2, "both parts")


async def test_an_upload_that_breaks_off_leaves_nothing(storage: Storage, s3: S3) -> None:
    before = left(storage, s3)

    async def broken() -> AsyncIterator[bytes]:
        for _ in range(2 * PART_BYTES // BLOCK_BYTES + 5):
            yield bytes(BLOCK_BYTES)
        await arrived(storage, s3, before)
        raise ValueError("the client is gone")

    with pytest.raises(ValueError, match="the client is gone"):
        await storage.put("a/broken", broken())
    assert left(storage, s3) == before


async def test_an_upload_that_is_cancelled_leaves_nothing(storage: Storage, s3: S3) -> None:
    before = left(storage, s3)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(2 * PART_BYTES // BLOCK_BYTES + 5):
            yield bytes(BLOCK_BYTES)
        await asyncio.Event().wait()

    writing = asyncio.create_task(storage.put("a/endless", endless()))
    await arrived(storage, s3, before)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert left(storage, s3) == before
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not others, "something of it still runs"


async def test_a_listing_has_pages(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.storage._LISTED_AT_ONCE", 2)
    for number in range(5):
        await storage.put(f"p/{number}", b"")
    assert await names(storage, "p") == [f"p/{number}" for number in range(5)]


async def test_what_a_killed_process_left_behind_is_cleared(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path}")
    await storage.put("a/whole", b"whole")
    code = (
        "import asyncio, sys\n"
        "from shared.storage import open_storage\n"
        "async def endless():\n"
        "    for _ in range(60): yield bytes(1 << 18)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(open_storage(sys.argv[1]).put('a/cut', endless()))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        await eventually((tmp_path / "a" / "cut#1").exists, "the first part")
    finally:
        process.kill()
        process.wait(10)
    assert await names(storage, "a") == ["a/whole"], "what is not finished is not there"
    assert await storage.clear_unfinished(3_600) == 0
    assert (tmp_path / "a" / "cut#1").exists(), "it may be in progress"
    long_ago_s = time.time() - 7_200
    os.utime(tmp_path / "a" / "cut#1", (long_ago_s, long_ago_s))
    assert await storage.clear_unfinished(3_600) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["whole"]


def test_a_disk_that_is_full_says_so(tmp_path: Path) -> None:
    # a file size limit is what an unprivileged process can have of a full disk
    code = (
        "import asyncio, resource, sys\n"
        "from shared.errors import StorageFullError\n"
        "from shared.storage import open_storage\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "async def much():\n"
        "    for _ in range(100): yield bytes(1 << 18)\n"
        "for data in (bytes(2 << 20), much()):\n"
        "    try: asyncio.run(open_storage(sys.argv[1]).put('a', data))\n"
        "    except StorageFullError: print('full')\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert told.stdout.split() == ["full", "full"], told.stderr
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    (tmp_path / "files").write_text("in the way")  # no permission would stop the superuser
    for data in (b"x", some(b"x")):
        with pytest.raises(StorageUnavailableError) as caught:
            await storage.put("files/a", data)
        assert not isinstance(caught.value, StorageFullError)


async def test_a_server_that_is_gone_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_s3() as bucket:
        for name, value in bucket.env.items():
            monkeypatch.setenv(name, value)
        storage = open_storage(bucket.url)
        await storage.put("there", b"x")
    calls = (storage.put("a", b"x"), storage.put("a", some(b"x")), storage.read("there"), storage.size("there"))
    for call in (*calls, storage.delete("there"), collect(storage.chunks("there")), names(storage, "a")):
        with pytest.raises(StorageUnavailableError):
            await call


async def test_a_bucket_that_is_not_there_is_unavailable(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    storage = open_storage("s3://no-such-bucket")
    for call in (storage.put("a", b"x"), storage.put("a", some(b"x")), storage.read("a")):
        with pytest.raises(StorageUnavailableError):
            await call
    assert BUCKET not in storage.where


async def test_a_server_that_hangs_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("shared.storage.ANSWER_S", 0.5)
        storage = open_storage("s3://silent")
        with pytest.raises(StorageUnavailableError, match="no answer in time"):
            await storage.read("a")


async def test_an_object_that_ends_early_is_no_endless_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.storage.STALLED_S", 0.5)
    storage = open_storage(str(tmp_path))
    await storage.put("a", bytes(4 * BLOCK_BYTES))
    chunks = storage.chunks("a")
    await anext(chunks)
    os.truncate(tmp_path / "a", 2 * BLOCK_BYTES)
    with pytest.raises(StorageUnavailableError, match="no answer in time"):
        await collect(chunks)


@pytest.mark.parametrize("url", ["ftp://host/x", "https://host/x", "memory://", "s3://", "nothing://x"])
def test_an_address_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--storage-url"):
        open_storage(url)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        open_storage(str(tmp_path / "file" / "folder"))
