"""What the parts of a running batch share: the order, what is in flight, what is committed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from batch.answers import Asked
from batch.committing import Committer
from batch.order import Order
from batch.owned import Owned
from batch.tools import Tools
from shared.batches import Batch
from shared.file_index import FileFacts
from shared.ids import row_request_id
from shared.keys import Keys


@dataclass(frozen=True, slots=True)
class Flight:
    """A row's request that waits or runs."""

    asked: Asked
    position: int
    attempt: int
    keys: Keys


@dataclass(slots=True)
class RunState:
    """Of one batch, while one driver has it.

    Attributes:
        fed: position up to which rows may be on their way, as an earlier driver has said.
        flights: by request id.
        behind: whether the batch, as fast as it goes now, would not be done in time.
        ended: requests in flight of which somebody has said that they ended.
        on_change: called when something has ended.
    """

    tools: Tools
    owned: Owned
    order: Order
    input: FileFacts
    committer: Committer
    fed: int
    flights: dict[str, Flight] = field(default_factory=dict)
    ended: deque[str] = field(default_factory=deque)
    behind: bool = False
    on_change: Callable[[], None] = lambda: None

    @property
    def batch(self) -> Batch:
        """The batch, as it was when the driver took it."""
        return self.owned.batch

    @property
    def expires_at_ms(self) -> int:
        """Unix ms of the server's clock."""
        return self.batch.number("expires_at_ms")

    def rid(self, row: int, attempt: int = 0) -> str:
        """The id of a row's request."""
        return row_request_id(self.batch.id, self.batch.number("created_at_ms"), row, attempt)

    def fly(self, flight: Flight) -> None:
        """A row is on its way: its end will be noticed."""
        rid = flight.asked.rid
        self.flights[rid] = flight
        self.tools.ends.watch(rid, self.on_end)

    def on_end(self, rid: str) -> None:
        """A request has ended."""
        if rid in self.flights:
            self.ended.append(rid)
            self.on_change()

    def land(self, rid: str) -> Flight | None:
        """A row is not on its way any more. Safe to call twice."""
        self.tools.ends.forget(rid)
        return self.flights.pop(rid, None)
