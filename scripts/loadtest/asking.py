"""One streamed request, measured, and gone on with where its connection breaks."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from scripts.loadtest.figures import Outcome
from scripts.loadtest.target import Target
from scripts.loadtest.wire import Answer, BrokenOffError, exchange

_MOST_RESUMES = 20
_PAUSE_S = 0.2


class Asking:
    """One request of one client. `run()` never raises: what went wrong stands in `outcome.error`."""

    def __init__(self, target: Target, kind: str, body: dict[str, Any]) -> None:
        self._target = target
        self._body = body
        self._rid = ""
        self._last_id = ""
        self._done = False
        self.text = ""
        self.outcome = Outcome(kind, time.monotonic())

    @property
    def rid(self) -> str:
        """The request's id; empty before the server has said it."""
        return self._rid

    async def run(self, patience_s: float) -> Outcome:
        """The request to its end, or until `patience_s` is over."""
        outcome = self.outcome
        try:
            async with asyncio.timeout(patience_s):
                await self._once("POST", "/v1/chat/completions", self._body)
                while not (self._done or outcome.error):
                    await self._again()
        except TimeoutError:
            outcome.error = "client_timeout"
        outcome.ended_s = time.monotonic()
        return outcome

    async def _again(self) -> None:
        if not self._rid or self.outcome.resumes >= _MOST_RESUMES:
            self.outcome.error = "connection_broken"
            return
        self.outcome.resumes += 1
        await asyncio.sleep(_PAUSE_S)
        await self._once("GET", f"/v1/requests/{self._rid}/events", None)

    async def _once(self, method: str, path: str, body: dict[str, Any] | None) -> None:
        headers = {"Last-Event-ID": self._last_id} if self._last_id and method == "GET" else {}
        try:
            async with exchange(self._target, method, path, body, headers) as answer:
                self._rid = answer.headers.get("x-penstock-request", self._rid)
                if not answer.ok:
                    await self._refused(answer)
                    return
                last_s = 0.0
                async for line in answer.lines():
                    last_s = self._read(line, last_s)
        except BrokenOffError:
            return  # `run` goes on with it, if its id is known

    async def _refused(self, answer: Answer) -> None:
        said = await answer.json()
        error = said.get("error") if isinstance(said, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        if code == "no_replica" and self._rid and self.outcome.resumes < _MOST_RESUMES:
            return  # the door stands, the replicas come back
        self.outcome.error = f"{answer.status} {code or ''}".strip()

    def _read(self, line: str, last_s: float) -> float:
        """Takes in a line. Returns when the last piece of text came."""
        if line.startswith("id: "):
            self._last_id = line[4:]
        elif line == "data: [DONE]":
            self._done = True
        elif line.startswith("data: "):
            return self._event(json.loads(line[6:]), last_s)
        return last_s

    def _event(self, event: dict[str, Any], last_s: float) -> float:
        if "error" in event:
            self.outcome.error = str(event["error"].get("code") or "error")
        if usage := event.get("usage"):
            self.outcome.tokens = usage["completion_tokens"]
        said = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
        if not said:
            return last_s
        now_s = time.monotonic()
        self.text += said
        self.outcome.first_s = self.outcome.first_s or now_s
        if last_s:
            self.outcome.gaps_s.append(now_s - last_s)
        return now_s
