"""Files: bytes in the object storage, facts in Redis, and a sidecar of the facts beside the bytes.

The order of writes is what keeps half a file from ever being seen, and a deleted one from coming back:

    create   object → index → sidecar      delete   sidecar → index → object

A file is there when it is in the index. `sweep` (called by `batch/`) puts right what was interrupted: an object without
index and sidecar was never a file; one with its sidecar is a file that Redis has lost, and is entered again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, replace

import msgspec
import redis.asyncio

from shared import errors, file_errors
from shared.errors import ObjectMissingError, StorageUnavailableError
from shared.file_index import NO_QUOTA, FileFacts, FileIndex, Order, Put, Quota, UploadKey, facts_of, object_name
from shared.ids import is_file_id, new_file_id
from shared.keys import GlobalKeys
from shared.storage import Storage, StoredObject

log = logging.getLogger(__name__)

SETTLED_S = 900.0
"""Age of an object from which on its file is in the index, or never will be."""
UNFINISHED_S = 86_400.0
"""Age from which on nobody goes on with what is not finished. A slow upload writes a part of some megabytes at once."""
_EXPIRED_AT_ONCE = 500
_SIDECAR = ".json"


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes that are in the storage and are no file yet."""

    id: str
    tenant: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FilePage:
    """Some files, and whether there are more behind them."""

    files: list[FileFacts]
    has_more: bool


@dataclass(slots=True)
class Swept:
    """What a sweep has found: files past their time, leftovers, files that Redis had lost, facts without bytes."""

    expired: int = 0
    leftovers: int = 0
    restored: int = 0
    hollow: int = 0


