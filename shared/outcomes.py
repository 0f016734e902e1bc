"""What the scripts are asked and what they answer, as types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgpack

Restored = Literal["OK", "STALE", "DIFFERS"]
"""What `restore` answers: it is ours as it was; it is somebody else's or over; the log holds something else."""


class Caller(Protocol):
    """What runs a script: redis-py (`connection.RedisCaller`) or the thin client (`hot.HotClient`)."""

    async def evalsha(self, sha: str, text: str, keys: list[str], args: list[Any]) -> Any:
        """Runs a script. Raises BrokerUnavailableError when the outcome is unknown, FencedError when refused."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait in a lane. One tenant may hold at most the part `share` (0..1) of it."""

    requests: int = 5_000
    body_bytes: int = 1 << 30
    tokens: int = 50_000_000
    share: float = 0.9


@dataclass(frozen=True, slots=True)
class Admission:
    """What `admit` is told about a request. Sizes are tokens, times Unix milliseconds.

    Attributes:
        tenant_cap: how many requests the tenant may have in the system.
        prompt_tokens: length of the prompt.
        output_limit: the most tokens that one sequence may get; 0 for no limit of its own.
        deadline_ms: when it must have started.
        bounds: of its lane.
        sequences: how many of them are generated.
        slots: how many sequences the pool runs at once, in a lane that refuses what cannot start now; None otherwise.
        workers: the pool's live workers, where `slots` is given.
        finish_by_ms: when it must have ended; 0 leaves the first deadline.
        idempotency: hash of the idempotency key; empty for none.
        idempotency_ttl_ms: how long the key stays; 0 for none.
        binding: whether the key decides. One that does not is only written, for a client that may try again.
        replaces: the request that may lose the key to this one, because its end has set the key free.
        keep_ms: how long record and log stay after the end; 0 leaves that to the script that ends it.
        stays: whether the request goes on when nobody follows it.
        endpoint: the route that the client called; empty for none that should be known.
        model: the served name that it asked for, or was given; likewise.
        price: what its tenant owes for it in its share of the lane, of its cost.
        trace: the `traceparent` of its place in a trace; empty without one.
    """

    rid: str
    fingerprint: str
    lane: str
    body: bytes
    tenant: str
    tenant_cap: int
    prompt_tokens: int
    output_limit: int
    deadline_ms: int
    bounds: Bounds = Bounds()
    sequences: int = 1
    slots: int | None = None
    workers: tuple[str, ...] = ()
    finish_by_ms: int = 0
    idempotency: str = ""
    idempotency_ttl_ms: int = 0
    binding: bool = True
    replaces: str = ""
    keep_ms: int = 0
    stays: bool = False
    endpoint: str = ""
    model: str = ""
    price: float = 1.0
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What `admit` answers.

    Attributes:
        number: the depth (OK, FULL), the tenant's requests in the system (TENANT) or in the lane (SHARE), the requests
            in the pool (BUSY), the predicted wait in ms (LATE).
        after_ms: when a refused client should come again; None when that is unknown.
    """

    outcome: Literal["OK", "DUP", "CONFLICT", "EXPIRED", "TENANT", "CLOSED", "FULL", "SHARE", "BUSY", "LATE"]
    rid: str = ""
    number: int = 0
    after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a queued request stands.

    Attributes:
        position: 1 is next in its lane; 0: it is being taken.
        depth: how many wait there.
        eta_ms: until it starts, as fast as the lane drains now; None when that is not known.
        reason: why it waits: no_worker, lane_paused, retrying, suspect, busy.
    """

    position: int
    depth: int
    eta_ms: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A delivered, unclaimed queue entry."""

    queue: str
    entry_id: str
    rid: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim that succeeded.

    `log` is what earlier attempts have published. `facts` is the record, as `restore` wants it.
    """

    body: bytes
    log: bytes
    claims: int
    queued_at_ms: int
    started_at_ms: int
    facts: bytes = b""

    def record(self) -> dict[bytes, bytes]:
        """The record's fields as the claim left them."""
        flat = msgpack.unpackb(self.facts, raw=True) if self.facts else []
        return dict(zip(flat[::2], flat[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A claim that gave nothing to run: SKIP (stale), GONE (no record), ENDED (terminal now), PAUSED (its lane is)."""

    outcome: Literal["SKIP", "GONE", "ENDED", "PAUSED"]
    detail: str


@dataclass(frozen=True, slots=True)
class Held:
    """What a worker has of a request that it runs.

    Attributes:
        log: everything that has been published, by this attempt and those before it.
        last_bytes: length of the log's last frame, for readers that wait for just that one; 0 for none.
        ending: whether the attempt is at its end.
        seen: whether the last frame has been published before, too.
    """

    rid: str
    attempt: str
    claimed: Claimed
    log: bytes
    last_bytes: int = 0
    ending: bool = False
    seen: bool = False


@dataclass(frozen=True, slots=True)
class Stepped:
    """What `step` answers; positions count from 0.

    Attributes:
        refused: position → log length in bytes, or -1 when the attempt is fenced.
        box: control messages.
    """

    refused: dict[int, int]
    box: list[bytes]


@dataclass(frozen=True, slots=True)
class Finished:
    """What `done` answers. `log_len` is set for GAP."""

    outcome: Literal["OK", "GAP", "FENCED"]
    log_len: int = 0
