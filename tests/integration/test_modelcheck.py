"""The seeded model check on real servers, and the proof that it can fail."""

from __future__ import annotations

from collections import Counter

import pytest

from api.relay import Relay
from shared.wire import RESUME, Frame
from tests.support.model.world import Patch, ViolationError
from tests.support.modelcheck import Plan, check
from tests.support.servers import KINDS, Server, available

OPS = 800
PLAIN_FAULTS = (
    *("lost reply", "lost message", "orphaned entry", "swept entry", "claim skip", "condemned", "zombie"),
    *(
        "worker fenced",
        "attempt fenced",
        "continued",
        "worker killed",
        "lease lapsed",
        "told to cancel",
        "told to expire",
    ),
    *("poisoned", "suspect out", "redrive: ok", "redrive: dup"),
)
HISTORY_FAULTS = (
    *("rolled back", "length guard refused", "readmitted", "client got history_lost"),
    *("restore: ok", "restore: stale", "missed"),
)


async def runs_until_all_happened(server: Server, wanted: tuple[str, ...], at_least: int, *, faults: bool) -> None:
    """So many runs, and more while one of the rarer events, which are in one run of three or four, was in none.

    Other seeds for each kind of server.
    """
    happened: Counter[str] = Counter()
    missing = wanted
    for number in range(1, 5 * at_least + 1):
        seed = number + 5 * at_least * KINDS.index(server.kind)
        happened += await check(server.url, Plan(seed, OPS, faults=faults))
        missing = tuple(event for event in wanted if not happened[event])
        if number >= at_least and not missing:
            return
    raise AssertionError(f"no run had: {missing}")


async def test_one_terminal_and_one_text_whatever_dies_while_the_server_keeps_its_data(server: Server) -> None:
    await runs_until_all_happened(server, PLAIN_FAULTS, 8, faults=False)


async def test_no_splice_and_no_hang_when_the_server_loses_history(server: Server) -> None:
    await runs_until_all_happened(server, HISTORY_FAULTS, 5, faults=True)


SPLICED = r"two generations in one answer|gap or repeat|lost its tail"
MARKER_IGNORED = Patch("step", "if redis.call('EXISTS', dead) == 1 then return false end", "")
BROKEN = {
    "step that knows neither marker nor fence": (
        MARKER_IGNORED,
        Patch("step", "if owned[i] == ARGV[4 * i - 1] then", "if true then"),
    ),
    "step without the length guard": (Patch("step", "log_len ~= wanted", "false"),),
    "claim of whatever was delivered": (
        Patch("claim", "if state ~= 'queued' or v[4] ~= ARGV[2] then", "if false then"),
    ),
    "admit that does not know its own retry": (Patch("admit", "if known then", "if false then"),),
    "admit that gives every key away": (Patch("admit", "rid ~= ARGV[14] or fingerprint ~= ARGV[2]", "false"),),
    "done by anybody": (Patch("done", "if v[1] ~= 'running' or v[2] ~= ARGV[2] then", "if false then"),),
    "cancel that keeps the tenant's place": (Patch("cancel", "if tenant and", "if false and"),),
    "requeue that loses the request": (Patch("requeue", "'entry', entry)", "'entry', '0-1')"),),
    "requeue that puts what had started among what has not": (
        Patch("requeue", "again and tag_again(entry) or start", "start"),
    ),
    "admit that keeps what it let in out of the index": (
        Patch("admit", "redis.call('ZADD', q.fair, again and tag_again(entry) or start, entry)", ""),
    ),
    "cancel that leaves it in the ledger": (
        Patch("cancel", "local left, of_tenant", "if q then return end local left, of_tenant"),
    ),
}


ONE_SERVER = pytest.mark.parametrize("server", available()[:1] or KINDS[:1], indirect=True)
"""What a broken script breaks says nothing about the server; that honest ones break nothing is looked at on both."""
MOST_SEEDS = 121
"""Until a broken script is found. Most are in the first few; the server's clock makes each run another one."""

BROKEN_RESTORE = {
    "overwrites what others have written": (
        Patch("restore", "#log <= #ours and ours:sub(1, #log) == log", "true"),
        Patch("restore", "if #log < #ours then", "if true then"),
    ),
    "gives to the dead": (Patch("restore", "if redis.call('EXISTS', KEYS[1]) == 1 then", "if false then"),),
    "forgets the tenant's place": (Patch("restore", "redis.call('HINCRBY', KEYS[7], facts['tenant'], 1)", ""),),
    "leaves the entry on its queue": (Patch("restore", "dequeue(q, v[5], v[7] or '', v[8] or 0, v[9] or 0)", ""),),
    "leaves the other owner its fence": (Patch("restore", "redis.call('HDEL', KEYS[12], ARGV[2])", ""),),
    "brings back what has ended": (
        Patch("restore", "elseif state or not begins or", "elseif"),
        Patch("restore", "if #log < #ours then", "if true then"),
    ),
}


@ONE_SERVER
@pytest.mark.timeout(400)
@pytest.mark.parametrize("patches", BROKEN_RESTORE.values(), ids=BROKEN_RESTORE.keys())
async def test_the_check_finds_a_restore_that(server: Server, patches: tuple[Patch, ...]) -> None:
    async def look() -> None:
        for seed in range(1, MOST_SEEDS):
            await check(server.url, Plan(seed, OPS, faults=True, patches=patches))
            await check(server.url, Plan(seed, OPS, patches=patches))

    with pytest.raises(ViolationError):
        await look()


@ONE_SERVER
@pytest.mark.timeout(400)
@pytest.mark.parametrize("patches", BROKEN.values(), ids=BROKEN.keys())
async def test_the_check_finds_a_broken_script(server: Server, patches: tuple[Patch, ...]) -> None:
    async def look() -> None:
        for seed in range(1, MOST_SEEDS):
            await check(server.url, Plan(seed, OPS, patches=patches))

    with pytest.raises(ViolationError):
        await look()


async def test_the_fence_alone_holds_off_zombies_whose_markers_are_gone(server: Server) -> None:
    happened = [await check(server.url, Plan(seed, OPS, patches=(MARKER_IGNORED,))) for seed in range(1, 11)]
    assert sum(counts["attempt fenced"] for counts in happened) > 3


@ONE_SERVER
async def test_the_check_finds_a_relay_that_takes_any_attempt(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Relay, __: Frame) -> bool:
        return False

    monkeypatch.setattr(Relay, "_foreign", never)

    async def look() -> None:
        for seed in range(1, 41):
            await check(server.url, Plan(seed, 3 * OPS, faults=True))

    with pytest.raises(ViolationError, match=SPLICED):
        await look()


@ONE_SERVER
async def test_the_check_finds_a_relay_that_does_not_look_behind_whom_an_attempt_resumes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Relay._foreign

    def gullible(relay: Relay, frame: Frame) -> bool:
        return not frame.kind & RESUME and honest(relay, frame)

    monkeypatch.setattr(Relay, "_foreign", gullible)

    async def look() -> None:
        for seed in range(1, 41):
            await check(server.url, Plan(seed, 3 * OPS, faults=True))

    with pytest.raises(ViolationError, match=SPLICED):
        await look()
