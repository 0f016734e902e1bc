"""Which tenants used most of late: what the tenants' metrics say.

Read from the outbox of ended requests, once for each request and replica, and only while somebody scrapes; neither a
token nor an admission pays for it. This is for looking, not for billing: what ended while too many others did is
counted as unread, and a window is forgotten with its replica.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import redis.asyncio

from shared import metrics
from shared.keys import Keys
from shared.metrics import Value

WINDOW_S = 300
OTHER = "other"
"""No tenant has this name: see `api/auth.py`."""
_PAGE = 500
_PAGES = 10
"""Ended requests that one scrape reads at most, in pages: 5000. Above that the oldest are left out."""
_FIELDS = ["tenant", "prompt_tokens", "completion_tokens"]
_KINDS = ("prompt", "completion")


@dataclass(slots=True)
class _Ended:
    """What ended by then and since the piece before, by tenant."""

    at_ms: int
    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)


class TenantUsage:
    """The usage of the last `WINDOW_S`, as far as this replica has read it."""

    def __init__(self, client: redis.asyncio.Redis, prefix: str, *, most: int) -> None:
        """`most`: tenants that have values of their own; 0 reads nothing."""
        self._client = client
        self._prefix = prefix
        self._most = most
        self._after: dict[str, str] = {}
        self._pieces: list[_Ended] = []

    async def read(self, pools: list[str]) -> list[Value]:
        """The tenants with the most tokens, and the others together. Raises redis.RedisError."""
        if not self._most:
            return []
        seconds, micros = await self._client.time()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        self._after = {pool: after for pool, after in self._after.items() if pool in pools}
        for pool in pools:
            await self._follow(pool, now_ms)
        self._pieces = [piece for piece in self._pieces if piece.at_ms >= now_ms - WINDOW_S * 1000]
        return list(_values(self._pieces, self._most))

    async def _follow(self, pool: str, now_ms: int) -> None:
        """Reads what has ended since the last time, at most `_PAGES` pages; of more, the newest."""
        keys = Keys(pool, prefix=self._prefix)
        after = self._after.get(pool, f"{now_ms - WINDOW_S * 1000}-0")
        for _ in range(_PAGES):
            entries = await self._client.xrange(keys.finished, min=f"({after}", count=_PAGE)
            if entries:
                after = entries[-1][0].decode()
                await self._count(keys, [fields[b"rid"].decode() for _, fields in entries], after)
            if len(entries) < _PAGE:
                self._after[pool] = after
                return
        newest = await self._client.xrevrange(keys.finished, count=1)
        left = len(await self._client.xrange(keys.finished, min=f"({after}", count=_PAGE))
        metrics.USAGE_UNREAD.inc(left)  # at least: what lies behind this page is not counted at all
        self._after[pool] = newest[0][0].decode() if newest else after

    async def _count(self, keys: Keys, rids: list[str], entry: str) -> None:
        """Counts these requests as ended when the outbox got `entry`."""
        pipe = self._client.pipeline(transaction=False)
        for rid in rids:
            pipe.hmget(keys.record(rid), _FIELDS)
        piece = _Ended(int(entry.partition("-")[0]))
        for tenant, *tokens in await pipe.execute():
            if tenant is None:  # its record is gone already
                continue
            name = tenant.decode()
            piece.requests[name] += 1
            for kind, number in zip(_KINDS, tokens, strict=True):
                piece.tokens[name, kind] += int(number or 0)
        self._pieces.append(piece)


def _values(pieces: Iterable[_Ended], most: int) -> Iterator[Value]:
    requests: Counter[str] = Counter()
    tokens: Counter[tuple[str, str]] = Counter()
    for piece in pieces:
        requests.update(piece.requests)
        tokens.update(piece.tokens)
    by_tokens = sorted(requests, key=lambda tenant: (-sum(tokens[tenant, kind] for kind in _KINDS), tenant))
    for tenant in by_tokens[:most]:
        yield metrics.TENANT_REQUESTS, (tenant,), requests[tenant]
        for kind in _KINDS:
            yield metrics.TENANT_TOKENS, (tenant, kind), tokens[tenant, kind]
    if rest := by_tokens[most:]:
        yield metrics.TENANT_REQUESTS, (OTHER,), sum(requests[tenant] for tenant in rest)
        for kind in _KINDS:
            yield metrics.TENANT_TOKENS, (OTHER, kind), sum(tokens[tenant, kind] for tenant in rest)
