"""A Penstock of one replica and one simulated worker with few slots, and two ways to load its lanes.

Backlogs are admitted by the scripts themselves, without HTTP; clients over HTTP are measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.bench.gateways import Place, start_redis
from scripts.bench.groups import BenchError, Group, free_ports
from scripts.bench.redis_time import ENDLESS, connected, in_windows
from scripts.bench.scenarios import Pacing
from shared.hot import HotClient
from shared.ids import new_request_id
from shared.keys import Keys
from shared.outcomes import Admission
from shared.scripts import Scripts
from shared.wire import Request, encode

LANES = ("interactive", "standard", "batch")
TOKENS = 16
PACING = Pacing(20, 10)
_PATH = "/v1/chat/completions"
_READY_S = 60.0
_COMMAND_S = 20.0
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client saw. Times in seconds of the monotonic clock."""

    status: int
    rid: str
    tenant: str
    sent_s: float
    first_s: float
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def ttft_s(self) -> float:
        """From sending to the first event."""
        return self.first_s - self.sent_s


class Scene:
    """The processes, and what is done to them."""

    def __init__(self, client: HotClient, keys: Keys, group: Group, port: int, ops_port: int) -> None:
        """`port`: of the replica; `ops_port`: of the worker's metrics."""
        self.client = client
        self.keys = keys
        self.group = group
        self._scripts = Scripts(client, keys)
        self._port = port
        self._ops_port = ops_port

    async def call(self, *command: str) -> Any:
        """A command."""
        return await self.client.call(*command, timeout_s=_COMMAND_S)

    async def backlog(self, lane: str, count: int, tenant: str = "backlog") -> None:
        """So many more requests wait in a lane."""
        body = json.dumps({"model": "sim", "messages": [{"role": "user", "content": "count"}], "max_tokens": TOKENS})

        async def admit() -> None:
            rid = new_request_id(self.keys.shard)
            request = Request("POST", _PATH, [("x-request-id", rid)], body.encode(), lane, stays=True)
            facts = Admission(
                rid=rid,
                fingerprint=rid,
                lane=lane,
                body=encode(request),
                tenant=tenant,
                tenant_cap=1 << 30,
                prompt_tokens=len(body) // 4,
                output_limit=TOKENS,
                deadline_ms=0,
                bounds=ENDLESS,
                stays=True,
            )
            if (admitted := await self._scripts.admit(facts)).outcome != "OK":
                msg = f"an admission was answered {admitted.outcome}"
                raise BenchError(msg)

        await in_windows([admit] * count, 200)

    async def ask(self, tenant: str, lane: str) -> Reply:
        """One streamed request over HTTP, to its end. Raises BenchError."""
        body = {"model": "sim", "messages": [{"role": "user", "content": "count"}], "max_tokens": TOKENS}
        data = json.dumps({**body, "stream": True, "user": tenant}).encode()
        sent_s = time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                head = (
                    f"POST {_PATH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nConnection: close\r\n"
                )
                head += f"X-Priority-Lane: {lane}\r\nContent-Length: {len(data)}\r\n\r\n"
                writer.write(head.encode() + data)
                try:
                    top = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                    status = int(top[0].split(" ")[1])
                    headers = {name.lower(): value.strip() for name, _, value in (at.partition(":") for at in top[1:])}
                    first_s = await self._first(reader) if status == 200 else time.monotonic()
                    await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            msg = f"a request of the bench broke: {error!r}"
            raise BenchError(msg) from error
        return Reply(status, headers.get("x-penstock-request", ""), tenant, sent_s, first_s, headers)

    @staticmethod
    async def _first(reader: asyncio.StreamReader) -> float:
        """When the first event with text came; comments and the role's event do not count."""
        while line := await reader.readline():
            if b'"content":"' in line.replace(b": ", b":") and b'"content":""' not in line.replace(b": ", b":"):
                break
        return time.monotonic()

    async def starts(self) -> Counter[str]:
        """Starts by lane so far, as the worker counted them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._ops_port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        text = (await reader.read(-1)).decode()
        writer.close()
        found: Counter[str] = Counter()
        for line in text.splitlines():
            if line.startswith("penstock_queue_wait_seconds_count{"):
                found[line.split('lane="')[1].split('"')[0]] += int(float(line.rpartition(" ")[2]))
        return found

    async def aged(self) -> int:
        """Picks for age so far."""
        flat = await self.call("HMGET", self.keys.sched, *(f"aged:{lane}" for lane in LANES))
        return sum(int(value or 0) for value in flat)

    async def age_limits(self, limit_ms: int | None) -> None:
        """The same for each lane; None for what it is by itself."""
        fields = [f"{lane}.age_limit_ms" for lane in LANES]
        if limit_ms is None:
            await self.call("HDEL", self.keys.lanes, *fields)
        else:
            await self.call("HSET", self.keys.lanes, *(x for name in fields for x in (name, str(limit_ms))))

    async def depth(self, lane: str) -> int:
        """How many wait in a lane."""
        return int(await self.call("XLEN", self.keys.queue(lane)))

    async def wait_s(self, replies: list[Reply]) -> list[float]:
        """How long each of these waited in its queue, sorted, by the server's clock."""
        spans = []
        for reply in replies:
            times = await self.call("HMGET", self.keys.record(reply.rid), "queued_at_ms", "started_at_ms")
            if all(times):
                spans.append((int(times[1]) - int(times[0])) / 1000)
        return sorted(spans)


@contextlib.asynccontextmanager
async def scene(
    work: Path, *, slots: int, pacing: Pacing = PACING, flags: tuple[str, ...] = ()
) -> AsyncIterator[Scene]:
    """The processes while the block runs; `flags` of the replica. Raises BenchError."""
    port, backend, spare, ops = free_ports(4)
    place = Place(work, work, port, backend, spare, pacing, aof=False)
    group = Group(work, "lanes")
    try:
        env = start_redis(group, place)
        engine = ["--engine", "sim", "--ops-port", str(ops), "--", *pacing.flags(), "--slots", str(slots)]
        group.start("worker", [sys.executable, "-m", "worker", *engine], env)
        group.start("replica", [sys.executable, "-m", "api", "--port", str(port), *flags], env)
        group.wait_ready(f"http://127.0.0.1:{port}/readyz", _READY_S)
        async with connected(env["PENSTOCK_REDIS_URL"]) as client:
            (pool,) = [str(value, "ascii") for value in (await client.call("HVALS", "ps:pools", timeout_s=5.0))][:1]
            yield Scene(client, Keys(pool), group, port, ops)
    finally:
        group.stop()
