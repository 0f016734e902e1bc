"""Object storage: a folder of this machine, or a bucket of S3, GCS or Azure, by URL. Nothing else imports obstore.

An object is there as a whole or not at all: what breaks off while it is written leaves nothing that could be read. In a
folder it is on the disk, and not only in the kernel's memory, before `put` returns. Names are ours, never a client's.

What a process that was killed had begun stays behind: in a folder as `<name>#<n>`, which `clear_unfinished` removes; in
a bucket as unfinished multipart uploads, which a lifecycle rule of the bucket must end (docs/files.md).
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store, from_url

from shared.errors import ConfigurationError, ObjectMissingError, StorageFullError, StorageUnavailableError
from shared.pipe import Pipe

T = TypeVar("T")

PART_BYTES = 5 << 20
"""Of a multipart upload: S3 takes none below, and 10 000 of them, so an object may have 50 GB."""
PARTS_AT_ONCE = 2
BLOCK_BYTES = 256 << 10
"""What is passed on at a time: a small one would cost more in crossings between Python and Rust than in bytes."""
ANSWER_S = 30.0
"""In which a command that moves little must be answered, tries included."""
STALLED_S = 20.0
"""For which nothing may come of an answer that moves much. obstore itself waits for ever at the end of a file that has
become shorter while it was read."""
_CLIENT = {"connect_timeout": timedelta(seconds=5), "read_timeout": timedelta(seconds=STALLED_S), "timeout": "1d"}
"""A download may take as long as its client: only silence ends it."""
_RETRIES = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=ANSWER_S),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
_BUCKETS = (S3Store, GCSStore, AzureStore)
_LISTED_AT_ONCE = 1_000
_FULL = re.compile(r"os error (?:27|28|122)\b|insufficient.{0,8}(?:storage|space)|quota ?exceeded", re.IGNORECASE)
"""EFBIG, ENOSPC, EDQUOT, and what servers say."""
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
_UNFINISHED = re.compile(r".#\d+$")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a listing shows it; `modified_at_s` is Unix time of the storage's clock."""

    name: str
    bytes: int
    modified_at_s: float


