"""From what is asked of `admit` to a place: the request's own on the queue, or that of one that it joins.

`admit` is idempotent, so it is sent again when its reply is lost. Images that a request names by URL are fetched first,
unless it joins a request whose answer is there or on its way: that one needs no image any more, and a URL may have
ceased to work since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from api.idempotency import Place, Terms, place
from api.images import Images
from api.media import Pictures
from api.refusals import refusal
from api.requests import Facts, Requests
from api.serverclock import ServerClock
from shared.errors import BrokerUnavailableError, RequestError
from shared.hot import HotClient
from shared.metrics import TURNED_AWAY, child
from shared.outcomes import Admission, Admitted, Bounds
from shared.registry import Pool
from shared.scripts import Scripts

_ADMIT_TRIES = 8
_ADMIT_PAUSE_S = 0.25
_NOT_YET = ""
"""Code of the error that says that a request is a new one; told to nobody."""


@dataclass(slots=True)
class Entry:
    """A request that wants a place.

    Attributes:
        closed: why nothing new gets in, if so.
        pictures: the images that have to be fetched; None when there are none, or they stand in `admission.body`.
        filled: from the HTTP body with its images to what goes on the queue; given with `pictures`.
    """

    pool: Pool
    admission: Admission
    terms: Terms
    closed: RequestError | None = None
    pictures: Pictures | None = None
    filled: Callable[[bytes], bytes] | None = None


class Places:
    """Gives requests their places."""

    def __init__(
        self, client: HotClient, requests: Requests, images: Images, clock: ServerClock, *, result_ttl_ms: int
    ) -> None:
        self._client = client
        self._requests = requests
        self._images = images
        self._clock = clock
        self._result_ttl_ms = result_ttl_ms

    async def place(self, entry: Entry) -> Place:
        """The place of a request. Raises RequestError, BrokerUnavailableError. May be called again: it is the same."""
        if entry.pictures is not None and entry.closed is None:
            if entry.terms.joins and (joined := await self._joined(entry)) is not None:
                return joined
            await self._fetch(entry, entry.pictures)
        return await self._found(entry)

    async def _joined(self, entry: Entry) -> Place | None:
        """The place of a request that joins one that was sent before; None for a new one, which is not let in yet."""
        not_yet = RequestError(503, _NOT_YET, "")
        try:
            return await self._found(replace(entry, closed=not_yet))
        except RequestError as error:
            if error is not not_yet:
                raise
            error.__traceback__ = None  # it has this frame, which has the error: both would wait, with the body
            return None

    async def _fetch(self, entry: Entry, pictures: Pictures) -> None:
        """Puts the images into the body. Raises RequestError."""
        assert entry.filled is not None  # noqa: S101 - see Entry
        left_s = (entry.admission.deadline_ms - await self._clock.now_ms()) / 1000
        body = entry.filled(await self._images.body_of(pictures, left_s))
        entry.admission = replace(entry.admission, body=body)
        entry.pictures = entry.filled = None

    async def _found(self, entry: Entry) -> Place:
        """As `place`, for a body that is complete."""
        admission, pool = entry.admission, entry.pool
        if entry.closed is not None:
            # nothing new gets in, an answer that is there gets out
            admission = replace(admission, bounds=Bounds(requests=0))

        async def admit(replaces: str) -> Admitted:
            return await self._admit(entry, replace(admission, replaces=replaces) if replaces else admission)

        async def look(rid: str) -> Facts | None:
            return await self._requests.look(pool.keys, rid)

        return await place(admission.rid, entry.terms, admit, look)

    async def _admit(self, entry: Entry, admission: Admission) -> Admitted:
        """What `admit` says: OK, DUP, or CONFLICT with a key's holder. Raises RequestError for a refusal."""
        pool, closed = entry.pool, entry.closed
        scripts = Scripts(self._client, pool.keys, result_ttl_ms=self._result_ttl_ms)
        for left in reversed(range(_ADMIT_TRIES)):
            try:
                admitted = await scripts.admit(admission)
                break
            except BrokerUnavailableError:
                if not left:
                    raise
                await asyncio.sleep(_ADMIT_PAUSE_S)
        if admitted.outcome == "FULL" and closed is not None:
            if closed.code != _NOT_YET:
                turned_away(closed.code, admission.lane, pool)
            raise closed
        if admitted.outcome in {"OK", "DUP"} or (admitted.outcome == "CONFLICT" and admitted.rid != admission.rid):
            return admitted
        turned_away(admitted.outcome.lower(), admission.lane, pool)
        ended = admitted.outcome == "EXPIRED" and await self._clock.now_ms() >= admission.finish_by_ms
        raise refusal(admitted, lane=admission.lane, tenant_cap=admission.tenant_cap, ended=ended)


def turned_away(reason: str, lane: str, pool: Pool) -> None:
    """Counts a request that gets no place."""
    child(TURNED_AWAY, lane, pool.keys.pool, reason).inc()
