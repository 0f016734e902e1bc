"""A worker as the protocol sees it: it pulls, claims, writes frames, ends requests, and obeys refusals.

Its engine is a function: token `i` of attempt `a` is the text `a.i `, also where `a` goes on with another attempt's
text, as if every attempt sampled anew. So a gap, a repeat and a splice of two generations show in the text itself. What
it does with a log that it finds, and with each refusal, is what `worker/attempt.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import FencedError
from shared.lanes import QUEUES, Lane
from shared.outcomes import Claimed, Entry, Finished, Held
from shared.states import State
from shared.wire import DELTA, END, HEAD, RESUME, Frame, Meta, Usage, WorkerCard, encode
from tests.support.model.world import World, require
from worker.continuation import History

_OPENING = Meta(status=200, headers=[("content-type", "text/plain")])
_UNCLAIMED = 0.1
_SKIPPED = 0.2
_MAKES_ROOM = 0.2
_NOT_CONTINUABLE = 0.1
_ALIGNED_BYTES = 64
"""Frames end at multiples of this, so that after a rollback another attempt often writes where a client has read on."""
_ENDS = {"cancel": (State.CANCELLED, "cancelled"), "expire": (State.EXPIRED, "deadline")}


def text_of(attempt: str, first: int, count: int) -> bytes:
    """What the engine says: tokens `first` .. `first + count - 1`."""
    return b"".join(b"%s.%d " % (attempt.encode(), i) for i in range(first, first + count))


@dataclass(slots=True)
class Running:
    """A sequence of the engine. `opening`: what the attempt's first frame says; None once it was made.

    `log` is what has been published, by this attempt and those before it; `last_bytes` is its last frame's length.
    """

    attempt: str
    claimed: Claimed
    log: bytes = b""
    last_bytes: int = 0
    tokens: int = 0
    opening: Meta | None = _OPENING

    @property
    def log_len(self) -> int:
        """Where the next frame belongs."""
        return len(self.log)

    def landed(self, frame: bytes) -> None:
        """A frame was published."""
        self.log += frame
        self.last_bytes = len(frame)

    def frame(self, count: int, end: Meta | None = None) -> bytes:
        """The next `count` tokens as a frame."""
        opening, self.opening = self.opening, None
        flag = DELTA if opening is None else RESUME if opening.after else HEAD
        kind = flag | (END if end else DELTA)
        meta = _both(opening, end) if opening and end else end or opening
        ids = list(range(self.tokens, self.tokens + count))
        text = text_of(self.attempt, self.tokens, count)
        frame = encode(Frame(kind, self.attempt, self.tokens, ids, 0, meta, text))
        while text and (missing := -(self.log_len + len(frame)) % _ALIGNED_BYTES):
            text += b" " * missing
            frame = encode(Frame(kind, self.attempt, self.tokens, ids, 0, meta, text))
        self.tokens += count
        return frame


def _both(opening: Meta, end: Meta) -> Meta:
    return Meta(opening.status, opening.headers, end.state, end.reason, end.message, end.usage, opening.after)


class ModelWorker:
    """One worker process.

    `condemned` is set once Redis has refused its id; it must then go on under another. `poisoned` is set once it runs a
    request that kills it.
    """

    def __init__(self, world: World, *, faults: bool) -> None:
        """`faults`: whether the server may lose history, so that the length guard may refuse."""
        self._world = world
        self._faults = faults
        self.wid = "w" + world.hex_id(16)
        self.condemned = False
        self.poisoned = False
        self.running: dict[str, Running] = {}
        self._doubles: list[
            tuple[str, Running, int]
        ] = []  # it was given the same request again, and still runs this one
        self._delivered: list[Entry] = []

    async def present(self) -> None:
        """Announces itself and renews its lease; the box comes along."""
        card = encode(WorkerCard(self.wid, "model", "0", 8, []))
        await self._world.client.hset(self._world.keys.workers, self.wid, card)  # type: ignore[misc, arg-type]
        try:
            await self._obey(await self._world.scripts.beat(self.wid))
        except FencedError:
            self._fenced()

    def _fenced(self) -> None:
        self._world.happened["worker fenced"] += 1
        self.condemned = True
        self.running.clear()
        self._doubles.clear()
        self._delivered.clear()

    # ---- taking work

    async def pull(self) -> None:
        """Delivery, by the script or by the blocking read that waits while all queues are empty."""
        world = self._world
        try:
            if world.rnd.random() < 0.5:
                one_lane = {"only": Lane.INTERACTIVE, "waited_ms": world.rnd.randrange(3), "slots": 8}
                options = one_lane if world.rnd.random() < _MAKES_ROOM else {}
                self._delivered += await world.scripts.pull(self.wid, world.rnd.randrange(1, 5), **options)
            else:
                self._delivered += await self._read()
        except FencedError:
            self._fenced()

    async def _read(self) -> list[Entry]:
        keys, client = self._world.keys, self._world.client
        queues = {keys.queue(queue.name): queue.name for queue in QUEUES}
        there = [queue for queue in queues if await client.exists(queue)]
        if not there:
            return []
        reply = await client.xreadgroup("g", self.wid, dict.fromkeys(there, ">"), count=1)
        return [_entry(queues[queue.decode()], found) for queue, entries in reply for found in entries]

    async def sweep(self) -> None:
        """Takes over entries that somebody got and nobody claimed; here also those that somebody is about to claim."""
        world = self._world
        for queue in QUEUES:
            key = world.keys.queue(queue.name)
            if await world.client.exists(key):
                reply = await world.client.xautoclaim(key, "g", self.wid, 0, "0-0", count=50)
                entries = [_entry(queue.name, found) for found in reply[1] if found and found[1]]
                world.happened["swept entry"] += len(entries)
                self._delivered += entries

    async def claim(self) -> None:
        """Claims what was delivered; some of it is forgotten, as by a reader whose reply was lost."""
        world = self._world
        delivered, self._delivered = self._delivered, []
        for entry in delivered:
            if world.caller.loses and world.rnd.random() < _UNCLAIMED:
                world.happened["orphaned entry"] += 1
                continue
            try:
                await self._claim(entry)
            except FencedError:
                self._fenced()
                return

    async def _claim(self, entry: Entry) -> None:
        world = self._world
        attempt = world.hex_id(12)
        claimed = await world.scripts.claim(self.wid, entry, attempt)
        if not isinstance(claimed, Claimed):
            world.happened[f"claim {claimed.outcome.lower()}"] += 1
            return
        original = world.redriven.get(entry.rid, entry.rid)
        require(claimed.body == b"body of " + original.encode(), "wrong body", entry.rid, claimed.body)
        self.poisoned = self.poisoned or original in world.poison
        if entry.rid in self.running:
            self._double(entry.rid)
        self.running[entry.rid] = run = Running(attempt, claimed, claimed.log)
        history = History.of(claimed.log)
        if history is None:
            world.happened["restarted" if claimed.log else "started"] += 1
        elif world.rnd.random() < _NOT_CONTINUABLE:
            await self.done(entry.rid, State.FAILED, "worker_lost")
        else:
            world.happened["continued"] += 1
            run.tokens, run.opening = len(history.token_ids), Meta(after=history.attempt)
            world.lineage[attempt] = history.attempt, run.tokens

    # ---- giving answers

    async def step(self) -> None:
        """One flush of most of what runs."""
        world = self._world
        chosen = [rid for rid in self.running if world.rnd.random() > _SKIPPED]
        if not chosen:
            return
        frames = []
        for rid in chosen:
            run = self.running[rid]
            frames.append((rid, run.attempt, run.log_len, run.frame(world.rnd.randrange(4))))
        try:
            stepped = await world.scripts.step(self.wid, frames)
        except FencedError:
            self._fenced()
            return
        for position, (rid, _, _, frame) in enumerate(frames):
            if position in stepped.refused:
                await self._refused(rid, stepped.refused[position], frame)
            else:
                self.running[rid].landed(frame)
        await self._obey(stepped.box)

    def _double(self, rid: str) -> None:
        self._doubles.append((rid, self.running[rid], self._world.happened["rolled back"]))

    async def step_double(self) -> None:
        """An attempt whose request this worker was given once more goes on, too.

        It is refused, unless the server has been rolled back since then, perhaps to where it was the owner.
        """
        if not self._doubles:
            return
        rid, run, rollbacks = self._doubles.pop()
        frame = run.frame(1)
        try:
            stepped = await self._world.scripts.step(self.wid, [(rid, run.attempt, run.log_len, frame)])
            owner_again = self._world.happened["rolled back"] > rollbacks
            require(stepped.refused or owner_again, "two attempts of", rid, "are both served")
            if not stepped.refused:
                run.landed(frame)
                frame = b""
            if await self._restored(rid, run, frame):
                self._world.happened["double restored"] += 1
                if rid in self.running:
                    self._double(rid)
                self.running[rid] = run
        except FencedError:
            self._fenced()

    async def done(self, rid: str, state: State = State.SUCCEEDED, reason: str = "completed") -> None:
        """Ends a request; its last tokens ride on the terminal frame."""
        world, run = self._world, self.running[rid]
        count = world.rnd.randrange(3) if state is State.SUCCEEDED else 0
        end = Meta(state=state, reason=reason, usage=Usage(1, run.tokens + count))
        frame = run.frame(count, end)

        async def ask() -> Finished:
            return await world.scripts.done(
                self.wid, rid, run.attempt, state=state, reason=reason, frame=frame, expected=run.log_len
            )

        finished = await ask()
        try:
            if finished.outcome != "OK" and await self._restored(rid, run, b"", ending=True):
                finished = await ask()
        except FencedError:
            self._fenced()
            return
        if finished.outcome == "OK":
            del self.running[rid]
            world.happened[f"done {state}"] += 1
        else:
            await self._given_up(rid, finished.log_len if finished.outcome == "GAP" else -1)

    async def _refused(self, rid: str, log_len: int, frame: bytes) -> None:
        """A frame was refused: somebody else's by rights, or the server has lost history."""
        if log_len >= 0:
            require(self._faults, "the length guard refused", rid, "at", log_len, "and the server lost nothing")
            self._world.happened["length guard refused"] += 1
        run = self.running.get(rid)
        if run is None:
            return  # it was found out meanwhile that this worker is dead
        try:
            if await self._restored(rid, run, frame):
                return
        except FencedError:
            self._fenced()
            return
        await self._given_up(rid, log_len)

    async def _restored(self, rid: str, run: Running, frame: bytes, *, ending: bool = False) -> bool:
        """Whether the worker got the request back. Raises FencedError."""
        happened = self._world.happened
        last_bytes = len(frame) or run.last_bytes
        before = await self._world.client.get(self._world.keys.log(rid)) or b""
        seen = not frame and last_bytes > 0
        held = Held(rid, run.attempt, run.claimed, run.log + frame, last_bytes, ending, seen)
        try:
            outcome = await self._world.scripts.restore(self.wid, held)
        except FencedError:
            happened["attempt fenced"] += 1
            raise
        happened[f"restore: {outcome.lower()}"] += 1
        require(self._faults or outcome == "STALE", "restored", rid, outcome, "and the server lost nothing")
        if outcome == "OK":
            require(held.log.startswith(before), "a restore has overwritten what others wrote:", rid, before, held.log)
            if frame:
                run.landed(frame)
        return outcome == "OK"

    async def _given_up(self, rid: str, log_len: int) -> None:
        if log_len < 0:
            self._world.happened["attempt fenced"] += 1
            del self.running[rid]
            return
        await self.hand_back(rid)

    async def hand_back(self, rid: str) -> None:
        """Gives a request up, so that it runs elsewhere if nothing of it is visible."""
        run = self.running.pop(rid)
        outcome = await self._world.scripts.requeue(self.wid, rid, run.attempt, how="hand_back")
        self._world.happened[f"handed back: {outcome.lower()}"] += 1

    async def preempt(self, rid: str) -> None:
        """Gives a slot to somebody else; the request waits in its lane again."""
        run = self.running.pop(rid)
        outcome = await self._world.scripts.requeue(self.wid, rid, run.attempt, how="preempt")
        self._world.happened[f"pre-empted: {outcome.lower()}"] += 1

    async def reconcile(self) -> None:
        """Hands back what the server says this worker owns and it knows nothing of; wants back what it runs."""
        owned = await self._world.client.hgetall(self._world.keys.run(self.wid))  # type: ignore[misc]
        for rid, run in list(self.running.items()):
            if owned.get(rid.encode()) != run.attempt.encode():
                self._world.happened["missed"] += 1
                await self._refused(rid, -1, b"")
        for raw, attempt in owned.items():
            rid = raw.decode()
            if rid not in self.running or self.running[rid].attempt != attempt.decode():
                await self._world.scripts.requeue(self.wid, rid, attempt.decode(), how="hand_back")
                self._world.happened["reconciled"] += 1

    async def _obey(self, box: list[bytes]) -> None:
        """Control messages; some are not acknowledged and come again."""
        world = self._world
        for message in box:
            word, _, rid = message.decode().partition(" ")
            if rid in self.running:
                world.happened[f"told to {word}"] += 1
                await self.done(rid, *_ENDS[word])
        if box and world.rnd.random() > _SKIPPED:
            await world.scripts.ackbox(self.wid, box)


def _entry(queue: str, found: tuple[bytes, dict[bytes, bytes]]) -> Entry:
    entry_id, fields = found
    return Entry(queue, entry_id.decode(), fields[b"rid"].decode())
