"""`make smoke`: does this Penstock serve? Some seconds; needs a server that runs, and Python's standard library.

Models, a whole answer, a stream, the stream broken off and gone on with, a key, metrics where they are open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from scripts.loadtest.__main__ import first_model
from scripts.loadtest.asking import Asking
from scripts.loadtest.target import Target, target_of
from scripts.loadtest.wire import BrokenOffError, exchange

_PATIENCE_S = 120.0
_TOKENS = 24
_BREAK_AFTER = 3
_NOT_FOUND = 404


class WrongError(Exception):
    """What the server said is not what it should say."""


class Smoke:
    """The checks. Each returns a few words about what it saw, or raises WrongError or BrokenOffError."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._model = ""

    async def ready(self) -> str:
        """/readyz is 200."""
        said = await self._get("/readyz")
        return f"{said['status']}, serves {', '.join(said['models'])}"

    async def models(self) -> str:
        """/v1/models names a model that is served."""
        self._model = await first_model(self._target)
        return self._model

    async def refuses(self) -> str:
        """A wrong key is refused, where keys are wanted."""
        if not self._target.key:
            return "skipped: no keys are set"
        wrong = Target(self._target.host, self._target.port, self._target.tls, "wrong")
        async with exchange(wrong, "GET", "/v1/models") as answer:
            _check(answer.status == 401, f"a wrong key gets {answer.status}")
        return "401"

    async def whole(self) -> str:
        """A chat completion in one piece."""
        said = await self._post({**self._body(), "stream": False, "stream_options": None})
        text = said["choices"][0]["message"]["content"]
        _check(bool(text), f"no text: {said}")
        return f"{said['usage']['completion_tokens']} tokens: {_short(text)}"

    async def stream(self) -> str:
        """A stream to its end."""
        asking = Asking(self._target, "smoke", self._body())
        outcome = await asking.run(_PATIENCE_S)
        _check(not outcome.error, f"the stream ended with {outcome.error}")
        _check(bool(asking.text) and outcome.tokens > 0, "the stream said nothing")
        return f"{outcome.tokens} tokens, the first after {outcome.ttft_s * 1000:.0f} ms"

    async def resume(self) -> str:
        """A stream that breaks off after a few events goes on with exactly the rest."""
        rid, seen, last_id = await self._break_off()
        rest, done = [], False
        path, headers = f"/v1/requests/{rid}/events", {"Last-Event-ID": last_id}
        async with exchange(self._target, "GET", path, None, headers) as answer:
            _check(answer.ok, f"going on gets {answer.status}")
            async for line in answer.lines():
                done = done or line == "data: [DONE]"
                rest.append(_text(line))
        _check(done, "the rest of the stream has no end")
        said = (await self._get(f"/v1/requests/{rid}"))["response"]["body"]["choices"][0]["message"]["content"]
        _check("".join(seen + rest) == said, f"{''.join(seen)!r} and {''.join(rest)!r} are not {said!r}")
        return f"after {len(''.join(seen))} of {len(said)} characters"

    async def idempotent(self) -> str:
        """The same Idempotency-Key twice is one generation."""
        headers = {"Idempotency-Key": f"smoke-{secrets.token_hex(8)}"}
        body = {**self._body(), "stream": False, "stream_options": None}
        first, second = await self._post(body, headers), await self._post(body, headers)
        _check(first["choices"] == second["choices"], "the same key was answered twice")
        return "one generation"

    async def metrics(self) -> str:
        """/metrics is closed from outside, or has ours."""
        async with exchange(self._target, "GET", "/metrics") as answer:
            said = (await answer.body()).decode()
        if answer.status == _NOT_FOUND:
            return "closed at the door, as it should be"
        _check(answer.ok and "penstock_http_requests_total" in said, f"/metrics gets {answer.status}")
        return f"{sum(1 for line in said.splitlines() if not line.startswith('#'))} series"

    async def _break_off(self) -> tuple[str, list[str], str]:
        """Streams, and hangs up after a few events. Returns the request, the pieces seen and the last id."""
        seen: list[str] = []
        last_id = ""
        async with exchange(self._target, "POST", "/v1/chat/completions", self._body()) as answer:
            _check(answer.ok, f"a stream gets {answer.status}")
            rid = answer.headers.get("x-penstock-request", "")
            async for line in answer.lines():
                last_id = line[4:] if line.startswith("id: ") else last_id
                seen.append(_text(line))
                if len([piece for piece in seen if piece]) >= _BREAK_AFTER and line == "":
                    break
        return rid, seen, last_id

    def _body(self) -> dict[str, Any]:
        content = f"What happens when a worker dies? ({secrets.token_hex(2)})"
        messages = [{"role": "user", "content": content}]
        said = {"model": self._model, "messages": messages, "max_tokens": _TOKENS}
        return {**said, "stream": True, "stream_options": {"include_usage": True}}

    async def _get(self, path: str) -> Any:
        async with exchange(self._target, "GET", path) as answer:
            said = await answer.json()
        _check(answer.ok, f"GET {path} gets {answer.status}: {said}")
        return said

    async def _post(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
        async with exchange(self._target, "POST", "/v1/chat/completions", body, headers) as answer:
            said = await answer.json()
        _check(answer.ok, f"a chat completion gets {answer.status}: {said}")
        return said


def _check(fine: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as assert
    if not fine:
        raise WrongError(otherwise)


def _text(line: str) -> str:
    if not line.startswith("data: {"):
        return ""
    return "".join(choice["delta"].get("content") or "" for choice in json.loads(line[6:]).get("choices", ()))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


async def _run(target: Target, wait_s: float) -> int:
    smoke = Smoke(target)
    await _wait(smoke, wait_s)
    failed = 0
    checks: list[Callable[[], Awaitable[str]]] = [smoke.ready, smoke.models, smoke.refuses, smoke.whole, smoke.stream]
    for check in [*checks, smoke.resume, smoke.idempotent, smoke.metrics]:
        name = check.__name__
        try:
            async with asyncio.timeout(_PATIENCE_S):
                print(f"  ok      {name:<11} {await check()}", flush=True)
        except (WrongError, BrokenOffError, TimeoutError, ValueError, KeyError, TypeError) as error:
            failed += 1
            print(f"  FAILED  {name:<11} {error or repr(error)}", flush=True)
    print(f"{target.name}: {f'{failed} checks failed' if failed else 'serves'}")
    return int(failed > 0)


async def _wait(smoke: Smoke, wait_s: float) -> None:
    """Returns once the server is ready, or time is up."""
    end_s = time.monotonic() + wait_s
    while time.monotonic() < end_s:
        try:
            await smoke.ready()
        except (WrongError, BrokenOffError):
            await asyncio.sleep(0.5)
        else:
            return


def main(argv: list[str]) -> int:
    """Returns 0 when everything is as it should be."""
    parser = argparse.ArgumentParser(prog="make smoke ARGS=…", description=__doc__)
    parser.add_argument("--url", default="", help="server (PENSTOCK_URL; default http://127.0.0.1:8000)")
    parser.add_argument("--insecure", action="store_true", help="accept any certificate")
    parser.add_argument("--wait-s", type=float, default=0, help="how long it may take to be ready")
    options = parser.parse_args(argv)
    try:
        target = target_of(options.url, insecure=options.insecure)
    except ValueError as error:
        sys.stderr.write(f"smoke: {error}\n")
        return 2
    return asyncio.run(_run(target, options.wait_s))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
