"""Talks to an engine as the worker does: an ASGI exchange, a journal, and cancelling the task to stop it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from starlette.types import Message, Scope

from worker.engines.base import Engine, Resume, current_journal


@dataclass
class RecordingJournal:
    """An engines.base.Journal that keeps everything."""

    attempt: str = "a1"
    priority: int = 10
    resume: Resume | None = None
    replays: int = 0
    divergences: list[str] = field(default_factory=list)
    continuable: bool = True
    token_ids: list[int] = field(default_factory=list)
    text_chars: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def tokens(self, token_ids: list[int], text_chars: int) -> None:
        self.token_ids += token_ids
        self.text_chars += text_chars

    def usage(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def cannot_continue(self) -> None:
        self.continuable = False

    def replayed(self) -> None:
        self.replays += 1

    def diverged(self, why: str) -> None:
        self.divergences.append(why)


class Exchange:
    """One request to an engine. `run` serves it; `stop` does what the worker does to stop an attempt."""

    def __init__(self, engine: Engine, path: str, body: dict[str, Any], rid: str = "r1") -> None:
        self.journal = RecordingJournal(attempt=f"{rid}-a")
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.piece_times_s: list[float] = []
        self.complete = False
        self.arrived = asyncio.Event()
        self._engine = engine
        self._path = path
        self._rid = rid
        self._data = json.dumps(body).encode()
        self._unread = True
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self.run())
        return self._task

    async def run(self) -> Exchange:
        current_journal.set(self.journal)
        try:
            await self._engine.app(self._scope(), self._receive, self._send)
        finally:
            self._gone.set()
        return self

    async def stop(self) -> None:
        assert self._task is not None
        self._gone.set()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _scope(self) -> Scope:
        headers = [(b"content-type", b"application/json"), (b"x-request-id", self._rid.encode())]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*headers, (b"content-length", str(len(self._data)).encode())],
            "client": None,
            "server": None,
            "state": {},
        }

    async def _receive(self) -> Message:
        if self._unread:
            self._unread = False
            return {"type": "http.request", "body": self._data, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        if message.get("body"):
            self.pieces.append(message["body"])
            self.piece_times_s.append(time.monotonic())
            self.arrived.set()
        self.complete = not message.get("more_body", False)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> dict[str, Any]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def events(self) -> list[str]:
        """The data of the server-sent events."""
        return [event.removeprefix("data: ") for event in self.body.decode().split("\n\n") if event]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in self.events if event != "[DONE]"]


class Subject(Protocol):
    """An engine under test, and what the suite must know about it."""

    engine: Engine

    def busy(self) -> int:
        """Sequences that the engine still holds."""

    def token_ids(self, choices: list[dict[str, Any]]) -> list[int]:
        """The tokens of an answer, from its choices: one, or those of all chunks."""


def text_of(choices: list[dict[str, Any]]) -> str:
    """The text of an answer, from its choices: one, or those of all chunks."""
    return "".join(
        choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""
        for choice in choices
    )


class SimSubject:
    """The simulated engine; a token's id is its text."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def busy(self) -> int:
        return int(self.engine.running)  # type: ignore[attr-defined]

    def token_ids(self, choices: list[dict[str, Any]]) -> list[int]:
        return [int(token) for token in text_of(choices).split()]


class VllmSubject:
    """The vLLM engine; it returns token ids with `return_token_ids`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def busy(self) -> int:
        return int(self.engine.unfinished)  # type: ignore[attr-defined]

    def token_ids(self, choices: list[dict[str, Any]]) -> list[int]:
        return [token for choice in choices for token in choice.get("token_ids") or ()]

    async def abort_everything(self) -> None:
        """What an operator can do through vLLM's own interface."""
        engine = self.engine._engine  # type: ignore[attr-defined]
        await engine.abort(list(engine.output_processor.request_states), internal=True)

    def kill_engine_process(self) -> None:
        """The engine's process dies as if it had run out of memory."""
        for pid in engine_processes():
            os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    """Whether there is such a process, other than as a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def engine_processes(parent: int | None = None) -> list[int]:
    """The processes of vLLM below `parent` (default: this process), found by their titles."""
    children: dict[int, list[int]] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(folder.name))
                titles[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
    below, found = [parent or os.getpid()], []
    while below:
        for pid in children.get(below.pop(), ()):
            below.append(pid)
            if titles.get(pid, "").startswith("VLLM::"):
                found.append(pid)
    return found


async def until(check: Any, deadline_s: float, what: str) -> None:
    """Polls until `check()` is true. Raises TimeoutError, saying what did not happen."""
    end_s = time.monotonic() + deadline_s
    while not check():
        if time.monotonic() > end_s:
            msg = f"not within {deadline_s} s: {what}"
            raise TimeoutError(msg)
        await asyncio.sleep(0.01)
