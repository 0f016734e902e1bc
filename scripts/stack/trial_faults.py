"""What is done to the stack under trial, and what its clients must see all the same."""

from __future__ import annotations

import asyncio
from typing import Any

from scripts.loadtest.__main__ import first_model
from scripts.loadtest.asking import Asking
from scripts.loadtest.wire import exchange
from scripts.stack.places import StackError
from scripts.stack.trial_scene import Scene

_STREAMS = 8
_TRIES = 5
_PATIENCE_S = 180.0
_API_PORT, _OPS_PORT = 8000, 9100


class Faults:
    """Faults, each with the proof that it happened."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._tokens = 1500 if scene.profile == "cpu" else 600  # some seconds of each engine

    async def balance(self) -> dict[str, float]:
        """Every replica answers a part of what comes. Returns how many each."""
        scene, model = self._scene, await first_model(self._scene.target)
        before = {name: self._answered(name) for name in scene.names("api")}
        for _ in range(3):
            await asyncio.gather(*(self._start(model, number, 8).run(_PATIENCE_S) for number in range(_STREAMS)))
        found = {name: self._answered(name) - had for name, had in before.items()}
        if min(found.values()) < 1:
            msg = f"one replica got nothing: {found}"
            raise StackError(msg)
        return found

    async def replica_dies(self) -> str:
        """Its streams go on at another replica, through nginx, with exactly the rest."""
        scene = self._scene
        for turn in range(1, _TRIES + 1):
            asked, tasks = await self._streams()
            dead = max(scene.names("api"), key=lambda name: scene.metric(name, _API_PORT, "penstock_streams_open"))
            scene.crash(dead)
            await self._whole(asked, tasks)
            resumed = [one for one in asked if one.outcome.resumes]
            scene.until(lambda dead=dead: dead in scene.names("api"), "the dead replica, restarted", 60)  # type: ignore[misc]
            if resumed:
                return f"{dead} killed (try {turn}): {len(resumed)} of {len(asked)} streams went on elsewhere, whole"
        msg = f"no stream was cut in {_TRIES} tries: all had ended before"
        raise StackError(msg)

    async def worker_dies(self) -> str:
        """Its streams go on from another worker; nobody reconnects."""
        scene = self._scene
        for _ in range(_TRIES):
            asked, tasks = await self._streams()
            dead = max(scene.names(scene.worker), key=self._runs)
            had = self._runs(dead)
            scene.crash(dead)
            await self._whole(asked, tasks)
            if had and (again := sum([await self._attempts(one) > 1 for one in asked])):
                longest_s = max(max(one.outcome.gaps_s, default=0.0) for one in asked)
                return (
                    f"{dead} killed: {again} of {len(asked)} streams went on elsewhere after at most {longest_s:.1f} s"
                )
            scene.until(lambda: len(scene.names(scene.worker)) > 1, "two workers")
        msg = f"no stream was on the killed worker in {_TRIES} tries"
        raise StackError(msg)

    async def _streams(self) -> tuple[list[Asking], list[asyncio.Task[Any]]]:
        """Starts streams, and returns once each has said something."""
        model = await first_model(self._scene.target)
        asked = [self._start(model, number, self._tokens) for number in range(_STREAMS)]
        tasks = [asyncio.create_task(one.run(_PATIENCE_S)) for one in asked]
        while not all(one.text or task.done() for one, task in zip(asked, tasks, strict=True)):
            await asyncio.wait(tasks, timeout=0.01)
        return asked, tasks

    async def _whole(self, asked: list[Asking], tasks: list[asyncio.Task[Any]]) -> None:
        """Waits for all; what each client saw is what the request's record says was generated."""
        await asyncio.gather(*tasks)
        for one in asked:
            said = await self._record(one)
            if one.outcome.error or one.text != said["response"]["body"]["choices"][0]["message"]["content"]:
                msg = f"{one.rid}: {one.outcome.error or 'the client saw another text than was generated'}"
                raise StackError(msg)

    async def _record(self, one: Asking) -> dict[str, Any]:
        async with exchange(self._scene.target, "GET", f"/v1/requests/{one.rid}") as answer:
            found = await answer.json()
        if not answer.ok:
            msg = f"GET /v1/requests/{one.rid} gets {answer.status}: {found}"
            raise StackError(msg)
        return dict(found)

    async def _attempts(self, one: Asking) -> int:
        return int((await self._record(one))["attempts"])

    def _start(self, model: str, number: int, tokens: int) -> Asking:
        messages = [{"role": "user", "content": f"What happens when a worker dies? ({number})"}]
        body = {"model": model, "messages": messages, "max_tokens": tokens, "stream": True, "ignore_eos": True}
        return Asking(self._scene.target, "trial", {**body, "stream_options": {"include_usage": True}})

    def _answered(self, name: str) -> float:
        return self._scene.metric(
            name, _API_PORT, "penstock_http_requests_total", route="/v1/chat/completions", code="200"
        )

    def _runs(self, name: str) -> float:
        return self._scene.metric(name, _OPS_PORT, "penstock_attempts_running")
