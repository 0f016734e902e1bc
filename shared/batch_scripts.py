"""One typed method per Lua script of batches. They run in one slot of their own, not in that of a pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgpack

from shared.keys import GlobalKeys
from shared.luascripts import load
from shared.outcomes import Caller

LEASE_MS = 6_000
"""How long a batch belongs to its driver without a sign of life."""
IDEMPOTENCY_TTL_MS = 86_400_000
"""How long it is known which batch a key has made."""

_READ_AT_ONCE = 1_000
"""Entries of the outbox that one call of `batch_notify` takes over."""

Standing = Literal["active", "told", "untold"]
"""Of a batch that is restored. `untold`: it has ended, and nobody may have been told."""
Told = Literal["delivered", "failed", "refused", "again", "later", "none"]
"""What became of a webhook. `refused`: given up untried; `later`: not tried yet; `none`: there is nobody to be told."""

Facts = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Taken:
    """What `batch_take` answers. `record`: the batch's fields, as they are now."""

    outcome: Literal["OK", "HELD", "ENDED", "GONE"]
    epoch: int = 0
    record: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What the owner's scripts answer: `status` of the batch, `now_ms` of the server where it says so."""

    outcome: Literal["OK", "OTHER", "FENCED", "GONE", "TAKEN", "CLOSED"]
    status: str = ""
    now_ms: int = 0


@dataclass(frozen=True, slots=True)
class Whole:
    """What `batch_read` answers: a batch as of one moment. `parts`: entries of the list."""

    record: dict[str, str]
    bitmap: bytes
    parts: list[str]


@dataclass(frozen=True, slots=True)
class Due:
    """What `batch_notify` answers: how many ends are to be told, now or later, and what was handed out."""

    waiting: int
    batches: list[str]


