"""GET /v1/requests: a walk over what waits, what runs and what has ended lately, page by page.

Nothing is written for it when a request is admitted: it reads the queues' streams, the workers' run sets and the
outbox, and the records of what it finds there. It goes in the direction in which requests move, so a walk meets each of
them at least once: one that moves while it is walked may be met twice, one that is handed back to its queue may be
missed. One page looks at so many entries and no more; a page may be short, or empty, and not be the last.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.auth import may_see
from api.catalog import Catalog
from api.requests import Facts, facts_of
from shared.errors import invalid_request
from shared.hot import HotClient
from shared.keys import Keys
from shared.lanes import QUARANTINE, Lane
from shared.registry import Models
from shared.states import TERMINAL, State

MOST_LOOKED_AT = 1000
"""Entries of queues, run sets and outbox that one page looks at."""
_AT_ONCE = 100
_TIMEOUT_S = 5.0
_QUEUED, _RUNNING, _ENDED = "queued", "running", "ended"
_ORDER = (_QUEUED, _RUNNING, _ENDED)
_BEHIND = {
    _QUEUED: frozenset({State.QUEUED}),
    _RUNNING: frozenset({State.QUEUED, State.RUNNING}),
    _ENDED: frozenset(State),
}
"""Section → states of requests that have not gone on to a later section, which shows them."""
_ENTRY, _REQUEST = re.compile(r"[0-9]{1,19}-[0-9]{1,19}"), re.compile(r"req_[0-9a-z]{1,40}")
_PLACE = {_QUEUED: _ENTRY, _RUNNING: _REQUEST, _ENDED: _ENTRY}
_FIELDS = ("tenant", "state", "lane", "model", "discarded")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client wants to see. Empty: everything."""

    states: frozenset[State] = frozenset()
    lane: Lane | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Requests, and from where the next page goes on; empty for the last one."""

    facts: list[Facts]
    following: str


@dataclass(frozen=True, slots=True)
class _Section:
    """One queue, the run sets of a pool, or its outbox."""

    kind: str
    keys: Keys
    queue: str = ""

    def cursor(self, place: str) -> str:
        """Goes on behind `place`. The pool's name may hold anything, and stands last."""
        return f"{self.kind}:{self.queue}:{place}:{self.keys.pool}"


@dataclass(frozen=True, slots=True)
class _Found:
    """An entry: where it stands in its section, whose it is, and the request's state where the entry itself says it."""

    place: str
    rid: str
    state: str = ""


