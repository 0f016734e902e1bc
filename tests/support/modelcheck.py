"""A seeded, randomised check of the whole protocol against a real server.

Clients, workers, zombies and reapers take turns in a random order, and faults happen between them: workers die or go on
writing after they were declared dead, some requests kill whoever runs them, leases lapse, replies are lost and calls
repeated, entries are delivered twice or to nobody, a quarter of the live messages is lost, clients cancel, deadlines
pass. In fault mode the server also loses history: it is rolled back to an earlier snapshot (a failover), or flushed.
Then everything is drained, and the invariants of `model/invariants.py` must hold.

    python -m tests.support.modelcheck --seeds 200 --ops 1500 --server redis
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from shared.lane_admin import LaneAdmin
from shared.lane_settings import DRAIN, PAUSE, RESUME
from shared.lanes import Lane
from shared.outcomes import Admission, Bounds
from tests.support import servers
from tests.support.model.invariants import (
    check_clients,
    check_drained,
    check_keys,
    check_server,
    check_suspects,
    look,
    sets_key_free,
)
from tests.support.model.replica import ModelClient, ModelReplica, following
from tests.support.model.worker import ModelWorker
from tests.support.model.world import Patch, ViolationError, World, opened, require

_WORKERS = 3
_CHECK_EVERY = 100
_DRAIN_ROUNDS = 300
_GRACE_ROUNDS = 20
"""After so many of them everything that a worker has can be back."""
_TENANT_CAP = 30
_LANE_CAP = 20
_SOON_MS = 20
_LATE_MS = 600_000
_POISON = 0.06

Op = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. `faults`: the server may lose history. `strict`: the scripts open with `#!lua`."""

    seed: int
    ops: int
    faults: bool = False
    strict: bool = False
    patches: tuple[Patch, ...] = ()