class BatchScripts:
    """The scripts of batches. Every method raises BrokerUnavailableError: it may be repeated as it is."""

    def __init__(self, caller: Caller, prefix: str) -> None:
        self._caller = caller
        self._keys = GlobalKeys(prefix)

    async def _run(self, name: str, keys: list[str], args: list[Any]) -> Any:
        script = load(name)
        return await self._caller.evalsha(script.sha, script.text, keys, args)

    async def create(
        self,
        batch: str,
        tenant: str,
        facts: Facts,
        *,
        window_ms: int,
        scope: str = "",
        fingerprint: str = "",
        secret: str = "",
        full: bool = False,
    ) -> tuple[str, str]:
        """Nothing → validating. Returns OK, DUP, CONFLICT or FULL with the id.

        `scope`: hash of the idempotency key. `secret`: of the batch's own webhook. `full`: nothing new gets in.
        """
        k = self._keys
        keys = [k.batch(batch), k.batches_of(tenant), k.batches_active, k.batch_idempotency(scope or "-")]
        keys.append(k.batch_secret(batch))
        args = [batch, fingerprint, IDEMPOTENCY_TTL_MS if scope else 0, window_ms, secret, int(full)]
        args += ["tenant", tenant, *_flat(facts)]
        outcome, found = await self._run("batch_create", keys, args)
        return outcome.decode(), found.decode()

    async def take(self, batch: str, token: str) -> Taken:
        """Makes the driver of that token the owner, if there is none."""
        keys = [self._keys.batch(batch), self._keys.batches_active]
        reply = await self._run("batch_take", keys, [batch, token, LEASE_MS])
        if reply[0] != b"OK":
            return Taken(reply[0].decode())
        return Taken("OK", int(reply[1]), record_of(reply[2]))

    async def keep(
        self,
        batch: str,
        token: str,
        facts: Facts | None = None,
        *,
        move: tuple[str, str] = ("", ""),
        leave: bool = False,
    ) -> Kept:
        """Renews the lease, or with `leave` gives it back; writes facts; moves the batch from one status to another."""
        args = [token, 0 if leave else LEASE_MS, *move, *_flat(facts or {})]
        return _kept(await self._run("batch_keep", [self._keys.batch(batch)], args))

    async def commit(
        self, batch: str, token: str, part: tuple[str, str], rows: Sequence[int], grows: Mapping[str, int]
    ) -> Kept:
        """Makes a part count. `part`: its name and the rest of its entry. `grows`: counts and usage that are added."""
        k = self._keys
        name, rest = part
        args = [token, LEASE_MS, name, f"{name} {rest}", msgpack.packb(list(rows)), *_flat(grows)]
        keys = [k.batch(batch), k.batch_rows(batch), k.batch_parts(batch)]
        reply = await self._run("batch_commit", keys, args)
        return Kept(reply[0].decode(), str(reply[1]) if reply[0] == b"TAKEN" else _word(reply[1:]))

    async def end(self, batch: str, token: str, status: str, facts: Facts) -> Kept:
        """Ends a batch. The status that it got is in the answer: cancelled, if that was asked for meanwhile."""
        k = self._keys
        args = [batch, token, status, *_flat(facts)]
        return _kept(await self._run("batch_end", [k.batch(batch), k.batches_active, k.batches_ended], args))

    async def cancel(self, batch: str) -> tuple[str, str]:
        """Asks for an end. Returns OK, ENDED or GONE, and the status."""
        reply = await self._run("batch_cancel", [self._keys.batch(batch)], [])
        return reply[0].decode(), _word(reply[1:])

    async def read(self, batch: str) -> Whole | None:
        """A batch with its committed rows and its parts, as of one moment."""
        k = self._keys
        keys = [k.batch(batch), k.batch_rows(batch), k.batch_parts(batch)]
        record, bitmap, parts = await self._run("batch_read", keys, [])
        return Whole(record_of(record), bitmap, [entry.decode() for entry in parts]) if record else None

    async def restore(
        self, batch: str, facts: Mapping[str, str], bitmap: bytes, parts: Iterable[str], standing: Standing
    ) -> str:
        """Gives Redis back what it has lost. Returns OK or KNOWN."""
        k = self._keys
        keys = [k.batch(batch), k.batches_of(facts["tenant"]), k.batches_active]
        keys += [k.batch_rows(batch), k.batch_parts(batch), k.batch_hooks]
        args = [batch, bitmap, msgpack.packb(list(parts)), facts["created_at_ms"], standing, *_flat(facts)]
        return str((await self._run("batch_restore", keys, args)).decode())

    async def forget(self, batch: str, tenant: str) -> str:
        """Takes away a batch that has ended. Returns OK or BUSY."""
        k = self._keys
        keys = [k.batch(batch), k.batches_of(tenant), k.batch_rows(batch), k.batch_parts(batch)]
        return str((await self._run("batch_forget", keys, [batch])).decode())

    async def trim(self, batch: str) -> str:
        """Takes away what is known of the parts of a batch that has ended. Returns OK, BUSY or GONE."""
        k = self._keys
        keys = [k.batch(batch), k.batch_rows(batch), k.batch_parts(batch)]
        return str((await self._run("batch_trim", keys, [])).decode())

    async def notify(self, most: int, *, lease_ms: int) -> Due:
        """Hands out at most so many batches whose end is to be told; they come again after the lease."""
        k = self._keys
        keys = [k.batches_ended, k.batch_hooks_read, k.batch_hooks]
        waiting, *found = await self._run("batch_notify", keys, [lease_ms, most, _READ_AT_ONCE])
        return Due(waiting, [batch.decode() for batch in found])

    async def notified(self, batch: str, before: int, outcome: Told, *, after_ms: int = 0, status: str = "") -> str:
        """Settles what was handed out. `before`: attempts before this one. Returns OK, ENDED, STALE or GONE."""
        k = self._keys
        keys = [k.batch(batch), k.batch_hooks, k.batch_secret(batch)]
        args = [batch, before, outcome, after_ms, status]
        return str((await self._run("batch_notified", keys, args))[0].decode())


def record_of(flat: list[bytes]) -> dict[str, str]:
    """A hash's fields, as HGETALL gives them."""
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _flat(facts: Facts) -> list[str]:
    return [str(word) for pair in facts.items() for word in pair]


def _word(rest: list[bytes]) -> str:
    return rest[0].decode() if rest else ""


def _kept(reply: list[Any]) -> Kept:
    return Kept(reply[0].decode(), _word(reply[1:2]), int(reply[2]) if len(reply) > 2 else 0)  # noqa: PLR2004
