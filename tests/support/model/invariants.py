"""What must hold, whatever happened: on the server at every moment, and for every client at the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shared.lanes import FAIR, QUARANTINE, QUEUES
from shared.limits import MOST_KILLS, SUSPECT_KILLS
from shared.states import TERMINAL
from shared.wire import END, Meta, split_log
from tests.support.model.replica import ModelClient
from tests.support.model.world import World, require

FREEING = frozenset({"worker_lost", "queue_timeout"})
_TOKEN = re.compile(rb"([0-9a-f]+)\.(\d+) ")


@dataclass(slots=True)
class View:
    """Everything that one shard holds."""

    records: dict[str, dict[str, str]] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    bodies: set[str] = field(default_factory=set)
    ttls_ms: dict[str, int] = field(default_factory=dict)
    runs: dict[str, dict[str, str]] = field(default_factory=dict)
    queued: dict[str, set[str]] = field(default_factory=dict)
    pending: int = 0
    fair: dict[str, dict[str, float]] = field(default_factory=dict)
    delivered: dict[str, set[str]] = field(default_factory=dict)
    ledgers: dict[str, dict[str, float]] = field(default_factory=dict)
    tenants: dict[str, int] = field(default_factory=dict)
    deadlines: set[str] = field(default_factory=set)
    finished: list[tuple[str, str]] = field(default_factory=list)


def _text(values: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in values.items()}


async def look(world: World) -> View:
    """Reads it all. Nothing else may be going on meanwhile."""
    keys, client, view = world.keys, world.client, View()
    for raw in await world.all_keys():
        key = raw.decode()
        if key.startswith(prefix := keys.record("")):
            rid = key.removeprefix(prefix)
            view.records[rid] = _text(await client.hgetall(key))  # type: ignore[misc]
            view.ttls_ms[rid] = await client.pttl(key)
        elif key.startswith(prefix := keys.log("")):
            view.logs[key.removeprefix(prefix)] = await client.get(key)
        elif key.startswith(prefix := keys.body("")):
            view.bodies.add(key.removeprefix(prefix))
        elif key.startswith(prefix := keys.run("")):
            view.runs[key.removeprefix(prefix)] = _text(await client.hgetall(key))  # type: ignore[misc]
    await _look_at_queues(world, view)
    tenants = await client.hgetall(keys.tenants)  # type: ignore[misc]
    view.tenants = {name: int(count) for name, count in _text(tenants).items()}
    view.deadlines = {rid.decode() for rid in await client.zrange(keys.deadlines, 0, -1)}
    outbox = await client.xrange(keys.finished)
    view.finished = [(fields[b"rid"].decode(), fields[b"state"].decode()) for _, fields in outbox]
    return view


async def _look_at_queues(world: World, view: View) -> None:
    for name in (*(queue.name for queue in QUEUES), QUARANTINE):
        key = world.keys.queue(name)
        view.queued[name] = {entry_id.decode() for entry_id, _ in await world.client.xrange(key)}
        if await world.client.exists(key):
            view.pending += (await world.client.xpending(key, "g"))["pending"]
            pending = await world.client.xpending_range(key, "g", "-", "+", 10_000)
            view.delivered[name] = {found["message_id"].decode() for found in pending}
        ledger = await world.client.hgetall(world.keys.ledger(name))  # type: ignore[misc]
        view.ledgers[name] = {
            field_name: float(value) for field_name, value in _text(ledger).items() if not field_name.startswith("a:")
        }
        tags = await world.client.zrange(world.keys.fair(name), 0, -1, withscores=True)
        view.fair[name] = {entry_id.decode(): tag for entry_id, tag in tags}


Lineage = Mapping[str, tuple[str, int]]


def read_tokens(text: bytes, lineage: Lineage, *whose: object) -> int:
    """How many tokens a text has. They must be contiguous from 0 and all of one generation."""
    before, count = "", 0
    for raw, index in _TOKEN.findall(text):
        attempt = raw.decode()
        require(int(index) == count, "gap or repeat at token", count, "in", *whose, text)
        one = not before or attempt == before or continues(lineage, attempt, before, count)
        require(one, "two generations in one answer:", *whose, text)
        before = attempt
        count += 1
    require(not _TOKEN.sub(b"", text).strip(), "broken text in", *whose, text)
    return count


def continues(lineage: Lineage, attempt: str, before: str, tokens: int) -> bool:
    """Whether `attempt` went on with exactly the first `tokens` tokens, of which `before` made the last.

    Attempts in between may have added nothing.
    """
    while attempt != before:
        behind, there = lineage.get(attempt, ("", -1))
        if there != tokens:
            return False
        attempt = behind
    return True


def check_log(rid: str, log: bytes, lineage: Lineage) -> tuple[bytes, Meta | None]:
    """A log's text and its end. One terminal frame at most, and nothing after it."""
    text, end, seen = b"", None, 0
    for offset, frame in split_log(log, 0):
        require(end is None, "a frame after the terminal one in the log of", rid, frame)
        text += frame.data
        seen = offset
        if frame.kind & END:
            end = frame.meta
    require(seen == len(log), "a cut-off frame in the log of", rid)
    read_tokens(text, lineage, "the log of", rid)
    return text, end