class Run:
    """One run: what can happen, and how often."""

    def __init__(self, plan: Plan, world: World, replica: ModelReplica) -> None:
        self._plan = plan
        self._world = world
        self._replica = replica
        self._admitted = 0
        self._workers = [ModelWorker(world, faults=plan.faults) for _ in range(_WORKERS)]
        self._zombies: list[ModelWorker] = []
        weighted: list[tuple[float, Op]] = [
            (22, self._admit),
            (12, lambda: self._one().pull()),
            (12, lambda: self._one().claim()),
            (26, lambda: self._one().step()),
            (12, self._done),
            (2, lambda: self._one().present()),
            (0.8, self._lapse),
            (1.0, self._outlive),
            (0.5, self._kill),
            (6, self._zombie_writes),
            (3, self._reap),
            (2, lambda: self._one().sweep()),
            (3, self._cancel),
            (2, self._expire),
            (1, self._hand_back),
            (2, self._preempt),
            (1.5, self._look),
            (1, self._discard),
            (0.5, self._ask_place),
            (0.3, replica.renewed),
            (1, self._set_lane),
            (0.3, self._purge),
        ]
        if not plan.faults:
            weighted += [(4, self._release), (3, self._redrive)]
        if plan.faults:
            weighted += [(1, self._release)]
            weighted += [(2.0, lambda: self._one().reconcile()), (1.0, world.take_snapshot)]
            weighted += [(4, lambda: self._one().step_double())]
            weighted += [(0.8, self._roll_back), (0.1, self._flush)]
        self._weights = [weight for weight, _ in weighted]
        self._ops = [op for _, op in weighted]

    def _one(self) -> ModelWorker:
        return self._world.rnd.choice(self._workers)

    # ---- what clients do

    async def _admit(self) -> None:
        world, rnd = self._world, self._world.rnd
        rid = f"q{self._admitted}"
        self._admitted += 1
        if not self._plan.faults and rnd.random() < _POISON:
            world.poison.add(rid)
        key = rnd.choice(["", f"key{rnd.randrange(150)}"])
        deadline_ms = await world.now_ms() + rnd.choices([_SOON_MS, _LATE_MS], [1, 5])[0]
        admission = Admission(
            rid=rid,
            fingerprint=f"fp of {key or rid}",
            lane=rnd.choice(list(Lane)),
            body=b"body of " + rid.encode(),
            tenant=rnd.choice("ab"),
            bounds=Bounds(_LANE_CAP, share=0.9),
            tenant_cap=_TENANT_CAP,
            prompt_tokens=self._world.rnd.randint(1, 500),
            output_limit=1,
            deadline_ms=deadline_ms,
            finish_by_ms=rnd.choice([0, deadline_ms + _SOON_MS, deadline_ms + _LATE_MS]),
            idempotency=key,
            idempotency_ttl_ms=_LATE_MS if key else 0,
        )
        admitted = await world.scripts.admit(admission)
        world.happened[f"admit: {admitted.outcome.lower()}"] += 1
        if admitted.outcome == "OK":
            self._replica.clients[rid] = ModelClient(world, admission)
        elif admitted.outcome == "DUP":
            require(admitted.rid in self._replica.clients, "an unknown request holds the key", key, admitted)
            if sets_key_free(self._replica.clients[admitted.rid]):
                await self._replace_holder(replace(admission, replaces=admitted.rid))

    async def _replace_holder(self, admission: Admission) -> None:
        admitted = await self._world.scripts.admit(admission)
        self._world.happened[f"admit again: {admitted.outcome.lower()}"] += 1
        if admitted.outcome == "OK":
            self._replica.clients[admission.rid] = ModelClient(self._world, admission)

    async def _ask_place(self) -> None:
        world, rid = self._world, f"q{self._world.rnd.randrange(self._admitted + 1)}"
        lane = (await world.client.hget(world.keys.record(rid), "lane") or b"standard").decode()  # type: ignore[misc]
        place = await world.scripts.place(rid, lane)
        state = await world.client.hget(world.keys.record(rid), "state")  # type: ignore[misc]
        require((place is not None) == (state == b"queued"), rid, "is", state, "and stands at", place)
        require(place is None or 0 <= place.position <= place.depth, rid, "stands at", place)

    async def _discard(self) -> None:
        ended = [client for client in self._replica.clients.values() if client.outcome is not None]
        if ended:
            outcome = await self._world.scripts.discard(self._world.rnd.choice(ended).rid)
            self._world.happened[f"discard: {outcome.lower()}"] += 1

    async def _cancel(self) -> None:
        if self._replica.clients:
            client = self._world.rnd.choice(list(self._replica.clients.values()))
            await client.leave()

    async def _look(self) -> None:
        if self._replica.waiting:
            await self._world.rnd.choice(self._replica.waiting).look()

    # ---- what workers do

    async def _done(self) -> None:
        worker = self._one()
        if worker.running:
            await worker.done(self._world.rnd.choice(list(worker.running)))

    async def _hand_back(self) -> None:
        worker = self._one()
        if worker.running:
            await worker.hand_back(self._world.rnd.choice(list(worker.running)))

    async def _preempt(self) -> None:
        worker = self._one()
        if worker.running:
            await worker.preempt(self._world.rnd.choice(list(worker.running)))

    async def _lapse(self) -> None:
        """A pause or a failover has eaten the lease; the worker is well."""
        self._world.happened["lease lapsed"] += 1
        await self._world.client.delete(self._world.keys.lease(self._one().wid))

    async def _outlive(self) -> None:
        """A worker that everybody takes for dead goes on."""
        self._world.happened["zombie"] += 1
        self._zombies.append(await self._replace(self._one()))

    async def _kill(self) -> None:
        self._world.happened["worker killed"] += 1
        await self._replace(self._one())

    async def _replace(self, worker: ModelWorker) -> ModelWorker:
        await self._world.client.delete(self._world.keys.lease(worker.wid))
        fresh = ModelWorker(self._world, faults=self._plan.faults)
        self._workers[self._workers.index(worker)] = fresh
        await fresh.present()
        return worker

    async def _zombie_writes(self) -> None:
        if not self._zombies:
            return
        zombie = self._world.rnd.choice(self._zombies)
        if zombie.running and self._world.rnd.random() > 0.6:
            await zombie.done(self._world.rnd.choice(list(zombie.running)))
        else:
            await zombie.step()

    async def _crash_poisoned(self) -> None:
        for worker in [worker for worker in self._workers if worker.poisoned]:
            self._world.happened["poisoned"] += 1
            await self._replace(worker)

    # ---- what reapers do

    async def _reap(self) -> None:
        world = self._world
        for raw in await world.client.hkeys(world.keys.workers):  # type: ignore[misc]
            wid = raw.decode()
            if await world.scripts.condemn(wid):
                world.happened["condemned"] += 1
                await world.reaper.bury(world.keys, world.scripts, wid)

    async def _expire(self) -> None:
        await self._world.reaper._expire(self._world.keys, self._world.scripts)

    async def _release(self) -> None:
        await self._world.reaper._release(self._world.keys, self._world.scripts)
        if await self._world.client.exists(self._world.keys.suspect):
            self._world.happened["suspect out"] += 1

    async def _redrive(self) -> None:
        """An operator tries a dead letter again, once."""
        world, rid = self._world, f"q{self._admitted}"
        letters = await world.client.xrevrange(world.keys.dead_letters, count=1)
        if not letters:
            return
        self._admitted += 1
        entry, fields = letters[0]
        original = fields[b"rid"].decode()
        body, lane, tenant = (fields[name] for name in (b"body", b"lane", b"tenant"))
        late_ms = await world.now_ms() + _LATE_MS
        admission = Admission(rid, f"fp of {rid}", lane.decode(), body, tenant.decode(), _TENANT_CAP, 1, 0, late_ms)
        outcome, known = await world.scripts.redrive(entry.decode(), admission, patience_ms=_LATE_MS)
        world.happened[f"redrive: {outcome.lower()}"] += 1
        if known == rid:
            world.redriven[rid] = world.redriven.get(original, original)
            self._replica.clients[rid] = ModelClient(world, admission)

    async def _look_after(self) -> None:
        """Survey and prune, behind the turns and with certain replies: a seed stays what it is."""
        world, lossy = self._world, self._world.caller.loses
        world.caller.loses = False
        for lane in Lane:
            _, dropped = await world.scripts.prune(lane)
            world.happened["pruned"] += dropped
        await world.scripts.survey([raw.decode() for raw in await world.client.hkeys(world.keys.workers)])  # type: ignore[misc]
        world.caller.loses = lossy

    async def _set_lane(self) -> None:
        """An operator pauses, drains or resumes a lane, or changes its weight."""
        change = self._world.rnd.choice([PAUSE, DRAIN, RESUME, RESUME, RESUME, {"weight": "5"}])
        changed = await self._world.scripts.setlane(self._world.rnd.choice(list(Lane)), change)
        self._world.happened[f"lane {next(iter(change))}"] += changed

    async def _purge(self) -> None:
        """An operator ends what waits in a lane."""
        world = self._world
        admin = LaneAdmin(world.client, world.keys.prefix, result_ttl_ms=_LATE_MS)
        async for count in admin.purge(world.keys.pool, world.rnd.choice(list(Lane))):
            world.happened["purged"] += count

    # ---- what happens to the server

    async def _roll_back(self) -> None:
        if await self._world.roll_back(living={worker.wid for worker in self._workers}):
            self._world.happened["rolled back"] += 1

    async def _flush(self) -> None:
        self._world.happened["flushed"] += 1
        await self._world.flush()

    # ---- the run

    async def run(self) -> None:
        """Everything, then the end of everything. Raises ViolationError."""
        for worker in self._workers:
            await worker.present()
        for turn in range(self._plan.ops):
            await self._world.rnd.choices(self._ops, self._weights)[0]()
            await self._replica.pump()
            await self._renew_condemned()
            await self._crash_poisoned()
            if turn % _CHECK_EVERY == _CHECK_EVERY - 1:
                view = await look(self._world)
                check_server(view, self._world.lineage)
                if not self._plan.faults:
                    check_suspects(view)
        await self._look_after()
        await self._drain()
        view = await look(self._world)
        check_server(view, self._world.lineage)
        check_drained(view)
        check_clients(self._replica.clients.values(), view, self._world.lineage, faults=self._plan.faults)
        if not self._plan.faults:
            check_keys(self._replica.clients.values())

    async def _renew_condemned(self) -> None:
        """A worker that was told that it is dead goes on under a new id; a zombie that was told stops."""
        self._zombies = [zombie for zombie in self._zombies if not zombie.condemned]
        for worker in [worker for worker in self._workers if worker.condemned]:
            await self._replace(worker)

    async def _drain(self) -> None:
        """No more faults; everything must come to its end."""
        world = self._world
        world.caller.loses = False
        for lane in Lane:
            await world.scripts.setlane(lane, RESUME)
        for zombie in self._zombies:
            await world.client.delete(world.keys.lease(zombie.wid))
        for turn in range(_DRAIN_ROUNDS):
            await self._reap()
            await self._expire()
            await self._release()
            for worker in self._workers:
                await self._work_off(worker)
            await self._renew_condemned()
            await self._crash_poisoned()
            await self._replica.pump()
            for client in self._replica.waiting:
                await (client.look() if turn < _GRACE_ROUNDS else client.despair())
            if not self._replica.waiting and not (await look(world)).tenants:
                return

    async def _work_off(self, worker: ModelWorker) -> None:
        await worker.present()
        if self._plan.faults:
            await worker.reconcile()
        for work in (worker.sweep, worker.pull, worker.claim, worker.step, worker.step_double):
            await work()
        for rid in list(worker.running):
            if rid in worker.running and not worker.poisoned:
                await worker.done(rid)


