"""One typed method per Lua script. Nothing else spells a script call.

Scripts are called by hash (EVALSHA), so two releases on one server cannot collide; a server that has lost them is given
them again (`luascripts.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from shared import limits
from shared.errors import BrokerUnavailableError
from shared.keys import Keys
from shared.lanes import FAIR, QUARANTINE, QUEUES, Lane
from shared.luascripts import load
from shared.outcomes import (
    Admission,
    Admitted,
    Caller,
    Claimed,
    Entry,
    Finished,
    Held,
    Place,
    Restored,
    Stepped,
    Unclaimed,
)
from shared.states import State
from shared.survey import Survey, read_survey
from shared.wire import end_frame

_RESTORE_LOOKS = 5
_NAMES = [queue.name for queue in QUEUES]


class Scripts:
    """The scripts of one shard of one pool.

    Every method raises BrokerUnavailableError when Redis cannot be reached: the effect is unknown, and the call may be
    repeated as it is. Methods that act for a worker raise FencedError when that worker is condemned.
    """

    def __init__(self, caller: Caller, keys: Keys, *, result_ttl_ms: int = 600_000, publish: str = "PUBLISH") -> None:
        """`result_ttl_ms`: how long the record and the log of a finished request stay."""
        self._caller = caller
        self._keys = keys
        self._ttl_ms = result_ttl_ms
        self._publish = publish

    async def _run(self, name: str, keys: list[str], args: list[Any]) -> Any:
        script = load(name, self._publish)
        return await self._caller.evalsha(script.sha, script.text, keys, args)

    async def admit(self, a: Admission) -> Admitted:
        """Nothing → queued, in one idempotent step."""
        k = self._keys
        keys = [k.idempotency(a.idempotency or "-"), k.record(a.rid), k.body(a.rid), k.queue(a.lane), k.tenants]
        keys += [k.deadlines, k.fair(a.lane), k.ledger(a.lane), k.sched, k.lanes, k.output]
        if a.slots is not None:
            keys += [*(k.fair(lane) for lane in Lane if lane != a.lane), *map(k.run, a.workers)]
        args: list[Any] = [a.rid, a.fingerprint, a.lane, a.body, a.tenant, a.tenant_cap]
        args += [a.prompt_tokens, a.output_limit, a.sequences, a.deadline_ms, a.finish_by_ms, a.idempotency_ttl_ms]
        args += [int(a.binding), a.replaces, a.keep_ms, int(a.stays)]
        args += [a.bounds.requests, a.bounds.body_bytes, a.bounds.tokens, a.bounds.share]
        args += ["" if a.slots is None else a.slots, limits.EXPECTED_OUTPUT, a.endpoint, a.model, a.price]
        args += [a.trace] if a.trace else []
        reply = await self._run("admit", keys, args)
        outcome = reply[0].decode()
        if outcome in {"DUP", "CONFLICT"}:
            return Admitted(outcome, reply[1].decode())
        if outcome == "OK":
            return Admitted(outcome, reply[1].decode(), int(reply[2]))
        after_ms = int(reply[2]) if len(reply) > 2 else -1  # noqa: PLR2004
        return Admitted(outcome, "", int(reply[1]) if len(reply) > 1 else 0, after_ms if after_ms >= 0 else None)

    async def pull(
        self, wid: str, want: int, *, only: str = "", waited_ms: int = 0, slots: int = 0, held: int = 0
    ) -> list[Entry]:
        """Up to `want` entries, by lane and tenant; no more than a living worker's part of what waits, or one to four.

        They stay queued until claimed.

        `only`: the one lane to pick from, up to its weight's part of the worker's `slots`, of which it has `held`.
        `waited_ms`: how long what is picked must have waited.
        """
        k = self._keys
        keys = [k.sched, k.lease(wid), k.dead(wid), k.lanes, k.workers, *self._lane_keys()]
        args: list[Any] = [wid, want, only, waited_ms, slots, held]
        for queue in QUEUES:
            args += (queue.name, queue.weight, queue.age_limit_ms)
        reply = await self._run("pull", keys, args)
        return [Entry(queue.decode(), entry.decode(), rid.decode()) for queue, entry, rid in reply]

    async def setlane(self, lane: str, changes: Mapping[str, str]) -> int:
        """Changes settings of a lane (see lane_settings); an empty value takes one back. Returns how many changed."""
        keys = [self._keys.lanes, self._keys.sched, self._keys.queue(lane)]
        return int(await self._run("setlane", keys, [lane, *(word for pair in changes.items() for word in pair)]))

    async def claim(self, wid: str, entry: Entry, attempt: str) -> Claimed | Unclaimed:
        """Queued → running under `attempt`, or the end of a request that must not run."""
        k, rid = self._keys, entry.rid
        keys = [k.run(wid), k.dead(wid), k.queue(entry.queue), k.record(rid), k.body(rid), k.log(rid), k.channel(rid)]
        ends = [
            end_frame(State.EXPIRED, "queue_timeout"),
            end_frame(State.CANCELLED, "cancelled"),
            end_frame(State.FAILED, "too_many_attempts"),
            end_frame(State.EXPIRED, "deadline_exceeded"),
        ]
        keys += [k.tenants, k.deadlines, k.finished, k.dead_letters, k.workers]
        keys += [*self._queue_keys(entry.queue), k.sched, k.lanes, *map(k.ledger, _NAMES)]
        args = [wid, entry.entry_id, rid, attempt, limits.MOST_CLAIMS, self._ttl_ms, *ends, entry.queue, *_NAMES]
        reply = await self._run("claim", keys, args)
        if reply[0] == b"OK":
            return Claimed(reply[1], reply[2], int(reply[3]), int(reply[4]), int(reply[5]), reply[6])
        return Unclaimed(reply[0].decode(), reply[1].decode() if len(reply) > 1 else "")

    async def step(self, wid: str, frames: list[tuple[str, str, int, bytes]]) -> Stepped:
        """One flush: (rid, attempt, log length expected in bytes, frame) for each sequence. Hot path."""
        k = self._keys
        keys = [k.lease(wid), k.dead(wid), k.box(wid), k.run(wid)]
        args: list[Any] = [limits.LEASE_MS]
        for sequence in frames:
            rid = sequence[0]
            keys += (k.log(rid), k.channel(rid))
            args += sequence
        refused, box = await self._run("step", keys, args)
        pairs = {refused[i] - 1: refused[i + 1] for i in range(0, len(refused), 2)}
        return Stepped(pairs, box)

    async def restore(self, wid: str, held: Held) -> Restored:
        """Gives a worker back what it runs, after Redis has lost history. See `lua/restore.lua`."""
        k, rid = self._keys, held.rid
        facts = held.claimed.record()
        own = [k.dead(wid), k.run(wid), k.record(rid), k.body(rid), k.log(rid), k.channel(rid)]
        own += [k.tenants, k.deadlines, k.workers, k.box(wid), facts.get(b"idem", b"").decode() or k.idempotency("-")]
        args = [wid, rid, held.attempt, held.claimed.facts, held.claimed.body, held.log, held.last_bytes]
        owner = queue = b"-"
        for _ in range(_RESTORE_LOOKS):
            keys = [*own, k.run(owner.decode()), k.queue(queue.decode()), *self._queue_keys(queue.decode())]
            word, *seen = await self._run("restore", keys, [*args, int(held.ending), owner, queue, int(held.seen)])
            if word != b"RETRY":
                return cast("Restored", word.decode())
            owner, queue = seen
        msg = f"request {rid} changes hands again and again"
        raise BrokerUnavailableError(msg)

    async def beat(self, wid: str) -> list[bytes]:
        """Renews the lease; returns the control box."""
        k = self._keys
        return cast("list[bytes]", await self._run("beat", [k.lease(wid), k.dead(wid), k.box(wid)], [limits.LEASE_MS]))

    async def ackbox(self, wid: str, messages: list[bytes]) -> int:
        """Removes control messages that have been read. Returns how many were there."""
        return int(await self._run("ackbox", [self._keys.box(wid)], list(messages)))

    async def done(
        self,
        wid: str,
        rid: str,
        attempt: str,
        *,
        state: str,
        reason: str,
        frame: bytes,
        expected: int,
        usage: tuple[int, int] = (0, 0),
        sequences: int = 1,
    ) -> Finished:
        """Running → `state`, with its terminal frame. `expected` is the log's length before the frame, in bytes.

        `usage`: prompt and completion tokens, the latter of all `sequences` together.
        """
        k = self._keys
        keys = [k.run(wid), k.record(rid), k.body(rid), k.log(rid), k.channel(rid)]
        keys += [k.tenants, k.deadlines, k.finished, k.dead_letters, k.output]
        keep = "1" if reason in limits.DEAD_LETTER_REASONS else "0"
        args = [rid, attempt, state, reason, frame, self._ttl_ms, expected, *usage, wid, keep, sequences]
        reply = await self._run("done", keys, args)
        return Finished(reply[0].decode(), int(reply[1]) if len(reply) > 1 else 0)

    async def condemn(self, wid: str, *, process_ended: bool = False) -> bool:
        """Declares a worker dead unless its lease lives. `process_ended`: its exit was seen, so its lease is void."""
        k = self._keys
        args = [limits.DEAD_MARKER_MS, "1" if process_ended else "0"]
        return bool(await self._run("condemn", [k.lease(wid), k.dead(wid)], args))

    async def bury(self, wid: str) -> str:
        """Forgets a condemned worker of which nothing is left. Returns OK, BUSY or ALIVE."""
        k = self._keys
        queues = map(k.queue, _NAMES)
        return _word(await self._run("bury", [k.dead(wid), k.run(wid), k.box(wid), k.workers, *queues], [wid]))

    async def requeue(
        self, wid: str, rid: str, attempt: str, *, how: Literal["kill", "hand_back", "preempt"] = "kill"
    ) -> str:
        """Running → queued again, with its log, or → an end. Returns OK, ENDED, ALIVE or STALE."""
        k = self._keys
        keys = [k.dead(wid), k.run(wid), k.record(rid), k.body(rid), k.log(rid), k.channel(rid)]
        keys += [k.tenants, k.deadlines, k.finished, k.dead_letters, k.suspect]
        keys += [k.queue(QUARANTINE), k.ledger(QUARANTINE), *self._lane_keys()]
        ends = [
            end_frame(State.FAILED, "too_many_attempts"),
            end_frame(State.CANCELLED, "cancelled"),
        ]
        mode = ("kill", "hand_back", "preempt").index(how)
        args = [rid, attempt, mode, limits.MOST_KILLS, self._ttl_ms, *ends, limits.SUSPECT_KILLS, *_NAMES]
        return _word(await self._run("requeue", keys, args))

    async def release(self, out: str, waits: str) -> str:
        """Lets the request `waits` out of quarantine, if `out` ('-': none) has ended.

        Returns OK, BUSY, EMPTY, STALE or RETRY.
        """
        k = self._keys
        keys = [k.suspect, k.queue(QUARANTINE), k.ledger(QUARANTINE), k.record(out), k.record(waits)]
        return _word(await self._run("release", [*keys, *self._lane_keys()], [out, waits, *_NAMES]))

    async def redrive(self, letter: str, a: Admission, *, patience_ms: int) -> tuple[str, str]:
        """A dead letter → queued once more, under the new id `a.rid`. Returns OK or DUP with the id, or GONE.

        Of the admission neither caps nor deadlines count; it must start and end within `patience_ms` from now.
        """
        k = self._keys
        keys = [k.dead_letters, k.redriven, k.record(a.rid), k.body(a.rid), k.queue(a.lane), k.tenants, k.deadlines]
        keys += [k.fair(a.lane), k.ledger(a.lane)]
        args: list[Any] = [letter, a.rid, a.fingerprint, a.lane, a.body, a.tenant]
        args += [a.prompt_tokens, patience_ms, limits.REDRIVEN_NOTE_MS]
        reply = await self._run("redrive", keys, args)
        return reply[0].decode(), reply[1].decode() if len(reply) > 1 else ""

    async def cancel(self, rid: str, *, owner: str, queue: str, reason: str) -> str:
        """Queued → cancelled, or tells the owner. Returns DONE, SENT, RETRY, GONE or a terminal state."""
        frame = end_frame(State.CANCELLED, reason)
        keys = self._ending_keys(rid, owner, queue)
        return _word(await self._run("cancel", keys, [rid, owner, queue, reason, frame, self._ttl_ms]))

    async def expire(self, rid: str, *, owner: str, queue: str) -> str:
        """Queued → expired, or tells the owner. Returns DONE, SENT, RETRY, EARLY, GONE or a terminal state."""
        frame, started = (end_frame(State.EXPIRED, reason) for reason in ("queue_timeout", "deadline_exceeded"))
        keys = self._ending_keys(rid, owner, queue)
        return _word(await self._run("expire", keys, [rid, owner, queue, frame, self._ttl_ms, started]))

    async def place(self, rid: str, lane: str) -> Place | None:
        """Where a request of that lane stands; None when it does not wait."""
        k = self._keys
        keys = [k.record(rid), k.queue(lane), k.fair(lane), k.sched, k.lanes, k.workers]
        reply = await self._run("place", keys, [lane])
        if reply[0] != b"QUEUED":
            return None
        _, position, depth, eta_ms, reason = reply
        return Place(position, depth, eta_ms if eta_ms >= 0 else None, reason.decode())

    async def discard(self, rid: str) -> str:
        """Takes the result of a request away, now or right after its end. Returns OK or GONE."""
        keys = [self._keys.record(rid), self._keys.log(rid)]
        return _word(await self._run("discard", keys, [limits.DISCARDED_LOG_MS]))

    async def forget(self, rids: Sequence[str]) -> int:
        """Takes those of these requests away that have ended, with record and log. Returns how many."""
        keys = [key for rid in rids for key in (self._keys.record(rid), self._keys.log(rid))]
        return int(await self._run("forget", keys, []))

    async def survey(self, wids: list[str]) -> Survey:
        """What the metrics say of the pool and of these workers. Reads only."""
        k = self._keys
        names = [*_NAMES, QUARANTINE]
        keys = [k.sched, k.lanes, k.dead_letters]
        keys += [key for name in names for key in (k.queue(name), k.ledger(name), self._queue_keys(name)[0])]
        keys += [key for wid in wids for key in (k.lease(wid), k.run(wid))]
        return read_survey(wids, await self._run("survey", keys, [len(names), limits.FAIRNESS_FIELDS, *names]))

    async def prune(self, lane: str, cursor: str = "0", count: int = 200) -> tuple[str, int]:
        """Drops what a lane's ledger keeps of tenants that are gone, in a slice. Returns (next cursor, how many).

        `count`: fields to look at. The cursor after the last slice is "0".
        """
        after, dropped = await self._run("prune", [self._keys.ledger(lane)], [cursor, count])
        return after.decode(), int(dropped)

    def _ending_keys(self, rid: str, owner: str, queue: str) -> list[str]:
        k = self._keys
        keys = [k.record(rid), k.queue(queue), k.box(owner), k.body(rid), k.log(rid), k.channel(rid)]
        return [*keys, k.tenants, k.deadlines, k.finished, k.control(owner), *self._queue_keys(queue)]

    def _queue_keys(self, name: str) -> list[str]:
        """Fair index and ledger of a queue; the queue's own key for one that has no index."""
        k = self._keys
        return [k.fair(name) if name in FAIR else k.queue(name), k.ledger(name)]

    def _lane_keys(self) -> list[str]:
        """Queue, fair index and ledger of each lane."""
        k = self._keys
        return [key for name in _NAMES for key in (k.queue(name), k.fair(name), k.ledger(name))]


def _word(reply: bytes) -> str:
    return reply.decode()
