"""Batches as Redis knows them: what replicas and the batch processes both need of their state.

A batch is a hash of facts. Its rows are no keys: which of them are committed is a bitmap, what they said lies in parts
on object storage, and those in flight are ordinary requests in the batch lane. Moves are scripts (`batch_scripts.py`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.batch_scripts import BatchScripts, record_of
from shared.hot import HotClient
from shared.keys import GlobalKeys

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""What rows may ask for."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
MOST_ROWS = 50_000
MOST_BYTES = 200_000_000
"""Of an input file."""
_TIMEOUT_S = 5.0
_MOMENTS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch. `facts`: the fields of its hash."""

    id: str
    facts: dict[str, str]

    def text(self, name: str) -> str:
        """A fact; empty when it is not known."""
        return self.facts.get(name, "")

    def number(self, name: str) -> int:
        """A fact that is a whole number; 0 when it is not known."""
        return int(self.facts.get(name) or 0)

    def parsed(self, name: str) -> Any:
        """A fact that is JSON; None when it is not known."""
        text = self.facts.get(name)
        return json.loads(text) if text else None

    @property
    def status(self) -> str:
        """One of OpenAI's."""
        return self.text("status")

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.status in ENDED

    @property
    def left(self) -> int:
        """Rows that are not committed; 0 as long as nobody has counted them."""
        return max(0, self.number("total") - self.number("completed") - self.number("failed"))

    def shown(self) -> dict[str, Any]:
        """The object of OpenAI's API."""
        shown: dict[str, Any] = {
            "id": self.id,
            "object": "batch",
            "endpoint": self.text("endpoint"),
            "model": self.text("model") or None,
            "errors": self.parsed("errors"),
            "input_file_id": self.text("input_file_id"),
            "completion_window": self.text("completion_window"),
            "status": self.status,
            "output_file_id": self.text("output_file_id") or None,
            "error_file_id": self.text("error_file_id") or None,
            "created_at": self.number("created_at_ms") // 1000,
            "expires_at": self.number("expires_at_ms") // 1000,
        }
        shown |= {f"{name}_at": self._moment(f"{name}_at_ms") for name in _MOMENTS}
        counts = {name: self.number(name) for name in ("total", "completed", "failed")}
        shown |= {"request_counts": counts, "usage": self._usage(), "metadata": self.parsed("metadata")}
        for name in ("start_after", "start_window"):
            if self.text(name):
                shown[name] = self.parsed(name)
        if self.text("webhook_url") or self.text("hook_attempts"):
            shown["webhook"] = self._webhook()
        return shown

    def _webhook(self) -> dict[str, Any]:
        """What became of it. Neither where it goes nor what signs it: both may be secret."""
        state, at = self.text("hook_state") or "pending", self._moment("hook_at_ms")
        shown = {
            "status": state,
            "attempts": self.number("hook_attempts"),
            "last_attempt_at": at,
            "last_status": self.number("hook_status") or None,
        }
        over = self._moment("hook_failed_at_ms") or at
        return shown | {f"{name}_at": over if name == state else None for name in ("delivered", "failed")}

    def _moment(self, name: str) -> int | None:
        return self.number(name) // 1000 if self.text(name) else None

    def _usage(self) -> dict[str, Any]:
        read, written = self.number("input_tokens"), self.number("output_tokens")
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": self.number("cached_tokens")},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": self.number("reasoning_tokens")},
            "total_tokens": read + written,
        }


@dataclass(frozen=True, slots=True)
class Part:
    """A committed part of a batch's output: two objects on storage, `<name>.out` and `<name>.err`.

    Attributes:
        rows: lines in both together.
        out_bytes: of the rows that succeeded; 0: there is no such object.
        err_bytes: of those that failed; likewise.
    """

    name: str
    rows: int
    out_bytes: int
    err_bytes: int

    @property
    def entry(self) -> tuple[str, str]:
        """Its name, and the rest of its entry in the list of parts."""
        return self.name, f"{self.rows} {self.out_bytes} {self.err_bytes}"


def part_of(entry: str) -> Part:
    """The part that an entry of the list names."""
    name, *numbers = entry.split(" ")
    rows, out_bytes, err_bytes = map(int, numbers)
    return Part(name, rows, out_bytes, err_bytes)


class Batches:
    """Reads batches. Every method raises BrokerUnavailableError."""

    def __init__(self, client: HotClient, prefix: str) -> None:
        self._client = client
        self.keys = GlobalKeys(prefix)
        self.scripts = BatchScripts(client, prefix)

    async def _call(self, *command: Any) -> Any:
        return await self._client.call(*command, timeout_s=_TIMEOUT_S)

    async def find(self, batch: str) -> Batch | None:
        """A batch of whatever tenant."""
        facts = record_of(await self._call("HGETALL", self.keys.batch(batch)))
        return Batch(batch, facts) if facts else None

    async def several(self, batches: Sequence[str]) -> list[Batch]:
        """Those of these batches that are there."""
        found = await asyncio.gather(*map(self.find, batches))
        return [batch for batch in found if batch is not None]

    async def page(self, tenant: str, *, after: str, limit: int) -> tuple[list[Batch], bool]:
        """A tenant's batches, the newest first, behind the id `after`; whether there are more.

        Ids grow with time, so a page stays what it is while new batches come.
        """
        start = f"({after}" if after else "+"
        command = ("ZREVRANGEBYLEX", self.keys.batches_of(tenant), start, "-", "LIMIT", "0", str(limit + 1))
        ids = [found.decode() for found in await self._call(*command)]
        return await self.several(ids[:limit]), len(ids) > limit

    async def active(self) -> list[str]:
        """Batches that have not ended, the oldest first."""
        return [found.decode() for found in await self._call("ZRANGE", self.keys.batches_active, "0", "-1")]

    async def parts(self, batch: str, start: int = 0, count: int = 0) -> list[Part]:
        """The committed parts from number `start` on; `count` of them at most, 0: all."""
        stop = start + count - 1 if count else -1
        entries = await self._call("LRANGE", self.keys.batch_parts(batch), str(start), str(stop))
        return [part_of(entry.decode()) for entry in entries]

    async def committed(self, batch: str) -> bytes:
        """The bitmap of committed rows: row 0 is the highest bit of the first byte."""
        return await self._call("GET", self.keys.batch_rows(batch)) or b""

    async def secret(self, batch: str) -> str:
        """The secret of a batch's own webhook; empty where there is none."""
        return (await self._call("GET", self.keys.batch_secret(batch)) or b"").decode()

    async def present(self, batches: Sequence[str]) -> list[bool]:
        """Whether Redis knows each of these."""
        asked = [self._call("EXISTS", self.keys.batch(batch)) for batch in batches]
        return [bool(found) for found in await asyncio.gather(*asked)]

    async def now_ms(self) -> int:
        """The server's time, Unix ms."""
        seconds, micros = await self._call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


def is_set(bitmap: bytes, row: int) -> bool:
    """Whether a row's bit is set."""
    return row // 8 < len(bitmap) and bool(bitmap[row // 8] & (0x80 >> row % 8))
