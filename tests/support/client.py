"""A streaming client that keeps what a person would have seen: the text, the ids of the events, and how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from api.cursors import cursor_of
from worker.engines.sim_answers import answer_text


@dataclass
class Seen:
    """What one client has seen of one stream."""

    status: int = 0
    rid: str = ""
    text: str = ""
    ids: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    errors: list[dict[str, object]] = field(default_factory=list)
    done: int = 0
    broken: str = ""
    tokens: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0
    first_s: float = 0.0
    longest_pause_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    """Between an event and the next, from the first on."""
    resumes: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    tools: list[str] = field(default_factory=list)
    logprob_tokens: list[str] = field(default_factory=list)
    completion_tokens: int = 0

    @property
    def offsets(self) -> list[int]:
        """Where in the log the events end that were seen."""
        return [cursor_of(event_id).offset for event_id in self.ids]

    @property
    def whole(self) -> bool:
        """Whether the stream ended as an answer."""
        return self.status == 200 and self.done == 1 and not self.errors and not self.broken

    def check(self, tokens: int) -> None:
        """Raises AssertionError unless this is the whole answer, or a piece of it followed by one explicit error."""
        expected = answer_text(self.rid, tokens)
        assert expected.startswith(self.text), f"{self.rid}: the text has a gap, a repeat or a splice"
        assert self.offsets == sorted(set(self.offsets)), f"{self.rid}: the cursors do not grow"
        if self.whole:
            assert self.text == expected, f"{self.rid}: the text is cut short"
            assert self.finish_reasons == ["length"]
        else:
            assert not self.broken, f"{self.rid}: broke off: {self.broken}"
            assert len(self.errors) == 1, f"{self.rid}: {len(self.errors)} errors"
            assert self.done == 0


def check_whole(seen: Iterable[Seen], tokens: int) -> None:
    """Raises AssertionError unless every one is the whole answer."""
    for one in seen:
        assert one.whole, one
        one.check(tokens)


async def stream_chat(
    client: httpx.AsyncClient, url: str, tokens: int, *, into: Seen | None = None, **extra: object
) -> Seen:
    """Streams one chat completion to its end. `into` is filled while it goes on."""
    body = {"messages": [{"role": "user", "content": "count"}], "max_tokens": tokens, "stream": True, **extra}
    seen = into if into is not None else Seen()
    seen.began_s = time.monotonic()
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            seen.status = response.status_code
            seen.rid = response.headers.get("x-penstock-request", "")
            if response.status_code != 200:
                seen.errors.append(json.loads(await response.aread())["error"])
                return seen
            last_s, event_s = seen.began_s, 0.0
            async for line in response.aiter_lines():
                now_s = time.monotonic()
                seen.longest_pause_s, last_s = max(seen.longest_pause_s, now_s - last_s), now_s
                if line.startswith("data: "):
                    if event_s:
                        seen.gaps_s.append(now_s - event_s)
                    event_s = now_s
                read_line(seen, line)
    except httpx.HTTPError as error:
        seen.broken = repr(error)
    finally:
        seen.ended_s = time.monotonic()
    return seen


def read_line(seen: Seen, line: str) -> None:
    """Takes in one line of the stream."""
    if line.startswith("id: "):
        seen.ids.append(line[4:])
    elif line == "data: [DONE]":
        seen.done += 1
    elif line.startswith("data: "):
        event = json.loads(line[6:])
        if "error" in event:
            seen.errors.append(event["error"])
            return
        if event.get("usage"):
            seen.completion_tokens = event["usage"]["completion_tokens"]
        for choice in event["choices"]:
            seen.first_s = seen.first_s or time.monotonic()
            seen.text += text_of(choice)
            seen.tokens += 1
            _read_extras(seen, choice)
            if choice.get("finish_reason"):
                seen.finish_reasons.append(choice["finish_reason"])


def _read_extras(seen: Seen, choice: dict[str, Any]) -> None:
    """The names of the tools that a chunk calls, and the tokens whose log probabilities it brings."""
    for call in choice.get("delta", {}).get("tool_calls") or ():
        if name := call["function"].get("name"):
            seen.tools.append(name)
    if logprobs := choice.get("logprobs"):
        seen.logprob_tokens += [entry["token"] for entry in logprobs["content"]]


def text_of(choice: dict[str, Any]) -> str:
    """What a chunk's or an answer's choice says: its text, or the arguments of the tools that it calls."""
    said = choice.get("delta") or choice.get("message") or {}
    calls = said.get("tool_calls") or ()
    return (said.get("content") or "") + "".join(call["function"].get("arguments") or "" for call in calls)