class Listing:
    """The requests of all replicas, as a tenant sees them."""

    def __init__(self, client: HotClient, catalog: Catalog) -> None:
        self._client = client
        self._catalog = catalog

    async def page(self, tenant: str, wanted: Wanted, *, limit: int, after: str) -> Page:
        """At most `limit` requests of this tenant behind the cursor `after`.

        Raises RequestError (400) for what is no cursor of this walk, BrokerUnavailableError.
        """
        sections = _sections(await self._catalog.models(), wanted)
        place = ""
        if after:
            sections, place = _behind(sections, after)
        found: list[Facts] = []
        left = MOST_LOOKED_AT
        following = ""
        for section in sections:
            while entries := await self._read(section, place):
                for entry, facts in zip(entries, await self._shown(section, entries, tenant, wanted), strict=True):
                    if facts is not None and len(found) == limit:
                        return Page(found, following)
                    if facts is not None:
                        found.append(facts)
                    following = section.cursor(entry.place)
                place = entries[-1].place
                left -= len(entries)
                if left <= 0:
                    return Page(found, following)
            place = ""
        return Page(found, "")

    async def _read(self, section: _Section, place: str) -> list[_Found]:
        """The next entries of a section, behind `place`."""
        keys = section.keys
        if section.kind == _RUNNING:
            return [_Found(rid, rid) for rid in await self._running(keys) if rid > place][:_AT_ONCE]
        behind = f"({place}" if place else ""
        if section.kind == _QUEUED:
            stream = keys.queue(section.queue)
            entries = await self._call("XRANGE", stream, behind or "-", "+", "COUNT", str(_AT_ONCE))
        else:
            entries = await self._call("XREVRANGE", keys.finished, behind or "+", "-", "COUNT", str(_AT_ONCE))
        return [_entry(entry, fields) for entry, fields in entries]

    async def _running(self, keys: Keys) -> list[str]:
        """What the pool's workers own, in the order of the ids: no more than they have slots."""
        wids = await self._call("HKEYS", keys.workers)
        owned = await self._all([("HKEYS", keys.run(wid.decode())) for wid in wids])
        return sorted({rid.decode() for rids in owned for rid in rids})

    async def _shown(self, section: _Section, entries: list[_Found], tenant: str, wanted: Wanted) -> list[Facts | None]:
        """What is shown for each entry; None for one that the client may not or does not want to see."""
        hopeful = [entry for entry in entries if not entry.state or not wanted.states or entry.state in wanted.states]
        keys = section.keys
        read = await self._all([("HMGET", keys.record(entry.rid), *_FIELDS) for entry in hopeful])
        rids = [
            entry.rid
            for entry, fields in zip(hopeful, read, strict=True)
            if _fits([(value or b"").decode() for value in fields], section, tenant, wanted)
        ]
        records = await self._all([("HGETALL", keys.record(rid)) for rid in rids])
        known: dict[str, Facts] = {}
        for rid, flat in zip(rids, records, strict=True):
            fields = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
            if "state" in fields:
                known[rid] = facts_of(keys, rid, fields, kept=False)
        return [known.get(entry.rid) for entry in entries]

    async def _all(self, commands: Sequence[tuple[str, ...]]) -> list[Any]:
        """The replies to commands that are on their way together. Raises BrokerUnavailableError."""
        return await asyncio.gather(*[self._client.send(*command, timeout_s=_TIMEOUT_S) for command in commands])

    async def _call(self, *command: str) -> Any:
        return await self._client.call(*command, timeout_s=_TIMEOUT_S)


def _sections(models: Models, wanted: Wanted) -> list[_Section]:
    """Everything that has to be walked for what is wanted, in the order of the walk."""
    pools = {pool.keys.pool: pool.keys for name, pool in models.pools.items() if wanted.model in {"", name}}
    queues = [*Lane, QUARANTINE] if wanted.lane is None else [wanted.lane, QUARANTINE]
    needed = {_QUEUED: {State.QUEUED}, _RUNNING: {State.RUNNING}, _ENDED: TERMINAL}
    sections = []
    for kind in _ORDER:
        if wanted.states and wanted.states.isdisjoint(needed[kind]):
            continue
        for pool in sorted(pools):
            names: Sequence[str] = queues if kind == _QUEUED else ("",)
            sections += [_Section(kind, pools[pool], str(name)) for name in names]
    return sections


def _behind(sections: list[_Section], cursor: str) -> tuple[list[_Section], str]:
    """The sections from the one of a cursor on, and the place in it."""
    for index, section in enumerate(sections):
        prefix, suffix = f"{section.kind}:{section.queue}:", f":{section.keys.pool}"
        place = cursor[len(prefix) : -len(suffix)]
        if cursor == section.cursor(place) and _PLACE[section.kind].fullmatch(place):
            return sections[index:], place
    message = "`after` must be the `next` of a page with the same filters."
    raise invalid_request(message, param="after")


def _entry(entry: bytes, flat: list[bytes]) -> _Found:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return _Found(entry.decode(), fields.get(b"rid", b"").decode(), fields.get(b"state", b"").decode())


def _fits(record: list[str], section: _Section, tenant: str, wanted: Wanted) -> bool:
    """Whether a record is this tenant's, is wanted, and is not shown by a later section."""
    owner, state, lane, model, discarded = record
    if not state or not may_see(tenant, owner) or (discarded and state in TERMINAL):
        return False
    if state not in _BEHIND[section.kind] or (wanted.states and state not in wanted.states):
        return False
    return wanted.lane in {None, lane} and wanted.model in {"", model}