def check_server(view: View, lineage: Lineage) -> None:
    """What the scripts promise about their keys after each single call."""
    for rid, record in view.records.items():
        _check_record(rid, record, view, lineage)
    _check_totals(view)
    for name in view.queued:
        _check_queue(name, view)


def _check_record(rid: str, record: dict[str, str], view: View, lineage: Lineage) -> None:
    state = record["state"]
    ended = state in TERMINAL
    _, end = check_log(rid, view.logs.get(rid, b""), lineage)
    if ended and "discarded" in record:
        return
    require(ended == (end is not None), rid, "is", state, "and its log's end is", end)
    require(end is None or end.state == state, rid, "is", state, "and its log says", end)
    require(ended == (rid not in view.bodies), rid, "is", state, "and its body is there" if ended else "without body")
    require(ended == (view.ttls_ms[rid] > 0), rid, "is", state, "and its record's TTL is", view.ttls_ms[rid])
    if state == "running":
        owned = view.runs.get(record["owner"], {}).get(rid)
        require(owned == record["attempt"], rid, "runs as", record["attempt"], "and its owner's run set says", owned)
    else:
        require("owner" not in record and "attempt" not in record, rid, "is", state, "and has an owner:", record)
    if state == "queued":
        require(record["entry"] in view.queued[record["queue"]], rid, "is queued and on no queue:", record)
        require(rid in view.deadlines, rid, "is queued and nothing watches its deadline")


def _check_totals(view: View) -> None:
    alive = {rid: record for rid, record in view.records.items() if record["state"] not in TERMINAL}
    counted = Counter(record["tenant"] for record in alive.values())
    require(view.tenants == dict(counted), "tenants are counted as", view.tenants, "and it is", dict(counted))
    for wid, owned in view.runs.items():
        for rid, attempt in owned.items():
            record = alive.get(rid, {})
            holds = (record.get("owner"), record.get("attempt")) == (wid, attempt)
            require(holds, "worker", wid, "owns", rid, "as", attempt, "and its record says", record)
    require(view.deadlines <= set(alive), "deadlines of what has ended:", view.deadlines - set(alive))
    times = Counter(rid for rid, _ in view.finished)
    require(all(count == 1 for count in times.values()), "finished twice:", times.most_common(3))
    ended = {rid: record["state"] for rid, record in view.records.items() if rid not in alive}
    require(
        dict(view.finished) == ended, "the outbox differs from the records:", set(view.finished) ^ set(ended.items())
    )


