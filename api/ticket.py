"""A request that one client follows."""

from __future__ import annotations

from dataclasses import dataclass, field

from api.exchange import Exchange, current_exchange
from api.idempotency import Status
from api.relay import Relay
from api.shape import Shape
from shared.keys import Keys


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that one client follows, as its route sees it.

    Attributes:
        stays: it goes on when nobody follows it.
        status: what its idempotency key led to; empty without one.
        shape: the form that the client wants, where that may not be the one in the log.
        cold: it was let in while no worker of its model lived.
        resumed: its client goes on with a stream that it, or another one, has begun before.
        exchange: of the client that follows it; None where nobody wants to know about that.
    """

    rid: str
    model: str
    lane: str
    relay: Relay
    keys: Keys
    accepted_at_s: float
    stays: bool = False
    status: Status = ""
    shape: Shape | None = None
    cold: bool = False
    resumed: bool = False
    exchange: Exchange | None = field(default_factory=current_exchange.get)

    @property
    def own(self) -> bool:
        """Whether it was admitted for this client; otherwise it was sent before."""
        return self.status in {"", "created"}
