"""Many clients at once, as cheap as Python allows: HTTP/1.1 by hand, and resuming where a stream broke off.

A resumable client keeps the last event's id, and asks any replica for `GET /v1/requests/{id}/events` with
`Last-Event-ID` when its connection breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.client import Seen, read_line

_CONNECT_TRIES = 60
_PAUSE_S = 0.25
_HEADER_BYTES = 262_144


@dataclass(frozen=True)
class Ask:
    """What to ask for. `urls`: replicas; the first that is tried is chosen by `first`."""

    urls: Sequence[str]
    tokens: int
    resume: bool = False
    stream: bool = True
    first: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, object] = field(default_factory=dict)
    patience_s: float = 60.0
    content: str = "count"


async def ask(wanted: Ask, into: Seen | None = None) -> Seen:
    """One request to its end. Raises nothing: what went wrong stands in Seen. `into` is filled while it goes on."""
    seen = into if into is not None else Seen()
    seen.began_s = time.monotonic()
    message = {"role": "user", "content": wanted.content}
    body = {"messages": [message], "max_tokens": wanted.tokens, "stream": wanted.stream, **wanted.body}
    turn = wanted.first
    try:
        async with asyncio.timeout(wanted.patience_s):
            await _exchange(seen, wanted, turn, "POST", "/v1/chat/completions", json.dumps(body).encode())
            while wanted.resume and _turned_away(seen):
                turn += 1
                seen.errors.clear()
                await asyncio.sleep(_PAUSE_S * random.random())
                await _exchange(seen, wanted, turn, "POST", "/v1/chat/completions", json.dumps(body).encode())
            while seen.broken and wanted.resume and seen.rid:
                seen.resumes += 1
                turn += 1
                await asyncio.sleep(_PAUSE_S * random.random())
                await _exchange(seen, wanted, turn, "GET", f"/v1/requests/{seen.rid}/events", b"")
    except TimeoutError:
        seen.broken = f"nothing came to an end within {wanted.patience_s} s"
    seen.ended_s = time.monotonic()
    return seen


def _turned_away(seen: Seen) -> bool:
    """Whether a load balancer, or an SDK, would try the next replica: nothing was accepted here, as far as it can tell.

    A connection may also break before its replica has said an id. SDKs send such a request again.
    """
    return not seen.rid and (bool(seen.broken) or seen.headers.get("x-should-retry") == "true")


async def ask_many(count: int, wanted: Ask) -> list[Seen]:
    """The same from `count` clients at once, spread over the replicas."""
    return list(await asyncio.gather(*(ask(_spread(wanted, number)) for number in range(count))))


def start_many(count: int, wanted: Ask) -> list[asyncio.Task[Seen]]:
    """As `ask_many`, as tasks."""
    return [asyncio.create_task(ask(_spread(wanted, number))) for number in range(count)]


def _spread(wanted: Ask, number: int) -> Ask:
    return Ask(**{**wanted.__dict__, "first": wanted.first + number})


async def _exchange(seen: Seen, wanted: Ask, turn: int, method: str, path: str, body: bytes) -> None:
    seen.broken = ""
    address = urlsplit(wanted.urls[turn % len(wanted.urls)])
    try:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=_HEADER_BYTES)
    except OSError as error:
        seen.broken = repr(error)
        return
    headers = {"Host": address.netloc, "Content-Type": "application/json", "Content-Length": str(len(body))}
    headers |= wanted.headers
    if method == "GET" and seen.ids:
        headers["Last-Event-ID"] = seen.ids[-1]
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        await _answer(seen, reader, method)
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        if not seen.done and not seen.errors:
            seen.broken = repr(error)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _answer(seen: Seen, reader: asyncio.StreamReader, method: str) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if method == "POST" or status != 200:
        seen.status = status
    seen.headers = headers
    seen.rid = headers.get("x-penstock-request", seen.rid)
    events = status == 200 and headers.get("content-type", "").startswith("text/event-stream")
    pieces, last_s = [], time.monotonic()
    async for piece in _pieces(reader, headers):
        now_s = time.monotonic()
        seen.longest_pause_s, last_s = max(seen.longest_pause_s, now_s - last_s), now_s
        pieces.append(piece)
        if events:
            *lines, rest = b"".join(pieces).split(b"\n")
            pieces = [rest]
            for line in lines:
                read_line(seen, line.decode())
    if not events:
        _whole(seen, status, b"".join(pieces))
    elif not seen.done and not seen.errors:
        seen.broken = "the stream ended without an end"


def _whole(seen: Seen, status: int, body: bytes) -> None:
    answer = json.loads(body)
    if status != 200:
        seen.errors.append(answer["error"])
        return
    choice = answer["choices"][0]
    seen.text = choice["message"]["content"]
    seen.finish_reasons.append(choice["finish_reason"])
    seen.tokens = answer["usage"]["completion_tokens"]
    seen.first_s = time.monotonic()
    seen.done = 1


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body as it comes. Raises IncompleteReadError when the connection breaks."""
    if "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
        return
    while True:
        size = int((await reader.readuntil(b"\r\n")).strip() or b"0", 16)
        chunk = await reader.readexactly(size + 2)
        if not size:
            return
        yield chunk[:-2]
