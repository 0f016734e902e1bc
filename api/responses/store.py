"""Stored responses in Redis: what was asked, and how it ended. Both for `responses_ttl_s` from the end on.

The events are the request's log, which stays as long until a replica has kept the final object; then it is shortened to
what any answer's log gets. Packed, since conversations are texts: JSON (its numbers may be longer than msgpack's),
deflated.
"""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from dataclasses import dataclass
from typing import Any

import msgspec

from api import problems
from api.requests import Facts
from api.responses import objects
from api.responses.events import Events, refusal_in
from api.responses.items import Items
from api.responses.objects import Object
from shared import errors
from shared.errors import BrokerUnavailableError
from shared.frames import read_log
from shared.hot import HotClient
from shared.keys import Keys
from shared.states import State
from shared.wire import END, HEAD, Meta

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_FASTEST = 1
_LAST_EVENT = b'"type":"response.completed"}\n\n'
_INLINE_BYTES = 131_072


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored of a response when it is asked for.

    Attributes:
        base: its object, as far as it was known.
        items: its whole input, that of the responses before it included.
        ids: of the items.
        stream: it was asked for as a stream.
        keyed: an idempotency key may ask for its log later.
    """

    base: dict[str, Any]
    items: list[Any]
    ids: list[str]
    stream: bool
    keyed: bool = False

    @property
    def input(self) -> Items:
        """The items with their ids."""
        return Items(self.items, self.ids)


_encode = msgspec.json.encode
_kept = msgspec.json.Decoder(Kept).decode
_object = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored response, found."""

    facts: Facts
    kept: Kept
    final: Object | None


class Store:
    """The stored responses of all replicas."""

    def __init__(self, client: HotClient, *, ttl_s: int, log_ttl_s: int) -> None:
        """`log_ttl_s`: how long events stay after the end."""
        self._client = client
        self._ttl_s = ttl_s
        self._log_ttl_s = log_ttl_s
        self._running: set[asyncio.Task[None]] = set()

    async def keep(self, keys: Keys, rid: str, kept: Kept, *, lasts_s: float) -> None:
        """Stores what was asked, unless it is stored. Raises BrokerUnavailableError.

        `lasts_s`: how long the request may take.
        """
        packed = await _packed(kept)
        await self._call("SET", keys.response(rid), packed, "NX", "EX", str(self._ttl_s + math.ceil(lasts_s)))

    async def find(self, facts: Facts) -> Stored | None:
        """A response by its request. Raises BrokerUnavailableError."""
        keys, rid = facts.keys, facts.rid
        kept, final = await self._call("MGET", keys.response(rid), keys.response_object(rid))
        if kept is None:
            return None
        return Stored(facts, _kept(await _unpacked(kept)), _object(await _unpacked(final)) if final else None)

    async def forget(self, keys: Keys, rid: str) -> None:
        """Takes a response away. Raises BrokerUnavailableError."""
        await self._call("DEL", keys.response(rid), keys.response_object(rid))

    async def current(self, stored: Stored) -> Object:
        """The object as it is now.

        Raises RequestError (410) when it has ended and its answer is gone, BrokerUnavailableError.
        """
        if stored.final is not None:
            return stored.final
        facts, base = stored.facts, stored.kept.base
        if not facts.terminal:
            # its readers may have seen the end already, which the record says a moment later
            said = await self._folded(facts, base) if await self._says_its_end(facts) else None
            return said or {**base, "status": "in_progress" if facts.claims else "queued"}
        if not facts.kept:
            raise errors.result_expired(base["id"])
        final = await self._folded(facts, base) or base
        await self._finish(facts.keys, facts.rid, final, keyed=stored.kept.keyed)
        return final

    async def _says_its_end(self, facts: Facts) -> bool:
        """Whether the log of a running response ends with the engine's last event."""
        if not (facts.kept and facts.claims):
            return False
        return _LAST_EVENT in await self._call("GETRANGE", facts.keys.log(facts.rid), str(-2 * len(_LAST_EVENT)), "-1")

    async def _folded(self, facts: Facts, base: Object) -> Object | None:
        """The object of a response that has ended, from its log; None for one that has not. Raises RequestError."""
        events, at, more, refused = Events(base), 0, True, list[bytes]()
        head, end = Meta(), Meta(state=facts.state, reason=facts.reason)
        while more:
            try:
                part = await read_log(self._client, facts.keys, facts.rid, at)
            except msgspec.MsgspecError as error:  # a failover has changed the log between two reads
                raise errors.history_lost() from error
            for at, frame in part.frames:  # noqa: B007 - where the next slice starts
                head = frame.meta or head if frame.kind & HEAD else head
                end = frame.meta or end if frame.kind & END else end
                if refusal_in(head, b"") is None:
                    events.take(frame.data)
                else:
                    refused.append(frame.data)
            more = part.more and bool(part.frames)
        if not facts.terminal:
            return events.final
        fault = problems.of_end(end) if end.state != State.SUCCEEDED else None
        events.end(end, fault, refusal_in(head, b"".join(refused)))  # nothing, where the engine has said the end
        return events.final or objects.cancelled(base, events.output)

    def ended(self, keys: Keys, rid: str, final: Object, *, keyed: bool) -> None:
        """Keeps a final object, soon. If that is lost, whoever asks for it first makes it from the log."""
        task = asyncio.create_task(self._finish(keys, rid, final, keyed=keyed))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _finish(self, keys: Keys, rid: str, final: Object, *, keyed: bool) -> None:
        try:
            if await self._call("EXPIRE", keys.response(rid), str(self._ttl_s)):  # otherwise it was deleted
                await self._call("SET", keys.response_object(rid), await _packed(final), "EX", str(self._ttl_s))
                if not await self._call("EXISTS", keys.response(rid)):  # and now, between the two
                    await self._call("DEL", keys.response_object(rid))
            if not keyed:
                await self._call("EXPIRE", keys.log(rid), str(self._log_ttl_s), "LT")
        except BrokerUnavailableError as error:
            log.debug("the final object of %s is not kept: %s", rid, error)

    async def close(self) -> None:
        """Ends what is being kept."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _call(self, *command: Any) -> Any:
        return await self._client.call(*command, timeout_s=_TIMEOUT_S)


async def _packed(value: object) -> bytes:
    """A long one in a thread: a conversation of megabytes would hold up the event loop."""
    plain = _encode(value)
    if len(plain) > _INLINE_BYTES:
        return await asyncio.to_thread(zlib.compress, plain, _FASTEST)
    return zlib.compress(plain, _FASTEST)


async def _unpacked(packed: bytes) -> bytes:
    return zlib.decompress(packed) if len(packed) < _INLINE_BYTES else await asyncio.to_thread(zlib.decompress, packed)
