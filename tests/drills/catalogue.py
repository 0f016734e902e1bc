"""The drills: what each one is, and where those are that are not here.

The numbers are stable names: tests carry them as `@pytest.mark.drill(<number>)`, docs/drills.md lists them.
"""

from __future__ import annotations

import math
import os

from tests.support.history import Verdict

ALL = os.environ.get("PENSTOCK_DRILLS") == "all"
"""Whether the drills run in full (`make drills`) and not in their short form (`make test`)."""
DRILLS = {
    1: "kill -9 of a worker in the middle of its streams",
    2: "kill -9 of a worker between delivery and claim",
    3: "kill -9 of a worker after its claim, before the engine has the request",
    4: "kill -9 of a worker after its engine has finished, before `done`",
    5: "connection cut after `done` has reached Redis, before its reply",
    6: "a worker sleeps past its lease and wakes as a zombie",
    7: "a worker sleeps for less than its lease",
    8: "the engine hangs, the process lives",
    9: "one generation that is many leases long",
    10: "a request that crashes its workers, among innocent neighbours",
    11: "a request that no worker can read",
    12: "kill -9 of a replica, clients resume",
    13: "kill -9 of a replica, clients do not come back",
    14: "a replica's event loop stands still for 10 s",
    15: "clients that read one byte a second",
    16: "the subscriber connection killed every 500 ms",
    17: "a quarter of the live messages lost",
    18: "the confirmation of a subscription comes late",
    19: "kill -9 and restart of Redis with its append-only file",
    20: "restart of Redis without its data",
    21: "FLUSHALL under load",
    22: "failover by Sentinel under load",
    23: "failover to a replica server that lags",
    24: "a worker is cut off from Redis for longer than its lease",
    25: "a replica is cut off from Redis for 10 s",
    26: "half-open connections under a blocking read",
    27: "SCRIPT FLUSH under load",
    28: "fifty equal requests with one idempotency key",
    29: "the reply to an admission is lost",
    30: "a burst far over capacity",
    31: "a batch backlog beside interactive requests",
    32: "interactive requests at 120 % of capacity",
    33: "no worker lives",
    34: "cancel while queued, running, and after a worker's death",
    35: "a cancel whose reply is cut",
    36: "SIGTERM to a worker whose requests do not fit into its drain time",
    37: "rolling restart of everything under load",
    38: "Redis is full",
    39: "a worker's clock is an hour off",
    40: "a batch, while workers, batch processes, replicas and Redis are killed in turn",
    41: "kill -9 of a worker under grammars, tools, stop strings, log probabilities, samples and seeds",
    42: "a character cut at the kill point",
    43: "a Redis Cluster is resharded and loses a primary",
    44: "a soak of 24 hours",
    45: "no script touches a key that it does not declare",
    46: "a fault for each alert, until a real Prometheus fires it",
}

ELSEWHERE = {
    15: "tests/chaos/test_readers.py, in every `make test`; PENSTOCK_SLOW_READERS and PENSTOCK_SLOW_SECONDS enlarge it",
    43: "needs the cluster client; the scripts run on a cluster of one: tests/integration/test_declared_keys.py",
    44: "`make soak`, for as long as you like; not part of a run that somebody waits for",
    45: "tests/integration/test_declared_keys.py, in every `make test`",
}
"""Drills without a test here, and why."""


def size(short: int, full: int) -> int:
    """How much load: `short` in `make test`, `full` in `make drills`."""
    return full if ALL else short


def within(limit_s: float, proof_s: float = math.inf) -> float:
    """A limit in seconds: `limit_s` in `make drills`. In `make test`, beside everything else, it is five times that.

    `proof_s`: where the limit is what proves something, what it must stay below on any machine.
    """
    return limit_s if ALL else min(5 * limit_s, proof_s)


def assert_continued(verdict: Verdict) -> None:
    """Nobody got an error."""
    assert not verdict.errors, verdict
