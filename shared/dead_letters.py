"""Dead letters: requests that were given up, kept with body and history; looked at, redriven or dropped by people.

A letter is named by its entry (`1763790000000-0`) or by its request's id. Redriving one admits the same request again
under a new id, once: who redrives it again is told that id.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio

from shared.connection import RedisCaller, broker_errors
from shared.history import Event, events_of
from shared.ids import new_request_id
from shared.keys import Keys
from shared.outcomes import Admission
from shared.registry import Registry
from shared.scripts import Scripts
from shared.wire import Request, decode_request, encode

PATIENCE_MS = 86_400_000
"""How long a redriven request may take, waiting included."""
_PAGE = 50
_RID_HEADER = "x-request-id"


@dataclass(frozen=True, slots=True)
class Letter:
    """A request that was given up.

    Attributes:
        keys: those of its shard.
        entry: its entry in the stream.
        at_ms: when it was given up, Unix ms.
        body: the request (`wire.Request`), or what could not be read as one.
        redriven_as: the request id under which it was admitted again; empty if it was not.
    """

    keys: Keys
    entry: str
    rid: str
    reason: str
    at_ms: int
    queued_at_ms: int
    lane: str
    tenant: str
    cost: int
    kills: int
    claims: int
    fingerprint: str
    history: tuple[Event, ...]
    body: bytes
    redriven_as: str

    @property
    def request(self) -> Request | None:
        """The request; None when the body is not one."""
        try:
            return decode_request(self.body)
        except msgspec.MsgspecError:
            return None

    def facts(self) -> dict[str, Any]:
        """For people and for JSON: everything but the body."""
        return {
            "id": self.entry,
            "request": self.rid,
            "pool": self.keys.pool,
            "reason": self.reason,
            "failed_at_ms": self.at_ms,
            "queued_at_ms": self.queued_at_ms,
            "lane": self.lane,
            "tenant": self.tenant,
            "cost_tokens": self.cost,
            "kills": self.kills,
            "claims": self.claims,
            "redriven_as": self.redriven_as or None,
            "history": [
                {
                    "started_at_ms": event.started_at_ms,
                    "at_ms": event.at_ms,
                    "what": event.what,
                    "worker": event.wid,
                    "attempt": event.attempt,
                }
                for event in self.history
            ],
        }


class DeadLetters:
    """The dead letters of all pools. Every method raises BrokerUnavailableError."""

    def __init__(self, client: redis.asyncio.Redis, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._registry = Registry(client, prefix)

    async def all(self, *, most: int | None = None) -> list[Letter]:
        """The letters, the latest of each pool first; at most `most`."""
        found: list[Letter] = []
        async for letter in self._each():
            if most is not None and len(found) >= most:
                break
            found.append(letter)
        return found

    async def find(self, name: str) -> Letter | None:
        """The letter of that entry, or the latest one of that request id."""
        async for letter in self._each():
            if name in {letter.entry, letter.rid}:
                return letter
        return None

    async def redrive(self, letter: Letter) -> tuple[str, str]:
        """Admits the request again. Returns OK and the new id, DUP and the id it was given before, or GONE."""
        rid = new_request_id(letter.keys.shard)
        body = letter.body
        if (request := letter.request) is not None:  # the engine names the generation by it: it must be the new one
            headers = [(name, rid if name == _RID_HEADER else value) for name, value in request.headers]
            body = encode(msgspec.structs.replace(request, headers=headers, stays=True))
        admission = Admission(
            rid=rid,
            fingerprint=letter.fingerprint,
            lane=letter.lane,
            body=body,
            tenant=letter.tenant,
            tenant_cap=0,
            prompt_tokens=letter.cost,
            output_limit=0,
            deadline_ms=0,
        )
        scripts = Scripts(RedisCaller(self._client), letter.keys)
        return await scripts.redrive(letter.entry, admission, patience_ms=PATIENCE_MS)

    @broker_errors
    async def drop(self, letter: Letter) -> bool:
        """Deletes a letter for good. False when it was gone already."""
        pipe = self._client.pipeline(transaction=False)
        pipe.xdel(letter.keys.dead_letters, letter.entry)
        pipe.hdel(letter.keys.redriven, letter.entry)
        return bool((await pipe.execute())[0])

    async def _each(self) -> AsyncIterator[Letter]:
        for pool in sorted(await self._registry.known()):
            keys = Keys(pool, prefix=self._prefix)
            last = "+"
            while page := await self._page(keys, last):
                for letter in page:
                    yield letter
                last = f"({page[-1].entry}"

    @broker_errors
    async def _page(self, keys: Keys, last: str) -> list[Letter]:
        entries = await self._client.xrevrange(keys.dead_letters, last, "-", count=_PAGE)
        if not entries:
            return []
        redriven = await self._client.hmget(keys.redriven, [entry for entry, _ in entries])  # type: ignore[misc]
        return [
            _letter(keys, entry.decode(), fields, (rid or b"").decode())
            for (entry, fields), rid in zip(entries, redriven, strict=True)
        ]


def _letter(keys: Keys, entry: str, fields: dict[bytes, bytes], redriven_as: str) -> Letter:
    def text(name: str) -> str:
        return fields.get(name.encode(), b"").decode()

    def number(name: str) -> int:
        return int(text(name) or 0)

    return Letter(
        keys=keys,
        entry=entry,
        rid=text("rid"),
        reason=text("reason"),
        at_ms=int(entry.partition("-")[0]),
        queued_at_ms=number("queued_at_ms"),
        lane=text("lane") or "standard",
        tenant=text("tenant"),
        cost=number("cost"),
        kills=number("kills"),
        claims=number("claims"),
        fingerprint=text("fingerprint"),
        history=events_of(text("history")),
        body=fields.get(b"body", b""),
        redriven_as=redriven_as,
    )