class Files:
    """The files of all tenants.

    Every method raises BrokerUnavailableError and StorageUnavailableError (StorageFullError when there is no room).
    What belongs to another tenant is not there.
    """

    def __init__(
        self, storage: Storage, client: redis.asyncio.Redis, keys: GlobalKeys, quota: Quota = NO_QUOTA
    ) -> None:
        self._storage = storage
        self.index = FileIndex(client, keys)
        self._quota = quota

    async def create(
        self,
        tenant: str,
        filename: str,
        purpose: str,
        chunks: AsyncIterable[bytes],
        expires_at: int | None = None,
        most_bytes: int = 0,
    ) -> FileFacts:
        """Stores a file, in bounded memory. `expires_at`: Unix s. `most_bytes` 0: no bound.

        Raises RequestError: 413 over `most_bytes`, 403 over the tenant's quota. What `chunks` raises leaves this method
        as it is. In all these cases nothing is left behind.
        """
        received = await self.receive(tenant, chunks, most_bytes)
        return await self.register(received, filename, purpose, expires_at)

    async def receive(
        self, tenant: str, chunks: AsyncIterable[bytes], most_bytes: int = 0, file_id: str = ""
    ) -> Received:
        """The first half of `create`: the bytes, under an id that nobody sees yet. Raises as `create`.

        `file_id`: an id that was chosen before, so that doing it again writes the same file; is_file_id must hold. What
        was complete when this was cancelled stays: somebody else may have written it.
        """
        chosen, file_id = bool(file_id), file_id or new_file_id()
        digest = hashlib.sha256()

        async def measured() -> AsyncIterator[bytes]:
            size = 0
            async for chunk in chunks:
                size += len(chunk)
                if most_bytes and size > most_bytes:
                    raise file_errors.file_too_large(most_bytes)
                digest.update(chunk)
                yield chunk

        size = await self._storage.put(object_name(tenant, file_id), measured(), shared=chosen)
        return Received(file_id, tenant, size, digest.hexdigest())

    async def register(
        self,
        received: Received,
        filename: str,
        purpose: str,
        expires_at: int | None = None,
        key: UploadKey | None = None,
    ) -> FileFacts:
        """The second half of `create`: makes a file of the bytes. May be repeated as it is.

        With a key that has led to a file before, it returns that file, or raises RequestError (422) when it was another
        upload's; the bytes are dropped then.
        """
        facts = FileFacts(
            id=received.id,
            tenant=received.tenant,
            filename=filename,
            purpose=purpose,
            bytes=received.bytes,
            created_at=int(time.time()),
            expires_at=expires_at,
            sha256=received.sha256,
            idempotency=key.hash if key else "",
        )
        put = await self.index.put(facts, self._quota, key)
        first = await self._first(received.tenant, put)
        if put.outcome == "DUP" and first is None and key is not None:  # it has expired, or Redis has lost it
            put = await self.index.put(facts, self._quota, replace(key, replaces=put.id))
            first = await self._first(received.tenant, put)  # another upload may have been faster
        if put.outcome == "OK":
            await self._write_sidecar(facts)
            return facts
        await self.discard(received)
        if put.outcome != "DUP":
            raise file_errors.file_quota_exceeded("bytes" if put.outcome == "BYTES" else "files")
        if first is None or key is None or put.fingerprint != key.fingerprint:
            raise errors.idempotency_key_mismatch()
        return first

    async def _first(self, tenant: str, put: Put) -> FileFacts | None:
        """The file that a key has led to before."""
        return await self.find(tenant, put.id) if put.outcome == "DUP" else None

    async def check_quota(self, tenant: str) -> None:
        """Raises RequestError (403) when the tenant stores as much as it may already."""
        if 0 < self._quota.bytes <= await self.index.used_bytes(tenant):
            raise file_errors.file_quota_exceeded("bytes")
        if 0 < self._quota.files <= await self.index.count(tenant):
            raise file_errors.file_quota_exceeded("files")

    async def discard(self, received: Received) -> None:
        """Drops bytes of which no file is to be made. What cannot be dropped now, a sweep will."""
        try:
            await self._storage.delete(object_name(received.tenant, received.id))
        except StorageUnavailableError as error:
            log.warning("left %s for the sweep: %s", received.id, error)

    async def _write_sidecar(self, facts: FileFacts) -> None:
        try:
            await self._storage.put(facts.object_name + _SIDECAR, msgspec.json.encode(facts.fields()))
        except StorageUnavailableError as error:
            log.warning("the sidecar of %s is left for the sweep: %s", facts.id, error)

    async def find(self, tenant: str, file_id: str) -> FileFacts | None:
        """A file of this tenant; None when there is none, when it has expired, or is somebody else's."""
        facts = await self.index.find(file_id) if is_file_id(file_id) else None
        if facts is None or facts.tenant != tenant or facts.expired(time.time()):
            return None
        return facts

    async def list(
        self, tenant: str, after: str = "", limit: int = 10_000, order: Order = "desc", purpose: str = ""
    ) -> FilePage:
        """A tenant's files by creation, from behind the id `after` on; only those of `purpose`, if one is given."""
        now_s = time.time()
        found: list[FileFacts] = []
        async for facts in self.index.each(tenant, after, order):
            if facts.expired(now_s) or (purpose and facts.purpose != purpose):
                continue
            if len(found) == limit:
                return FilePage(found, has_more=True)
            found.append(facts)
        return FilePage(found, has_more=False)

    def open(self, facts: FileFacts, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`, as they come. Raises ObjectMissingError before the first ones."""
        return self._storage.chunks(facts.object_name, start, end)

    async def delete(self, tenant: str, file_id: str) -> bool:
        """Deletes a file of this tenant. False when there is none."""
        facts = await self.find(tenant, file_id)
        return facts is not None and await self._delete(facts)

    async def _delete(self, facts: FileFacts) -> bool:
        await self._storage.delete(facts.object_name + _SIDECAR)
        dropped = await self.index.drop(facts)
        await self._storage.delete(facts.object_name)
        return dropped

    async def sweep(self, *, settled_s: float = SETTLED_S) -> Swept:
        """Deletes what has expired, and puts right what was interrupted or lost. Any number may run at once.

        Reads the names of all files. `settled_s`: age from which on what is not in the index was left over; what is
        not even whole has UNFINISHED_S.
        """
        swept = Swept()
        while expired := await self.index.expired(time.time(), _EXPIRED_AT_ONCE):
            for facts in expired:
                await self._delete(facts)
            swept.expired += len(expired)
        swept.leftovers += await self._storage.clear_unfinished(UNFINISHED_S)
        before_s = time.time() - settled_s
        async for pair in _pairs(self._storage.list("files")):
            await self._look_at(pair, before_s, swept)
        return swept

    async def _look_at(self, pair: _Pair, before_s: float, swept: Swept) -> None:
        if pair.modified_at_s > before_s or not is_file_id(pair.id):
            return
        known = await self.index.find(pair.id)
        if known is not None and known.object_name == pair.name:
            if not pair.has_object and await self._storage.size(pair.name) is None:
                swept.hollow += await self._delete(known)
            elif not pair.has_sidecar:
                await self._write_sidecar(known)
        elif not (pair.has_sidecar and pair.has_object and await self._restored(pair)):
            await self._storage.delete(pair.name + _SIDECAR, pair.name)
            swept.leftovers += 1
        else:
            swept.restored += 1

    async def _restored(self, pair: _Pair) -> bool:
        """Enters a file again that Redis has lost. The sidecar is read now: who deletes a file begins with it."""
        try:
            raw = await self._storage.read(pair.name + _SIDECAR)
            facts = facts_of(pair.id, msgspec.json.decode(raw, type=dict[str, str]))
        except (ObjectMissingError, msgspec.MsgspecError, KeyError, ValueError):
            return False
        if facts.object_name != pair.name or facts.expired(time.time()):
            return False
        return (await self.index.put(replace(facts, idempotency=""), NO_QUOTA)).outcome == "OK"


@dataclass(slots=True)
class _Pair:
    """What the storage has of one file."""

    name: str
    modified_at_s: float = 0.0
    has_object: bool = False
    has_sidecar: bool = False

    @property
    def id(self) -> str:
        return self.name.rpartition("/")[2]


async def _pairs(objects: AsyncIterator[StoredObject]) -> AsyncIterator[_Pair]:
    """Objects with their sidecars. A folder lists in no order, so all names are held: some hundred bytes for each."""
    pairs: dict[str, _Pair] = {}
    async for stored in objects:
        name = stored.name.removesuffix(_SIDECAR)
        pair = pairs.setdefault(name, _Pair(name))
        pair.modified_at_s = max(pair.modified_at_s, stored.modified_at_s)
        pair.has_sidecar |= name != stored.name
        pair.has_object |= name == stored.name
    for pair in pairs.values():
        yield pair
