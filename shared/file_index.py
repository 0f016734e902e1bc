"""The index of stored files in Redis: the facts of each, and each tenant's list, bytes and expiries.

Only what stands here is visible. It is written after the object is complete (`shared/files.py`), in one script with the
tenant's quota. Ids sort by creation, so the id of the last file of a page is a cursor that stays good whatever comes
and goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import redis.asyncio

from shared.connection import RedisCaller, broker_errors
from shared.keys import GlobalKeys
from shared.luascripts import load

Order = Literal["asc", "desc"]
_READ_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a stored file.

    Attributes:
        created_at: Unix s.
        expires_at: Unix s from which on it is not there any more; None for never.
        sha256: of its bytes, in hex.
        idempotency: hash of the key of its upload; empty without one.
    """

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None = None
    sha256: str = ""
    idempotency: str = ""

    @property
    def object_name(self) -> str:
        """Where its bytes are in the storage."""
        return object_name(self.tenant, self.id)

    def expired(self, now_s: float) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= now_s

    def fields(self) -> dict[str, str]:
        """As a hash of Redis, and in the sidecar."""
        return {
            "tenant": self.tenant,
            "filename": self.filename,
            "purpose": self.purpose,
            "bytes": str(self.bytes),
            "created_at": str(self.created_at),
            "expires_at": str(self.expires_at or 0),
            "sha256": self.sha256,
            "idempotency": self.idempotency,
        }


def facts_of(file_id: str, fields: dict[str, str]) -> FileFacts:
    """The reverse of `FileFacts.fields`. Raises KeyError or ValueError for what is none."""
    return FileFacts(
        id=file_id,
        tenant=fields["tenant"],
        filename=fields["filename"],
        purpose=fields["purpose"],
        bytes=int(fields["bytes"]),
        created_at=int(fields["created_at"]),
        expires_at=int(fields["expires_at"]) or None,
        sha256=fields.get("sha256", ""),
        idempotency=fields.get("idempotency", ""),
    )


def tenant_hash(tenant: str) -> str:
    """What stands for a tenant in keys and in the names of objects."""
    return hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def object_name(tenant: str, file_id: str) -> str:
    """The name of a file's object."""
    return f"files/{tenant_hash(tenant)}/{file_id}"


@dataclass(frozen=True, slots=True)
class Quota:
    """What one tenant may store; 0 is without a bound."""

    bytes: int = 0
    files: int = 0


NO_QUOTA = Quota()


@dataclass(frozen=True, slots=True)
class UploadKey:
    """The idempotency key of an upload.

    Attributes:
        hash: of tenant and key.
        fingerprint: of what was uploaded.
        replaces: the file that may lose the key, because it is gone.
    """

    hash: str
    fingerprint: str
    ttl_ms: int
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class Put:
    """What `file_put` answers: `stored` bytes or files where there are too many; whose the key is, for DUP."""

    outcome: Literal["OK", "DUP", "BYTES", "FILES"]
    stored: int = 0
    id: str = ""
    fingerprint: str = ""


class FileIndex:
    """The files of all tenants. Every method raises BrokerUnavailableError."""

    def __init__(self, client: redis.asyncio.Redis, keys: GlobalKeys) -> None:
        self._client = client
        self._caller = RedisCaller(client)
        self._keys = keys

    async def put(self, facts: FileFacts, quota: Quota, key: UploadKey | None = None) -> Put:
        """Enters a file. May be repeated as it is."""
        args: list[Any] = [facts.id, tenant_hash(facts.tenant), facts.bytes, facts.expires_at or 0]
        args += [quota.bytes, quota.files]
        args += [key.fingerprint, key.ttl_ms, key.replaces] if key else ["", 0, ""]
        args += [word for pair in facts.fields().items() for word in pair]
        reply = await self._run("file_put", self._of(facts, key.hash if key else "-"), args)
        outcome = reply[0].decode()
        if outcome == "DUP":
            return Put("DUP", 0, reply[1].decode(), reply[2].decode())
        return Put(outcome, int(reply[1]) if len(reply) > 1 else 0)

    async def drop(self, facts: FileFacts) -> bool:
        """Takes a file out. False when it was not there."""
        keys = self._of(facts, facts.idempotency or "-")
        return bool(await self._run("file_drop", keys, [facts.id, tenant_hash(facts.tenant)]))

    @broker_errors
    async def find(self, file_id: str) -> FileFacts | None:
        """A file of whomever, expired or not."""
        return _read(file_id, await self._client.hgetall(self._keys.file(file_id)))  # type: ignore[misc]

    async def each(self, tenant: str, after: str, order: Order) -> AsyncIterator[FileFacts]:
        """A tenant's files by creation, from behind the id `after` on."""
        while True:
            ids = await self._ids(tenant_hash(tenant), after, order)
            for facts in await self._facts(ids):
                yield facts
            if len(ids) < _READ_AT_ONCE:
                return
            after = ids[-1]

    @broker_errors
    async def _ids(self, tenant: str, after: str, order: Order) -> list[str]:
        key = self._keys.tenant_files(tenant)
        if order == "asc":
            found = await self._client.zrangebylex(key, f"({after}" if after else "-", "+", 0, _READ_AT_ONCE)
        else:
            found = await self._client.zrevrangebylex(key, f"({after}" if after else "+", "-", 0, _READ_AT_ONCE)
        return [file_id.decode() for file_id in found]

    @broker_errors
    async def _facts(self, ids: list[str]) -> list[FileFacts]:
        pipe = self._client.pipeline(transaction=False)
        for file_id in ids:
            pipe.hgetall(self._keys.file(file_id))
        read = zip(ids, await pipe.execute() if ids else [], strict=True)
        return [facts for file_id, fields in read if (facts := _read(file_id, fields)) is not None]

    @broker_errors
    async def expired(self, now_s: float, most: int) -> list[FileFacts]:
        """Files whose time is over, those of the longest ago first."""
        found = await self._client.zrangebyscore(self._keys.file_expiries, "-inf", now_s, 0, most)
        return await self._facts([file_id.decode() for file_id in found])

    @broker_errors
    async def used_bytes(self, tenant: str) -> int:
        """What a tenant stores."""
        return int(await self._client.hget(self._keys.file_bytes, tenant_hash(tenant)) or 0)  # type: ignore[misc]

    @broker_errors
    async def count(self, tenant: str) -> int:
        """How many files a tenant stores."""
        return int(await self._client.zcard(self._keys.tenant_files(tenant_hash(tenant))))

    @broker_errors
    async def bound(self, key_hash: str) -> tuple[str, str] | None:
        """To which file an idempotency key has led, and the fingerprint of its upload."""
        value = await self._client.get(self._keys.file_idempotency(key_hash))
        if value is None:
            return None
        file_id, _, fingerprint = value.decode().partition("|")
        return file_id, fingerprint

    def _of(self, facts: FileFacts, key_hash: str) -> list[str]:
        k = self._keys
        index = k.tenant_files(tenant_hash(facts.tenant))
        return [k.file(facts.id), index, k.file_bytes, k.file_expiries, k.file_idempotency(key_hash)]

    async def _run(self, name: str, keys: list[str], args: list[Any]) -> Any:
        script = load(name)
        return await self._caller.evalsha(script.sha, script.text, keys, args)


def _read(file_id: str, fields: dict[bytes, bytes]) -> FileFacts | None:
    if not fields:
        return None
    return facts_of(file_id, {name.decode(): value.decode("utf-8") for name, value in fields.items()})