class Storage:
    """Objects by name. Every method raises StorageUnavailableError, and StorageFullError when there is no room."""

    def __init__(self, store: ObjectStore, where: str, folder: Path | None = None) -> None:
        """`where` is shown to people. `folder` is what the store is, if it is a folder."""
        self._store = store
        self._folder = folder
        self.where = where

    async def put(self, name: str, data: bytes | AsyncIterable[bytes], *, shared: bool = False) -> int:
        """Writes an object, in bounded memory, over one that is there. Returns its length in bytes.

        What `data` raises leaves this method as it is, and there is no object then; nor is there one when this is
        cancelled. `shared`: others write under this name, too. What is cancelled while it ends stays then, whole: it
        may be theirs.
        """
        if isinstance(data, bytes):
            await self._answered(obstore.put_async(self._store, name, data, use_multipart=False))
            written = len(data)
        else:
            written = await self._stream(name, data, shared=shared)
        if self._folder is not None:
            await self._translated(asyncio.to_thread(_sync, self._folder / name))
        return written

    async def _stream(self, name: str, chunks: AsyncIterable[bytes], *, shared: bool) -> int:
        pipe, written = Pipe(BLOCK_BYTES), 0
        putting = asyncio.ensure_future(
            obstore.put_async(self._store, name, pipe, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
        )
        putting.add_done_callback(lambda _: pipe.close())
        try:
            async for chunk in chunks:
                written += len(chunk)
                if not await pipe.write(chunk):
                    break  # the storage has given up, and says why below
            pipe.end()
            await self._translated(asyncio.shield(putting))
        except BaseException:
            pipe.fail()  # whoever writes hears of it, and takes back what there is
            with suppress(Exception):
                await asyncio.wait({putting}, timeout=ANSWER_S)
            if not shared and putting.done() and not putting.cancelled() and putting.exception() is None:
                await self.delete(name)  # the end was under way already
            raise
        return written

    async def read(self, name: str) -> bytes:
        """The bytes of an object that is small. Raises ObjectMissingError."""

        async def whole() -> bytes:
            return bytes(await (await obstore.get_async(self._store, name)).bytes_async())

        return await self._answered(whole())

    async def chunks(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`, as they come. Raises ObjectMissingError before the first ones."""
        if end is not None and end <= start:
            return
        options: Any = {"range": {"offset": start} if end is None else (start, end)} if start or end else {}
        result = await self._answered(obstore.get_async(self._store, name, options=options))
        stream = result.stream(min_chunk_size=BLOCK_BYTES)
        while True:
            try:
                yield bytes(await self._answered(anext(stream), STALLED_S))
            except StopAsyncIteration:
                return

    async def size(self, name: str) -> int | None:
        """An object's length in bytes; None when there is none."""
        try:
            return int((await self._answered(obstore.head_async(self._store, name)))["size"])
        except ObjectMissingError:
            return None

    async def delete(self, *names: str) -> None:
        """Deletes objects. One that is not there is none that could be deleted."""
        for name in names:
            with suppress(ObjectMissingError):
                await self._answered(obstore.delete_async(self._store, name))

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """The objects whose names begin with the folder `prefix`."""
        stream = obstore.list(self._store, prefix, chunk_size=_LISTED_AT_ONCE)
        while True:
            try:
                page = await self._answered(anext(stream))
            except StopAsyncIteration:
                return
            for entry in page:
                yield StoredObject(entry["path"], entry["size"], entry["last_modified"].timestamp())

    async def clear_unfinished(self, older_than_s: float) -> int:
        """Removes what processes that were killed had begun to write, in a folder. Returns how many."""
        if self._folder is None:
            return 0
        return await self._translated(asyncio.to_thread(_clear, self._folder, time.time() - older_than_s))

    async def _answered(self, command: Awaitable[T], within_s: float | None = None) -> T:
        async def in_time() -> T:
            async with asyncio.timeout(ANSWER_S if within_s is None else within_s):
                return await command

        return await self._translated(in_time())

    async def _translated(self, command: Awaitable[T]) -> T:
        try:
            return await command
        except (NotFoundError, FileNotFoundError) as error:
            missing_whole = _NO_BUCKET.search(str(error))
            raise (StorageUnavailableError if missing_whole else ObjectMissingError)(_first_line(error)) from error
        except (BaseError, OSError, TimeoutError) as error:
            kind = StorageFullError if _FULL.search(str(error)) else StorageUnavailableError
            raise kind(f"{self.where}: {_first_line(error) or 'no answer in time'}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _sync(path: Path) -> None:
    """Has a file and its name written to the disk."""
    for place in (path, path.parent):
        opened = os.open(place, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _clear(folder: Path, before_s: float) -> int:
    removed = 0
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names if _UNFINISHED.search(name)):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before_s:
                    path.unlink()
                    removed += 1
    return removed


def open_storage(url: str) -> Storage:
    """The storage at `url`: a folder (a path, or `file://…`), or `s3://`, `gs://`, `az://bucket/prefix`.

    Credentials, regions and endpoints of buckets come from the usual environment (`AWS_ACCESS_KEY_ID`,
    `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME` …). Connects to nothing. Raises
    ConfigurationError.
    """
    parts = urlsplit(url)
    if parts.scheme in {"", "file"}:
        return _folder(Path(unquote(parts.path) if parts.scheme else url))
    options: dict[str, Any] = {"client_options": _client_options(), "retry_config": _RETRIES}
    try:
        store = from_url(url, **options)
    except (BaseError, ValueError) as error:
        raise ConfigurationError(f"--storage-url: {url} cannot be used: {_first_line(error)}") from error
    if not isinstance(store, _BUCKETS):
        raise ConfigurationError(f"--storage-url: {url} is none of a folder, s3://…, gs://… and az://…")
    return Storage(store, url)


def _client_options() -> dict[str, Any]:
    """A server in the own network may speak plain HTTP, when its address says so."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    return {**_CLIENT, "allow_http": True} if endpoint.startswith("http://") else dict(_CLIENT)


def _folder(path: Path) -> Storage:
    path = path.expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        store = LocalStore(path, automatic_cleanup=True)
    except (OSError, BaseError) as error:
        raise ConfigurationError(f"--storage-url: the folder {path} cannot be used: {_first_line(error)}") from error
    return Storage(store, str(path), path)
