"""The states of a request and the moves between them. The Lua scripts, the API and the metrics use these words."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a request is. Exactly one terminal state is ever written."""

    QUEUED = "queued"
    """On a queue, or delivered to a worker that has not claimed it yet. Left by claim, cancel, expire."""
    RUNNING = "running"
    """Owned by one attempt of one worker. Left by done, or by requeue when the worker is gone or hands it back."""
    SUCCEEDED = "succeeded"
    """The engine has answered, be it with an answer or with a refusal of the request."""
    FAILED = "failed"
    """An explicit error: worker_lost, too_many_attempts, engine_error."""
    CANCELLED = "cancelled"
    """By its client, an operator, or because nobody listened any more."""
    EXPIRED = "expired"
    """Its deadline passed."""


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})

MOVES: dict[State, dict[str, frozenset[State]]] = {
    State.QUEUED: {
        "claim": frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED, State.FAILED}),
        "cancel": frozenset({State.CANCELLED}),
        "expire": frozenset({State.EXPIRED}),
        "restore": frozenset({State.RUNNING}),
    },
    State.RUNNING: {
        "done": TERMINAL,
        "requeue": frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    },
}
"""from-state → script → states that it may lead to. `docs/protocol.md` draws it, and a test holds the two together."""
