"""The HTTP response of one response: events, the object, or in background the object as it was asked for."""

from __future__ import annotations

import json

from fastapi import Request
from fastapi.responses import Response

from api.admission import Door
from api.observe import DIRECT_SEND
from api.responses.objects import Object
from api.responses.store import Store
from api.responses.view import View
from api.settings import ApiSettings
from api.sse import Answer
from api.ticket import Ticket
from api.transport import hang_up_watch
from shared.errors import RequestError
from shared.wire import Meta

_JSON_TYPE = "application/json"


class ResponsesAnswer(Answer):
    """See sse.Answer: with the events of Responses, also where something goes wrong."""

    def __init__(self, door: Door, ticket: Ticket, settings: ApiSettings, view: View, *, stream: bool) -> None:
        super().__init__(door, ticket, settings, stream=stream)
        self._view = view
        self._store: Store | None = None
        self._keyed = False
        self._observed = False
        ticket.shape = view

    def keep_end(self, store: Store, *, keyed: bool) -> None:
        """The final object is to be stored. `keyed`: an idempotency key may ask for the log."""
        self._store, self._keyed = store, keyed

    def at_once(self, request: Request) -> Response:
        """A stream that does not wait for the engine to begin; what the engine refuses is one of its events."""
        self._ticket.relay.hung_up = hang_up_watch(request.scope.get(DIRECT_SEND))
        stream = self._events()
        stream.status_code = 200  # also where a refusal is there already: it has been accepted, or read before
        return stream

    def accepted(self, body: Object) -> Response:
        """The response to a request that goes on in background: nothing of it is relayed here, and so not measured."""
        self._left = True
        self._door.leave(self._ticket)
        return Response(json.dumps(body), 200, self.headers, _JSON_TYPE)

    def _shaped(self, piece: bytes) -> bytes:
        shaped = super()._shaped(piece)
        if not self._observed:
            self._observe_first()
        return shaped

    def _observe_first(self) -> None:
        """The first events only say that the request has begun: what counts is the first of the answer."""
        if not self._observed and self._view.events.begun:
            self._observed = True
            super()._observe_first()

    def _error_event(self, fault: RequestError) -> bytes:
        return self._view.events.opening() + self._view.events.fault(fault)

    async def _last_event(self, end: Meta) -> bytes:
        return self._view.failed(end, None if end.state == "succeeded" else await self._fault(end))

    def _leave(self, outcome: str) -> None:
        final = self._view.events.final
        if self._store is not None and final is not None and not self._left:
            self._store.ended(self._ticket.keys, self._ticket.rid, final, keyed=self._keyed)
        super()._leave(outcome)
