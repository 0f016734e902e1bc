"""What `admit` answers → what the client is told, and when it shall come again.

`admit` knows when a refused client's turn is as long as the lane has drained for a while. Where it does not know, and
where nobody is given a turn, the fallbacks below are told, with jitter.
"""

from __future__ import annotations

from shared import errors
from shared.errors import RequestError
from shared.outcomes import Admitted

FALLBACK_S = {"FULL": 5.0, "SHARE": 5.0, "BUSY": 1.0, "LATE": 5.0, "TENANT": 2.0, "CLOSED": 10.0}
"""Seconds after which a refused client shall come again, by outcome, where nothing better is known."""


def refusal(admitted: Admitted, *, lane: str, tenant_cap: int, ended: bool) -> RequestError:
    """The error for an admission that did not succeed. `ended`: the whole request's time is over."""
    outcome, number = admitted.outcome, admitted.number
    known = admitted.after_ms is not None
    after_s = admitted.after_ms / 1000 if admitted.after_ms is not None else FALLBACK_S.get(outcome, 0.0)
    match outcome:
        case "FULL":
            return errors.queue_full(number, after_s, own_turn=known)
        case "SHARE":
            return errors.share_full(number, after_s, own_turn=known)
        case "BUSY":
            return errors.no_free_slot(lane, number, after_s, own_turn=known)
        case "LATE":
            return errors.deadline_unachievable(number / 1000, after_s)
        case "TENANT":
            return errors.too_many_requests(number, tenant_cap, after_s)
        case "CLOSED":
            return errors.lane_draining(lane, after_s)
        case "EXPIRED":
            return errors.deadline_exceeded() if ended else errors.queue_timeout()
        case _:
            return RequestError(409, "conflict", f"The request was refused: {outcome}.", should_retry=False)
