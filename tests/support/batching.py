"""Batches in tests: files of rows, batches of them, and what came out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from shared.connection import connect
from shared.files import Files
from shared.keys import GlobalKeys
from shared.storage import open_storage
from tests.support.stack import Stack

CHAT = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


def chat_row(name: str, tokens: int = 2, said: str = "count", **extra: Any) -> dict[str, Any]:
    """A row that asks for a chat completion."""
    body = {"model": "sim", "messages": [{"role": "user", "content": said}], "max_tokens": tokens, **extra}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body}


def jsonl(rows: Iterable[Any]) -> bytes:
    """A file of rows; a text stands for itself."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


@asynccontextmanager
async def files_of(stack: Stack) -> AsyncIterator[Files]:
    """The stack's files, as its processes see them."""
    client = connect(stack.redis_url)
    try:
        yield Files(open_storage(str(stack.storage)), client, GlobalKeys())
    finally:
        await client.aclose()
        await client.connection_pool.disconnect()


async def upload(stack: Stack, data: bytes, tenant: str = "anonymous", purpose: str = "batch") -> str:
    """Puts a file there. Returns its id."""

    async def chunks() -> AsyncIterator[bytes]:
        for first in range(0, len(data), 65_536):
            yield data[first : first + 65_536]

    async with files_of(stack) as files:
        return (await files.create(tenant, "rows.jsonl", purpose, chunks())).id


async def content(stack: Stack, file_id: str | None, tenant: str = "anonymous") -> list[dict[str, Any]]:
    """The lines of a file; none where there is none."""
    if file_id is None:
        return []
    async with files_of(stack) as files:
        facts = await files.find(tenant, file_id)
        assert facts is not None, f"there is no file {file_id}"
        data = b"".join([chunk async for chunk in files.open(facts)])
    return [json.loads(line) for line in data.splitlines()]


async def create(http: httpx.AsyncClient, file_id: str, endpoint: str = CHAT, **extra: Any) -> dict[str, Any]:
    """Makes a batch."""
    body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", **extra}
    response = await http.post("/v1/batches", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def poll(
    http: httpx.AsyncClient,
    batch: str,
    until: Callable[[dict[str, Any]], bool] = lambda found: found["status"] in ENDED,
    within_s: float = 60,
) -> dict[str, Any]:
    """Asks for a batch until that holds."""
    give_up_at_s = time.monotonic() + within_s
    found: dict[str, Any] = {}
    while time.monotonic() < give_up_at_s:
        try:
            response = await http.get(f"/v1/batches/{batch}")
            found = response.json() if response.status_code == 200 else found
        except httpx.HTTPError:
            found = {}
        if found and until(found):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {within_s} s: {found}")


def check_once(lines: list[dict[str, Any]], names: Iterable[str]) -> None:
    """Raises AssertionError unless every row is there exactly once."""
    got = sorted(line["custom_id"] for line in lines)
    wanted = sorted(names)
    assert got == wanted, f"{len(got)} lines for {len(wanted)} rows; {len(set(wanted) - set(got))} are missing"


def names(count: int) -> Iterator[str]:
    """Names of rows."""
    return (f"row-{number}" for number in range(count))
