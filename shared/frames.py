"""Reading the log of a request: the truth about its answer."""

from __future__ import annotations

from dataclasses import dataclass

from shared.hot import HotClient, both
from shared.keys import Keys
from shared.states import TERMINAL, State
from shared.wire import Frame, split_log

SLICE_BYTES = 65_536
"""How much of a log is read at once, unless a single frame is larger."""
_READ_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class LogSlice:
    """What a log says from a cursor on.

    Attributes:
        state: the record's state, read before the log; None when there is no record.
        reason: why it ended; empty while it has not.
        frames: (log length after the frame, Frame), in order.
        more: whether the slice was cut, so that there is more to read.
    """

    state: State | None
    reason: str
    frames: list[tuple[int, Frame]]
    more: bool

    @property
    def terminal(self) -> bool:
        """Whether the record says that the request has ended."""
        return self.state in TERMINAL


async def read_log(client: HotClient, keys: Keys, rid: str, cursor: int) -> LogSlice:
    """The frames from byte `cursor`, which must be a frame's start, together with the record's state.

    Raises BrokerUnavailableError, and msgspec.MsgspecError when `cursor` is no frame's start. The state is read before
    the log: when it is terminal, the log is complete.
    """
    size = SLICE_BYTES
    while True:
        record = client.send("HMGET", keys.record(rid), "state", "reason", timeout_s=_READ_TIMEOUT_S)
        log = client.send("GETRANGE", keys.log(rid), str(cursor), str(cursor + size - 1), timeout_s=_READ_TIMEOUT_S)
        (state, reason), data = await both(record, log)
        frames = list(split_log(data, cursor))
        if frames or len(data) < size:
            return LogSlice(
                State(state.decode()) if state else None, (reason or b"").decode(), frames, len(data) == size
            )
        size *= 4
