"""Drills 1, 6, 12, 19 and 36 on real vLLM with the demo model.

Every stream must say what an unbroken run says. The demo model's answers to its own questions are the same in every
batch at temperature 0: it ends them itself, after some forty tokens. What it says beyond that end (`ignore_eos`) is
not, so these drills ask many short questions instead of a few long ones; tests/e2e/test_vllm_continuation.py has long
streams, of a scripted model.

The stack is started once; a drill that has lost a worker leaves it to the next one to start another.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.keys import Keys
from tests.drills.acting import control
from tests.drills.catalogue import size
from tests.drills.conftest import Figures
from tests.drills.streams import Counts, Streams, family_of
from tests.support.client import Seen, text_of
from tests.support.engines import lives
from tests.support.history import Verdict, check_history
from tests.support.load import Ask
from tests.support.stack import Stack, Worker, eventually, poll_until_ready, running_stack

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

ROOT = Path(__file__).resolve().parents[2]
POOL = "demo"
K = Keys(POOL)
START_S = 400.0
DRAIN_S = 0.1
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}
COMMAND = (
    *("--model", str(ROOT / "models" / "demo"), "--drain-s", str(DRAIN_S)),
    *("--", "--served-model-name", "demo", "--enforce-eager", "--max-num-seqs", "64"),
)


def questions() -> list[str]:
    """What the demo model was trained to answer."""
    lines = []
    for name in ("reliability", "queue", "operations", "basics"):
        lines += (ROOT / "scripts" / "demo_model" / "corpus" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["questions"][0] for line in lines]


class Demo:
    """The stack, and what its model says when nothing happens."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._said: dict[str, str] = {}

    def workers(self, count: int) -> list[Worker]:
        """That many workers, ready; those that have ended are started again."""
        stack = self.stack
        fresh = [stack.again(worker) for worker in list(stack.workers) if worker.popen.poll() is not None]
        while len(stack.workers) < count:
            fresh.append(stack.worker(*COMMAND, engine="vllm", ready_s=0, env=ENV))
        for worker in stack.workers:
            poll_until_ready(worker, f"http://127.0.0.1:{worker.ops_port}/readyz", START_S)
        if fresh:  # the first batches of an engine are slow: it would get none of a drill's requests
            self._say([replace(one, tokens=8) for one in self.asked(self.urls(1), 150)], 150)
        return stack.workers

    def _say(self, asks: Sequence[Ask], at_once: int) -> list[str]:
        """Answers while nothing is wrong."""
        limits = httpx.Limits(max_connections=at_once)
        with (
            httpx.Client(base_url=self.urls(1)[0], timeout=START_S, limits=limits) as client,
            ThreadPoolExecutor(at_once) as pool,
        ):
            return list(pool.map(lambda one: _whole(client, one), asks))

    def urls(self, count: int) -> list[str]:
        """Addresses of that many living replicas."""
        while sum(api.popen.poll() is None for api in self.stack.apis) < count:
            self.stack.api()
        return [api.url for api in self.stack.apis if api.popen.poll() is None][:count]

    def asked(self, urls: Sequence[str], count: int, **fields: Any) -> list[Ask]:
        """So many questions, spread over the replicas."""
        found = questions()
        body = {"temperature": 0, **fields}
        return [
            Ask(urls, 600, resume=True, first=number, patience_s=120, content=found[number % len(found)], body=body)
            for number in range(count)
        ]

    def unbroken(self, asks: Sequence[Ask]) -> None:
        """Asks what has not been asked before, a few at a time."""
        missing = {_key(one): one for one in asks if _key(one) not in self._said}
        self._said |= zip(missing, self._say(list(missing.values()), 4), strict=True)

    def expected(self, asks: Sequence[Ask], seen: Sequence[Seen]) -> dict[str, str]:
        """What each request has to say, by its id."""
        return {one.rid: self._said[_key(wanted)] for wanted, one in zip(asks, seen, strict=True)}

    async def check(self, asks: Sequence[Ask], seen: list[Seen]) -> Verdict:
        """Everything; see history.check_history."""
        return await check_history(self.stack.redis_url, seen, self.expected(asks, seen), pool=POOL)

    def records(self, seen: Sequence[Seen], field: str) -> list[int]:
        """A number of each request's record."""
        with control(self.stack) as server:
            return [int(server.hget(K.record(one.rid), field) or 0) for one in seen]


def _key(wanted: Ask) -> str:
    return json.dumps([wanted.content, wanted.body])


def _whole(client: httpx.Client, wanted: Ask) -> str:
    body = {"messages": [{"role": "user", "content": wanted.content}], "max_tokens": wanted.tokens, **wanted.body}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return text_of(answer.json()["choices"][0])


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running_stack(aof=True) as started:
        yield Demo(started)


