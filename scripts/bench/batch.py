"""Rows of a batch beside the same requests sent by clients: what the detour over files, parts and commits costs.

Both ask the same engine for the same answers, in the same lane, with as many requests under way: clients each send one
after the other over a kept connection. The batch runs between two such windows, so that the machine is the same.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from scripts.bench.gateways import Place, start_redis
from scripts.bench.groups import BenchError, Group, free_ports
from scripts.bench.options import Options
from scripts.bench.scenarios import Pacing
from scripts.bench.tables import number, table
from scripts.bench.targets import Target

_SLOTS, _TOKENS = 64, 32
_CLIENTS = 2 * _SLOTS
"""As many as the rows of a batch that wait or run at once."""
_ROWS, _QUICK_ROWS = 12_000, 1_500
_READY_S, _END_S, _LOOK_S = 60.0, 600.0, 0.1
_PATH = "/v1/chat/completions"
_LEAST_RATIO = 0.95
_TITLE = "### Batches"


def measure(options: Options, work: Path) -> dict[str, Any]:
    """Rows/s both ways. Raises BenchError."""
    rows = _QUICK_ROWS if options.lanes_s < 10 else _ROWS
    return asyncio.run(_measured(work, rows))


def _body(number_: int) -> bytes:
    message = {"role": "user", "content": f"count {number_}"}
    return json.dumps({"model": "sim", "messages": [message], "max_tokens": _TOKENS}).encode()


async def _measured(work: Path, rows: int) -> dict[str, Any]:
    port, backend, spare, ops, batch_ops = free_ports(5)
    pacing = Pacing(ttft_ms=20, itl_ms=10)
    place = Place(work, work, port, backend, spare, pacing, aof=True)
    group = Group(work, "batch")
    try:
        env = {**start_redis(group, place), "PENSTOCK_STORAGE_URL": str(work / "storage")}
        engine = ["--engine", "sim", "--ops-port", str(ops), "--", *pacing.flags(), "--slots", str(_SLOTS)]
        group.start("worker", [sys.executable, "-m", "worker", *engine], env)
        group.start("replica", [sys.executable, "-m", "api", "--port", str(port)], env)
        group.start("batch", [sys.executable, "-m", "batch", "--ops-port", str(batch_ops)], env)
        group.wait_ready(f"http://127.0.0.1:{port}/readyz", _READY_S)
        group.wait_ready(f"http://127.0.0.1:{batch_ops}/readyz", _READY_S)
        await _direct(port, _CLIENTS)  # warm
        before = await _direct(port, rows // 2)
        found = await _batch(port, rows)
        after = await _direct(port, rows // 2)
        direct = statistics.mean((before, after))
        return {"rows": rows, "slots": _SLOTS, "direct_s": direct, **found, "ratio": found["rows_s"] / direct}
    finally:
        group.stop()


async def _direct(port: int, count: int) -> float:
    """Requests/s of clients that send one after the other."""
    left = iter(range(count))
    began_s = time.monotonic()
    await asyncio.gather(*(_client(port, left) for _ in range(min(_CLIENTS, count))))
    return count / (time.monotonic() - began_s)


async def _client(port: int, left: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for index in left:
            status, _ = await _ask(reader, writer, "POST", _PATH, _body(index))
            if status != 200:
                raise BenchError(f"a request of the bench was answered {status}")
    finally:
        writer.close()


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: bytes, kind: str = ""
) -> tuple[int, bytes]:
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nX-Priority-Lane: batch\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: {kind or 'application/json'}\r\n\r\n".encode() + body)
    top = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in top if line.startswith("content-length:"))
    return int(top[0].split(" ")[1]), await reader.readexactly(length)


async def _call(port: int, method: str, path: str, body: bytes = b"", kind: str = "") -> dict[str, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        status, answer = await _ask(reader, writer, method, path, body, kind)
    finally:
        writer.close()
    if status != 200:
        raise BenchError(f"{method} {path} was answered {status}: {answer[:200]!r}")
    return dict(json.loads(answer))


async def _batch(port: int, rows: int) -> dict[str, Any]:
    """Rows/s while they run, and what the whole took, from its creation to its files."""
    lines = b"".join(
        b'{"custom_id":"%d","method":"POST","url":"%b","body":%b}\n' % (row, _PATH.encode(), _body(row))
        for row in range(rows)
    )
    edge = b"--bench"
    part = b'%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    form = part % (edge, b"purpose", b"", b"batch") + part % (edge, b"file", b'; filename="rows.jsonl"', lines)
    kind = "multipart/form-data; boundary=bench"
    file_id = (await _call(port, "POST", "/v1/files", form + edge + b"--\r\n", kind))["id"]
    asked = {"input_file_id": file_id, "endpoint": _PATH, "completion_window": "24h"}
    created_s = time.monotonic()
    batch = await _call(port, "POST", "/v1/batches", json.dumps(asked).encode())
    seen: list[tuple[float, int]] = []
    while batch["status"] not in {"completed", "failed", "expired", "cancelled"}:
        if time.monotonic() - created_s > _END_S:
            raise BenchError(f"the batch did not end: {batch}")
        await asyncio.sleep(_LOOK_S)
        batch = await _call(port, "GET", f"/v1/batches/{batch['id']}")
        done = batch["request_counts"]["completed"]
        if batch["status"] == "in_progress" or done == rows:
            seen.append((time.monotonic(), done))
    if batch["request_counts"]["completed"] != rows:
        raise BenchError(f"not every row was answered: {batch}")
    last_s = next(at_s for at_s, done in seen if done == rows)
    return {"rows_s": rows / (last_s - seen[0][0]), "whole_s": time.monotonic() - created_s}


def targets(found: dict[str, Any] | None) -> list[Target]:
    """The promise about rows of batches against one run."""
    what = "rows/s of a batch, of the same requests sent by clients"
    return [Target(what, "", _LEAST_RATIO, found["ratio"], at_least=True)] if found else []


def section(found: dict[str, Any] | None) -> str:
    """Its part of the page."""
    if not found:
        return ""
    rows = [
        ["requests of clients", number(found["direct_s"], 1)],
        [f"rows of a batch of {found['rows']}", number(found["rows_s"], 1)],
        ["ratio", number(found["ratio"], 3)],
    ]
    note = (
        f"{_CLIENTS} under way on {found['slots']} slots, {_TOKENS} tokens each, the simulated engine. The batch as a "
        f"whole, from its creation to its files: {number(found['whole_s'], 1)} s."
    )
    return "\n".join([_TITLE, "", note, "", table(["what", "per second"], rows)])