def _check_queue(name: str, view: View) -> None:
    """What is not delivered can be picked, and the ledger adds up."""
    waiting = [record for record in view.records.values() if record["state"] == "queued" and record["queue"] == name]
    if name in FAIR:
        lost = {record["entry"] for record in waiting} - view.delivered.get(name, set()) - view.fair[name].keys()
        require(not lost, "entries of", name, "that nobody can pick:", lost)
        require(view.fair[name].keys() <= view.queued[name], "the index of", name, "names what is gone")
        for record in waiting:
            tag = view.fair[name].get(record["entry"])
            if tag is not None:
                first = int(record["claims"]) == 0
                require(first == (tag >= 0), "in the wrong part of", name, "with the tag", tag, "is", record)
    sums: Counter[str] = Counter()
    for record in waiting:
        cost, tenant = int(record["cost"]), record["tenant"]
        sums.update({"n": 1, "c": cost, "b": int(record["bytes"]), f"n:{tenant}": 1, f"c:{tenant}": cost})
    if waiting:
        sums["t"] = len({record["tenant"] for record in waiting})
    ledger = {key: value for key, value in view.ledgers[name].items() if key != "v" and not key.startswith("f:")}
    require(ledger == dict(sums), "the ledger of", name, "says", ledger, "and it is", dict(sums))


def check_suspects(view: View) -> None:
    """Of the requests that have killed two workers one at most is out of quarantine."""
    alive = {rid: record for rid, record in view.records.items() if record["state"] not in TERMINAL}
    suspects = {rid: record for rid, record in alive.items() if int(record["kills"]) >= SUSPECT_KILLS}
    out = [rid for rid, record in suspects.items() if record["state"] == "running" or record["queue"] != QUARANTINE]
    require(len(out) <= 1, "several suspects are out of quarantine:", out)
    require(all(int(record["kills"]) < MOST_KILLS for record in suspects.values()), "not given up:", suspects)


def check_drained(view: View) -> None:
    """Nothing is left in the system."""
    left = [rid for rid, record in view.records.items() if record["state"] not in TERMINAL]
    require(not left, "never ended:", left[:3])
    require(not view.tenants, "tenants still hold places:", view.tenants)
    require(not view.deadlines, "deadlines are left:", view.deadlines)
    require(not any(view.queued.values()), "entries are left on", view.queued)
    require(view.pending == 0, "entries are pending:", view.pending)
    require(not any(view.runs.values()), "somebody still owns", view.runs)


def sets_key_free(client: ModelClient) -> bool:
    """Whether the request ended in a way that lets its idempotency key be bound again."""
    end = client.relay.end
    return end is not None and (end.state == "cancelled" or end.reason in FREEING)


def check_keys(clients: Iterable[ModelClient]) -> None:
    """Of the requests that one key was bound to, at most one has an answer that stays bound."""
    bound = Counter(client.admission.idempotency for client in clients if not sets_key_free(client))
    del bound[""]
    require(all(count == 1 for count in bound.values()), "one key, several answers:", bound.most_common(3))


def check_clients(clients: Iterable[ModelClient], view: View, lineage: Lineage, *, faults: bool) -> None:
    """Every client has exactly one end, and a text without gap, repeat or splice."""
    for client in clients:
        rid, end = client.rid, client.relay.end
        require(client.outcome is not None, "a client hangs:", rid)
        count = read_tokens(client.text, lineage, "what the client got of", rid)
        if client.outcome == "succeeded":
            require(end is not None and end.usage is not None, rid, "succeeded without usage", end)
            require(end and end.usage and end.usage.completion_tokens == count, rid, "lost its tail:", count, end)
        if not faults and "discarded" not in view.records[rid]:
            require(not client.explicit, rid, "ended as", client.outcome, "and the server lost nothing")
            text, _ = check_log(rid, view.logs.get(rid, b""), lineage)
            require(client.text == text, rid, "client and log differ:", client.text, text)
            require(client.outcome == view.records[rid]["state"], rid, client.outcome, view.records[rid])
