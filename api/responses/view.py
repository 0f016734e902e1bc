"""One reader's view of a response: a shape that makes its events, or its object, from what the relay brings."""

from __future__ import annotations

import msgspec

from api.relay import Relay
from api.responses.events import Events, refusal_in
from api.responses.ids import created_at, response_id
from api.responses.objects import Object
from api.shape import Shape
from shared import errors
from shared.errors import RequestError
from shared.wire import Meta

_OK = 200


class View(Shape):
    """See shape.Shape. Unlike another shape it stays when its reader is given another request to follow."""

    stays = True

    def __init__(self, base: Object, relay: Relay, *, stream: bool, after: int = -1) -> None:
        """`after`: the number of the last event that the reader of a stream has."""
        super().__init__(relay, stream=stream)
        self.events = Events(base, after=after)
        self._rid = relay.rid
        self._begun = False

    def streams(self, head: Meta) -> bool:
        """See Shape."""
        return self._stream and head.status == _OK

    def piece(self, data: bytes) -> bytes:
        """See Shape."""
        if self._relay.rid != self._rid:
            self._follow_another()
        head = self._relay.head
        if head is not None and head.status != _OK:
            self._whole.append(data)
            return self._sent(self.events.opening())
        return self._sent(self.events.take(data))

    def _sent(self, data: bytes) -> bytes:
        self._begun = self._begun or bool(data)
        return data

    def _follow_another(self) -> None:
        """Redis has lost the request, and another one has the same answer. Raises RequestError when it is too late."""
        if self._begun:
            raise errors.history_lost()
        self._rid = self._relay.rid
        self.events.base |= {"id": response_id(self._rid), "created_at": created_at(self._rid)}

    def end(self, end: Meta) -> bytes:
        """See Shape. The request has succeeded: the engine has answered, if only with a refusal."""
        return self.failed(end, None)

    def failed(self, end: Meta, fault: RequestError | None) -> bytes:
        """What the reader of a stream gets at the end; `fault` says why it is no answer."""
        return self.events.end(end, fault, refusal_in(self._relay.head, b"".join(self._whole)))

    def whole(self, body: bytes) -> bytes:
        """See Shape: the object."""
        head = self._relay.head
        if head is None or head.status != _OK:
            return body
        if self._relay.rid != self._rid:
            self._follow_another()
        self.events.take(body)
        if self.events.final is None:
            raise self.events.refusal or errors.engine_error("The engine's answer has no end.")
        return msgspec.json.encode(self.events.final)