async def check(url: str, plan: Plan) -> Counter[str]:
    """One run on a server. Returns what happened, by name. Raises ViolationError."""
    prefix = f"model-{plan.seed}-{uuid.uuid4().hex[:6]}"
    async with opened(url, prefix, plan.seed) as world, following(world, url) as replica:
        world.caller.patch(plan.patches)
        if plan.strict:
            world.caller.strict()
        try:
            await Run(plan, world, replica).run()
        except AssertionError as error:
            raise ViolationError(f"seed {plan.seed}, {'fault' if plan.faults else 'plain'} mode: {error}") from error
        world.happened["requests"] = len(replica.clients)
        for client in replica.clients.values():
            world.happened[f"outcome {client.outcome}"] += 1
        return world.happened


async def _check_all(url: str, plans: Sequence[Plan]) -> tuple[Counter[str], list[int]]:
    total: Counter[str] = Counter()
    failed = []
    for plan in plans:
        mode = "fault" if plan.faults else "plain"
        began_s = time.monotonic()
        try:
            happened = await check(url, plan)
        except Exception as error:  # noqa: BLE001 - any end but a good one is a finding, and the next seed goes on
            traceback.print_exc()
            print(f"seed {plan.seed} {mode}: FAILED {error}", flush=True)  # noqa: T201 - this is a program
            failed.append(plan.seed)
            continue
        total += happened
        took_s = time.monotonic() - began_s
        print(f"seed {plan.seed} {mode}: ok, {happened['requests']} requests, {took_s:.1f} s", flush=True)  # noqa: T201
    return total, failed


def main() -> int:
    """The program: see the module's docstring. Even seeds run in fault mode."""
    parser = argparse.ArgumentParser(description="model check of the protocol")
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--ops", type=int, default=1500, help="turns in one run")
    parser.add_argument("--server", choices=servers.KINDS, default="redis")
    parser.add_argument("--mode", choices=("both", "plain", "fault"), default="both")
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.seeds)
    plans = [
        Plan(seed, args.ops, faults=args.mode == "fault" or (args.mode == "both" and seed % 2 == 0)) for seed in seeds
    ]
    with servers.running(args.server) as server:
        total, failed = asyncio.run(_check_all(server.url, plans))
    print(f"{len(plans) - len(failed)} of {len(plans)} seeds passed on {server.kind} {server.version}")  # noqa: T201
    for name, count in sorted(total.items()):
        print(f"  {count:8d}  {name}")  # noqa: T201
    if failed:
        print("failed seeds:", *failed)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
