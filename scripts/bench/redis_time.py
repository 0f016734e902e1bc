"""What admission and pull cost the Redis server, behind a long queue of many tenants: the server's own clock decides.

One connection sends the scripts as replicas and workers do; the time is what INFO commandstats says of EVALSHA, so
neither the client nor the network is in it. A batch of calls is one reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from scripts.bench.gateways import program_version, redis_programs
from scripts.bench.groups import BenchError, Group
from shared.hot import HotClient
from shared.keys import Keys
from shared.outcomes import Admission, Bounds, Entry
from shared.scripts import Scripts

QUEUED = 50_000
TENANTS = 1_000
_BATCHES = 20
_CALLS = 250
_WINDOW = 500
_PROMPT_TOKENS, _OUTPUT_TOKENS, _BODY_BYTES = 400, 128, 2_000
_READY_S = 20.0
_BITE = 4
"""As many as a worker pulls at once (`worker/intake.py`)."""
_LANES = ("batch", "standard", "interactive")
_WID = "w-bench"
ENDLESS = Bounds(1_000_000, 1 << 40, 1 << 50, 1.0)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[HotClient]:
    """A client of the thin kind while the block runs."""
    client = HotClient(url, "bench")
    started = asyncio.Event()
    task = asyncio.create_task(client.run(started))
    try:
        await asyncio.wait_for(started.wait(), 10)
        yield client
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def in_windows(calls: list[Any], window: int = _WINDOW) -> list[Any]:
    """Runs calls, so many at a time on their way. `calls`: functions without arguments that return awaitables."""
    results: list[Any] = []
    for at in range(0, len(calls), window):
        results += await asyncio.gather(*(call() for call in calls[at : at + window]))
    return results


async def evalsha_us(client: HotClient) -> tuple[int, int]:
    """Calls of EVALSHA so far, and the microseconds that the server spent in them."""
    info = (await client.call("INFO", "commandstats", timeout_s=5.0)).decode()
    for line in info.splitlines():
        if line.startswith("cmdstat_evalsha:"):
            facts = dict(part.split("=") for part in line.partition(":")[2].split(","))
            return int(facts["calls"]), int(facts["usec"])
    return 0, 0


class Readings:
    """Readings of one server."""

    def __init__(self, client: HotClient) -> None:
        self._client = client
        self._scripts = Scripts(client, Keys("bench"))
        self._number = 0
        self.us: dict[str, list[float]] = {"admit": [], "pull": [], "claim": []}

    def _admission(self, lane: str, deadline_s: float = 3_600) -> Admission:
        self._number += 1
        number = self._number
        return Admission(
            rid=f"req_{number:032d}",
            fingerprint="f" * 32,
            lane=lane,
            body=b"b" * _BODY_BYTES,
            tenant=f"tenant-{number % TENANTS}",
            tenant_cap=1 << 30,
            prompt_tokens=_PROMPT_TOKENS,
            output_limit=_OUTPUT_TOKENS,
            deadline_ms=int((time.time() + deadline_s) * 1000),
            finish_by_ms=int((time.time() + 2 * deadline_s) * 1000),
            bounds=Bounds(ENDLESS.requests, ENDLESS.body_bytes, ENDLESS.tokens, 0.9),
            idempotency=f"{number:032d}",
            idempotency_ttl_ms=120_000,
            binding=False,
        )

    async def _admit(self, lane: str) -> None:
        admitted = await self._scripts.admit(self._admission(lane))
        if admitted.outcome != "OK":
            msg = f"an admission was answered {admitted.outcome}"
            raise BenchError(msg)

    async def _reading(self, name: str, calls: list[Any], per: int = 1) -> list[Any]:
        """`per`: what one call does, for the figure."""
        before = await evalsha_us(self._client)
        results = await in_windows(calls)
        after = await evalsha_us(self._client)
        self.us[name].append((after[1] - before[1]) / (after[0] - before[0]) / per)
        return results

    async def take(self, queued: int) -> None:
        """Fills the queues and measures."""
        await self._admit(_LANES[0])  # so that the server has the script
        await in_windows([lambda i=i: self._admit(_LANES[i % 3]) for i in range(queued)])
        await self._serve(_CALLS // _BITE, measured=False)
        for _ in range(_BATCHES):
            await self._reading("admit", [lambda i=i: self._admit(_LANES[i % 3]) for i in range(_CALLS)])
            await self._serve(_CALLS // _BITE, measured=True)

    async def _serve(self, pulls: int, *, measured: bool) -> None:
        calls: list[Any] = [lambda: self._scripts.pull(_WID, _BITE)] * pulls
        pulled = await (self._reading("pull", calls, _BITE) if measured else in_windows(calls))
        entries: list[Entry] = [entry for some in pulled for entry in some]
        claims: list[Any] = [lambda e=e: self._scripts.claim(_WID, e, f"a{e.rid}") for e in entries]
        await (self._reading("claim", claims) if measured else in_windows(claims))


async def _take(url: str, queued: int) -> dict[str, Any]:
    async with connected(url) as client:
        readings = Readings(client)
        await readings.take(queued)
    return {
        name: {"median": round(statistics.median(us), 1), "least": round(min(us), 1), "most": round(max(us), 1)}
        for name, us in readings.us.items()
    }


def measure(work: Path, queued: int = QUEUED) -> dict[str, Any]:
    """Readings of each server that is here: microseconds per admission, per request that is pulled, per claim.

    Raises BenchError.
    """
    found = {}
    for program in redis_programs():
        group = Group(work, "redis-time")
        socket = work / "redis-time.sock"
        socket.unlink(missing_ok=True)
        try:
            command = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
            group.start("redis", command)
            group.wait_file(socket, _READY_S)
            version = program_version([program, "--version"], r"v=([\d.]+)")
            found[f"{Path(program).name} {version}"] = asyncio.run(_take(f"unix://{socket}", queued))
        finally:
            group.stop()
    return found
