"""The history checker: what clients have seen, against what Redis says happened.

For every request that was admitted: exactly one terminal state, written once; the client's text is f(rid), or what it
was given as expected, whole or a prefix followed by one explicit error; the log's text is the client's; nothing stands
behind the terminal frame. When all is over nothing is left: no tenant's place, no run set, no message in a box, no
queue entry, no deadline, no body.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import redis

from shared.keys import Keys
from shared.lanes import QUARANTINE, QUEUES
from shared.states import TERMINAL
from shared.wire import END, Frame, split_log
from tests.support.client import Seen, text_of
from tests.support.polling import eventually
from worker.engines.sim_answers import answer_text

POOL = "sim"


@dataclass
class Verdict:
    """The figures of a history without a fault in it.

    Attributes:
        requests: clients whose request was admitted.
        whole: those that got the whole answer.
        errors: error codes of the others.
        longest_pause_s: the longest silence that a client saw in a stream.
        resumes: how often clients had to reconnect.
    """

    requests: int = 0
    whole: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    longest_pause_s: float = 0.0
    resumes: int = 0


Wanted = int | Mapping[str, str]
"""What was asked for: tokens of the simulated engine, or the text of each request by its id."""


def check_clients(seen: list[Seen], wanted: Wanted) -> Verdict:
    """What each client has seen. Raises AssertionError."""
    verdict = Verdict()
    for one in seen:
        assert not one.broken, f"{one.rid or 'a request without an id'}: broke off: {one.broken}"
        if one.rid and one.status == 200:
            expected = answer_text(one.rid, wanted) if isinstance(wanted, int) else wanted[one.rid]
            assert expected.startswith(one.text), f"{one.rid}: gap, repeat or splice:\n{one.text}\n{expected}"
            assert one.offsets == sorted(set(one.offsets)), f"{one.rid}: the cursors do not grow"
            assert one.whole == (one.text == expected and one.done == 1), f"{one.rid}: {one.done} {one.errors}"
        assert one.done + len(one.errors) == 1, f"{one.rid}: {one.done} ends and {one.errors}"
        verdict.requests += bool(one.rid)
        verdict.whole += one.whole
        verdict.errors.update(str(error["code"]) for error in one.errors)
        verdict.longest_pause_s = max(verdict.longest_pause_s, one.longest_pause_s)
        verdict.resumes += one.resumes
    return verdict


async def check_history(
    url: str, seen: list[Seen], wanted: Wanted, *, kept: bool = True, within_s: float = 30, pool: str = POOL
) -> Verdict:
    """Everything. `kept`: Redis has lost nothing, so that every record and log must be there. Raises AssertionError."""
    verdict = check_clients(seen, wanted)
    with redis.Redis.from_url(url) as server:
        keys = Keys(pool)
        await eventually(
            lambda: not leftovers(server, keys), f"rest; left is {leftovers(server, keys)}", within_s=within_s
        )
        ended = Counter(fields[b"rid"].decode() for _, fields in server.xrange(keys.finished))
        assert all(count == 1 for count in ended.values()), f"ended twice: {ended.most_common(3)}"
        for one in seen:
            if one.rid:
                _check_request(server, keys, one, kept=kept, ended=ended[one.rid])
    return verdict


def _check_request(server: redis.Redis, keys: Keys, one: Seen, *, kept: bool, ended: int) -> None:
    state = server.hget(keys.record(one.rid), "state")
    if state is None:
        assert not kept, f"{one.rid}: its record is gone"
        return
    assert state.decode() in TERMINAL, f"{one.rid} is {state!r}"
    assert ended == 1 or not kept, f"{one.rid}: {ended} entries in the outbox"
    frames = [frame for _, frame in split_log(server.get(keys.log(one.rid)) or b"", 0)]
    ends = [position for position, frame in enumerate(frames) if frame.kind & END]
    assert ends == [len(frames) - 1], f"{one.rid}: terminal frames at {ends} of {len(frames)}"
    if one.whole and one.ids:
        assert log_text(frames) == one.text, f"{one.rid}: its log is not what its client saw"
    elif one.ids:
        assert log_text(frames).startswith(one.text) or not kept, f"{one.rid}: its client saw more than its log holds"
    if one.whole:
        assert state == b"succeeded" or not kept, f"{one.rid}: the client has the answer and the record says {state!r}"


def log_text(frames: list[Frame]) -> str:
    """The text in the events of a log."""
    text = ""
    for line in b"".join(frame.data for frame in frames).decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                text += text_of(choice)
    return text


def leftovers(server: redis.Redis, keys: Keys) -> dict[str, object]:
    """What is still in the system."""
    left: dict[str, object] = {}
    for name in (*(queue.name for queue in QUEUES), QUARANTINE):
        key = keys.queue(name)
        if depth := server.xlen(key):
            left[f"queue {name}"] = depth
        elif server.exists(key) and (pending := server.xpending(key, "g")["pending"]):
            left[f"pending {name}"] = pending
    found = {"tenants": server.hgetall(keys.tenants), "deadlines": server.zcard(keys.deadlines)}
    left |= {name: value for name, value in found.items() if value}
    for what, pattern in (("run sets", keys.run("*")), ("boxes", keys.box("*")), ("bodies", keys.body("*"))):
        names = list(server.scan_iter(match=pattern, count=1000))
        if names:
            left[what] = len(names)
    return left