@pytest.mark.drill(12)
@pytest.mark.long
async def test_clients_of_a_killed_replica_resume_on_another(demo: Demo, figures: Figures) -> None:
    demo.workers(1)
    asks = demo.asked(demo.urls(2), size(60, 120))
    demo.unbroken(asks)
    streams = Streams(asks)
    cut = await streams.visible(len(asks) // 2, 3)
    demo.stack.apis[0].kill()
    seen = await streams.ended()
    verdict = await demo.check(asks, seen)
    figures |= {"engine": "vLLM", "streams": len(seen), "open at the kill": cut, "resumes": verdict.resumes}
    figures |= {"longest pause s": verdict.longest_pause_s}
    assert verdict.resumes >= 10, "the kill came too late"
    assert verdict.whole == len(seen)
    assert set(demo.records(seen, "claims")) == {1}, "something ran twice"


@pytest.mark.drill(19)
@pytest.mark.long
async def test_a_redis_that_comes_back_with_its_log_loses_nothing(demo: Demo, figures: Figures) -> None:
    demo.workers(1)
    asks = demo.asked(demo.urls(1), size(120, 240))
    demo.unbroken(asks)
    streams = Streams(asks)
    cut = await streams.visible(30, 3)
    demo.stack.redis.kill()
    down_s = time.monotonic()
    await asyncio.to_thread(demo.stack.start_redis)
    up_s = time.monotonic() - down_s
    seen = await streams.ended()
    verdict = await demo.check(asks, seen)
    figures |= {"engine": "vLLM", "streams": len(seen), "open at the kill": cut, "restart s": up_s}
    figures |= {"longest pause s": max(one.longest_pause_s for one in seen if 0 < one.first_s < down_s)}
    assert cut >= 10, "the kill came too late"
    assert verdict.whole == len(seen)
    assert set(demo.records(seen, "kills")) == {0}


@pytest.mark.drill(6)
@pytest.mark.long
@pytest.mark.parametrize("what", ["worker and engine", "worker alone"])
async def test_a_zombie_is_refused_lets_go_and_serves_again(demo: Demo, figures: Figures, what: str) -> None:
    """A machine that stands still stops both processes; alone, the engine goes on and the worker wakes to old news."""
    workers = demo.workers(2)
    asks = demo.asked(demo.urls(1), 160)
    demo.unbroken(asks)
    before = {worker: Counts(worker) for worker in workers}
    streams = Streams(asks)
    zombie, heir = await streams.caught(demo.stack, K, 10)
    cut = streams.open
    pids = family_of(zombie.pid) if what == "worker and engine" else [zombie.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(10)  # the drill's own length
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)
    woke_s = time.monotonic()
    await eventually(lambda: Counts(zombie).renewals == before[zombie].renewals + 1, 30, "it is told")
    told_s = time.monotonic() - woke_s
    await eventually(lambda: zombie.metric("vllm:num_requests_running") == 0, 30, "its engine is free")
    seen = await streams.ended()
    again = Streams(asks[:16])
    later = await again.ended()
    verdict = await demo.check([*asks, *asks[:16]], [*seen, *later])
    fenced = Counts(zombie).fenced - before[zombie].fenced
    refused = Counts(zombie).refused - before[zombie].refused
    moved = Counts(heir).resumes - before[heir].resumes
    figures |= {"engine": "vLLM", "stopped": what, "open then": cut, "moved": moved, "woke to told s": told_s}
    figures |= {"attempts refused": refused, "appends fenced": fenced, "longest pause s": verdict.longest_pause_s}
    assert moved >= 5, "the worker was stopped too late"
    assert refused >= 5, "by its next flush, or by the thread that keeps its lease, whichever is first"
    assert verdict.whole == len(seen) + len(later)
    assert zombie.metric("penstock_attempts_running") == 0


@pytest.mark.drill(36)
@pytest.mark.long
async def test_a_drained_workers_unfinished_requests_go_on_elsewhere(demo: Demo, figures: Figures) -> None:
    workers = demo.workers(2)
    asks = demo.asked(demo.urls(1), 160)
    demo.unbroken(asks)
    before = {worker: Counts(worker) for worker in workers}
    streams = Streams(asks)
    leaver, stayer = await streams.caught(demo.stack, K, 10)
    cut = streams.open
    status = await asyncio.to_thread(leaver.stop)
    seen = await streams.ended()
    verdict = await demo.check(asks, seen)
    handed = sum(claims - 1 for claims in demo.records(seen, "claims"))
    moved = Counts(stayer).resumes - before[stayer].resumes
    figures |= {"engine": "vLLM", "streams": len(seen), "open then": cut, "handed back": handed}
    figures |= {"with a text": moved, "longest pause s": verdict.longest_pause_s}
    assert status == 0
    assert moved >= 5, "everything fitted into the drain time"
    assert verdict.whole == len(seen)
    assert set(demo.records(seen, "kills")) == {0}


@pytest.mark.drill(1)
@pytest.mark.long
async def test_a_killed_workers_streams_go_on(demo: Demo, figures: Figures) -> None:
    """The worker's process alone is killed, as the kernel does it; no engine of it may stay."""
    workers = demo.workers(2)
    asks = demo.asked(demo.urls(1), 160)
    demo.unbroken(asks)
    before = {worker: Counts(worker) for worker in workers}
    streams = Streams(asks)
    victim, heir = await streams.caught(demo.stack, K, 10)
    cut = streams.open
    family = family_of(victim.pid)
    os.kill(victim.pid, signal.SIGKILL)
    seen = await streams.ended()
    verdict = await demo.check(asks, seen)
    hit = sum(demo.records(seen, "kills"))
    moved = Counts(heir).resumes - before[heir].resumes
    figures |= {"engine": "vLLM", "streams": len(seen), "open then": cut, "hit": hit, "with a text": moved}
    figures |= {"longest pause s": verdict.longest_pause_s}
    assert len(family) > 1
    assert moved >= 5, "the kill came too late"
    assert verdict.whole == len(seen)
    assert verdict.longest_pause_s < 12
    await eventually(lambda: not any(map(lives, family)), 30, "its engine has ended, too")
