"""Finding a request by its id, whoever has admitted it, and letting it go.

An id names its shard and not its pool, so the record is looked up in every pool that is known: there are few. What
belongs to another tenant is not found.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from api.auth import may_see
from api.catalog import Catalog
from shared import errors
from shared.errors import BrokerUnavailableError
from shared.hot import HotClient, both
from shared.ids import shard_of
from shared.keys import Keys
from shared.scripts import Scripts
from shared.states import TERMINAL, State

_TIMEOUT_S = 5.0
_LOST_LOOK_S = 0.25
_CANCEL_LOOKS = 30
_CANCEL_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class Facts:
    """What the record of a request says. Times are Unix milliseconds, 0 for what has not happened.

    Attributes:
        kept: whether there is an answer, or the part of one, to read. A request that has not ended may have none yet.
        stays: it goes on when nobody follows it.
        cancel: why it shall be cancelled; empty when nobody has asked for that.
        heard: how many replicas listened when it ended.
        discarded: its result was deleted.
        endpoint: the route that its client called; empty for a request that an operator has admitted again.
        model: the served name that it asked for; likewise.
        trace: the `traceparent` of its place in a trace; empty without one.
    """

    rid: str
    keys: Keys
    state: State
    reason: str
    lane: str
    queue: str
    owner: str
    claims: int
    kept: bool
    stays: bool
    cancel: str
    heard: int
    discarded: bool
    queued_at_ms: int
    started_at_ms: int
    finished_at_ms: int
    prompt_tokens: int
    completion_tokens: int
    endpoint: str = ""
    model: str = ""
    trace: str = ""

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self.state in TERMINAL


class Requests:
    """The requests of all replicas."""

    def __init__(self, client: HotClient, catalog: Catalog, *, result_ttl_ms: int) -> None:
        """`result_ttl_ms`: how long the result of a request that is cancelled here stays."""
        self._client = client
        self._catalog = catalog
        self._ttl_ms = result_ttl_ms

    async def find(self, rid: str, tenant: str, *, to_delete: bool = False, lost_grace_s: float = 0) -> Facts:
        """A request of this tenant. Raises RequestError (404), BrokerUnavailableError.

        One that was deleted is not found; `to_delete`: unless it still goes on, since its deletion was not completed.
        `lost_grace_s`: how long to wait for one that is not there: Redis may have lost it, and its worker have it.
        """
        try:
            shard = shard_of(rid)
        except ValueError:
            raise errors.not_found(f"The request `{rid}`") from None
        give_up_at_s = time.monotonic() + lost_grace_s
        while True:
            facts = await self._own(rid, shard, tenant)
            if facts is not None or time.monotonic() >= give_up_at_s:
                break
            await asyncio.sleep(_LOST_LOOK_S)
        if facts is None or (facts.discarded and (facts.terminal or not to_delete)):
            raise errors.not_found(f"The request `{rid}`")
        return facts

    async def _own(self, rid: str, shard: int, tenant: str) -> Facts | None:
        for keys in await self.shards(shard):
            owner = await self._client.call("HGET", keys.record(rid), "tenant", timeout_s=_TIMEOUT_S)
            if owner is not None and may_see(tenant, owner.decode()):
                return await self.look(keys, rid)
        return None

    async def shards(self, shard: int) -> list[Keys]:
        """That shard of every pool. Raises BrokerUnavailableError."""
        pools = {pool.keys.pool: pool.keys for pool in (await self._catalog.models()).pools.values()}
        return [Keys(keys.pool, shard, keys.prefix) for keys in pools.values()]

    async def look(self, keys: Keys, rid: str) -> Facts | None:
        """What the record says; None without one. Raises BrokerUnavailableError."""
        record = self._client.send("HGETALL", keys.record(rid), timeout_s=_TIMEOUT_S)
        log = self._client.send("EXISTS", keys.log(rid), timeout_s=_TIMEOUT_S)
        flat, kept = await both(record, log)
        fields = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
        return facts_of(keys, rid, fields, kept=bool(kept)) if "state" in fields else None

    async def known_elsewhere(self, keys: Keys, scope: str) -> bool:
        """Whether another pool knows an idempotency key: then it was used with another model."""
        others = [other for other in await self.shards(keys.shard) if other.pool != keys.pool]
        asked = [self._client.call("EXISTS", other.idempotency(scope), timeout_s=_TIMEOUT_S) for other in others]
        return any(await asyncio.gather(*asked))

    async def followed(self, keys: Keys, rid: str) -> bool:
        """Whether any replica listens to a request. Raises BrokerUnavailableError."""
        _, listeners = await self._client.call("PUBSUB", "NUMSUB", keys.channel(rid), timeout_s=_TIMEOUT_S)
        return int(listeners) > 0

    async def stored(self, keys: Keys, rid: str) -> bool:
        """Whether a request is stored as a response, which clients may come back for. Raises BrokerUnavailableError."""
        return bool(await self._client.call("EXISTS", keys.response(rid), timeout_s=_TIMEOUT_S))

    async def cancel(self, keys: Keys, rid: str, reason: str) -> str:
        """Cancels a request in whatever phase it is. Returns DONE, SENT, GONE or its terminal state.

        Raises BrokerUnavailableError, also when the request changes hands again and again: then it may go on.
        """
        scripts = Scripts(self._client, keys, result_ttl_ms=self._ttl_ms)
        for _ in range(_CANCEL_LOOKS):
            record = keys.record(rid)
            owner, queue = await self._client.call("HMGET", record, "owner", "queue", timeout_s=_TIMEOUT_S)
            seen_owner, seen_queue = (owner or b"-").decode(), (queue or b"-").decode()
            outcome = await scripts.cancel(rid, owner=seen_owner, queue=seen_queue, reason=reason)
            if outcome != "RETRY":
                return outcome
            await asyncio.sleep(_CANCEL_PAUSE_S)
        msg = f"request {rid} changes hands again and again"
        raise BrokerUnavailableError(msg)

    async def discard(self, keys: Keys, rid: str) -> None:
        """Takes the result away, now or right after the end. Raises BrokerUnavailableError."""
        await Scripts(self._client, keys).discard(rid)


def facts_of(keys: Keys, rid: str, fields: dict[str, str], *, kept: bool) -> Facts:
    """The facts in a record's fields."""

    def number(name: str) -> int:
        return int(fields.get(name, "0"))

    return Facts(
        rid=rid,
        keys=keys,
        state=State(fields["state"]),
        reason=fields.get("reason", ""),
        lane=fields.get("lane", ""),
        queue=fields.get("queue", ""),
        owner=fields.get("owner", ""),
        claims=number("claims"),
        kept=kept,
        stays=fields.get("stays") == "1",
        cancel=fields.get("cancel", ""),
        heard=number("heard"),
        discarded=fields.get("discarded") == "1",
        queued_at_ms=number("queued_at_ms"),
        started_at_ms=number("started_at_ms"),
        finished_at_ms=number("finished_at_ms"),
        prompt_tokens=number("prompt_tokens"),
        completion_tokens=number("completion_tokens"),
        endpoint=fields.get("endpoint", ""),
        model=fields.get("model", ""),
        trace=fields.get("trace", ""),
    )
