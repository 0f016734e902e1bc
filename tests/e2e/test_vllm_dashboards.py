"""Every query of every dashboard, asked of a real Prometheus that scrapes a running stack under load, has an answer.

The stack: two replicas, real vLLM on the CPU, simulated workers of which one is killed, Redis with its append-only
file. The GPU is imagined: the real exporter over `tests/support/fakenvml.py`. What needs a fault that is not made here,
a flag, or a server of others stands in `EMPTY`, with the reason.
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from prometheus_client import CollectorRegistry, start_http_server

from cli.nvml import Gpus
from cli.settings import DEMO_MODEL
from tests.support.boards import queries
from tests.support.fakenvml import FakeNvml
from tests.support.load import Ask, ask, start_many
from tests.support.metric_names import of_vllm, promtool
from tests.support.prometheus import Prometheus, rule_files, running_prometheus
from tests.support.stack import Stack, eventually, get, running_stack

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

START_S = 400.0
ANSWERED_S = 60.0
VLLM_FLAGS = ("--served-model-name", "demo", "--enforce-eager", "--max-num-seqs", "4")
EMPTY = {
    "penstock-overview / Alerts that fire / A": "an alert: tests/drills/test_alerts.py",
    "penstock-gateway / Repairs / A": "a lost message, or a lost connection of the subscriber: drills 16 and 17",
    "penstock-gateway / Images / A": "requests that name images by URL",
    "penstock-queue / Drain / A": "a backlog that lasts: drill 31",
    "penstock-queue / Fairness / A": "tenants that wait for long: drill 31",
    "penstock-queue / Pre-emptions / A": "interactive requests that find every slot taken by batch ones: drill 31",
    "penstock-queue / Deadlines / A": "a deadline that passes: drill 33",
    "penstock-queue / Brought back / A": "a Redis that loses its data: drills 20 to 23",
    "penstock-capacity / Backlog / A": "a backlog that lasts: drill 31",
    "penstock-capacity / Load / B": "a backlog that lasts: drill 31",
    "penstock-llm / Speculative decoding / A": "vLLM with --speculative-config",
    "penstock-infrastructure / Certificates / A": "Prometheus' blackbox_exporter",
}
"""Queries without an answer here: panel → what it takes."""
_BATCHES = "penstock-batches / "
"""Its queries want a batch process, files and batches."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(aof=True) as started:
        keys = {"PENSTOCK_API_KEYS": "alpha,beta"}
        started.worker(
            "--model",
            str(DEMO_MODEL),
            "--",
            *VLLM_FLAGS,
            engine="vllm",
            ready_s=START_S,
            env={"VLLM_CPU_KVCACHE_SPACE": "1"},
        )
        for _ in range(2):
            started.worker("--", "--itl-ms", "50", "--slots", "8")
        with redis.Redis.from_url(started.redis_url) as server:
            server.config_set("maxmemory", 1 << 30)  # type: ignore[no-untyped-call]
        started.api(env=keys)
        started.api("--queue-mode", "reject", env=keys)
        yield started


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    library, registry = FakeNvml(), CollectorRegistry()
    registry.register(Gpus(lambda: library))
    server, thread = start_http_server(0, "127.0.0.1", registry)
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), rule_files()) as started:
        started.watch("penstock-api", *(f"127.0.0.1:{api.port}" for api in stack.apis))
        started.watch("penstock-worker", *(f"127.0.0.1:{worker.ops_port}" for worker in stack.workers))
        started.watch("penstock-gpu", f"127.0.0.1:{server.server_port}")
        library.xid(79)
        yield started
    server.shutdown()
    server.server_close()
    thread.join()


async def load(stack: Stack, until: asyncio.Event) -> None:
    """Requests of many kinds, again and again; after a while a worker is killed under its streams."""
    urls, key = [api.url for api in stack.apis], {"X-API-Key": "alpha"}
    began_s, turn, killed = time.monotonic(), 0, False
    while not until.is_set():
        turn += 1
        plain = Ask(urls, 20, headers=key, body={"model": "sim"})
        lanes = [
            Ask(urls, 20, headers={**key, "X-Priority-Lane": lane}, body={"model": model})
            for lane in ("interactive", "standard", "batch")
            for model in ("sim", "demo")
        ]
        asks = [
            *lanes,
            Ask(urls, 5, headers={"X-API-Key": "nobody"}),
            *(
                Ask(urls, 5, headers={**key, "Idempotency-Key": f"turn-{turn}"}, body={"model": "sim"})
                for _ in range(2)
            ),
            Ask(urls, 5, headers={"X-API-Key": "beta"}, body={"model": "sim"}, stream=False),
            *(Ask(urls[1:], 40, headers=key, body={"model": "sim"}) for _ in range(20)),
        ]
        seen, *_ = await asyncio.gather(*(ask(each) for each in [plain, *asks]))
        await _go_on(urls[0], seen.rid, seen.ids[3], key)
        await _hang_up(urls[0])
        if not killed and time.monotonic() - began_s > 5:
            killed = True
            await _kill_one(stack, Ask(urls[:1], 60, headers=key, body={"model": "sim"}, resume=True))


async def _kill_one(stack: Stack, wanted: Ask) -> None:
    """A worker dies under streams, and others go on with them."""
    victim = stack.workers[-1]
    tasks = start_many(8, wanted)
    await eventually(lambda: victim.metric("penstock_attempts_running") > 1, 30, "it has streams")
    frames = victim.metric("penstock_flushed_frames_total")
    await eventually(lambda: victim.metric("penstock_flushed_frames_total") > frames + 8, 30, "they have text")
    victim.kill()
    await asyncio.gather(*tasks)


async def _go_on(url: str, rid: str, event: str, key: dict[str, str]) -> None:
    """Reads the rest of a stream behind an event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    lines = [f"GET /v1/requests/{rid}/events HTTP/1.1", "Host: x", "Connection: close", f"Last-Event-ID: {event}"]
    writer.write("\r\n".join([*lines, *(f"{name}: {value}" for name, value in key.items()), "", ""]).encode())
    await reader.read()
    writer.close()


async def _hang_up(url: str) -> None:
    """A client that asks, and goes away when the answer begins."""
    body = b'{"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 500, "stream": true}'
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: alpha\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await reader.readuntil(b"data: ")
    writer.transport.abort()


async def test_every_query_has_an_answer(stack: Stack, prometheus: Prometheus) -> None:
    done = asyncio.Event()
    loading = asyncio.create_task(load(stack, done))
    asked = {where: query for where, query in queries(rate="20s").items() if not where.startswith(_BATCHES)}
    left, give_up_at_s = asked, time.monotonic() + ANSWERED_S
    try:
        while left and time.monotonic() < give_up_at_s and not loading.done():
            for where, query in list(left.items()):
                samples = await asyncio.to_thread(prometheus.query, query)
                if any(not math.isnan(value) for _, value in samples):
                    del left[where]
            if left.keys() <= EMPTY.keys():
                break
            await asyncio.sleep(0.5)
    finally:
        done.set()
        await loading
    assert {where: query for where, query in left.items() if where not in EMPTY} == {}


def test_what_may_stay_empty_is_there() -> None:
    assert EMPTY.keys() <= queries().keys()


def test_promtool_has_nothing_to_say_about_a_worker_with_vllm_but_for_vllms_own_names(stack: Stack) -> None:
    text = get(f"http://127.0.0.1:{stack.workers[0].ops_port}/metrics")[1]
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, check=False)
    assert done.returncode in {0, 3}, done.stderr
    said = (done.stdout + done.stderr).decode().splitlines()
    assert [line for line in said if not line.startswith("vllm:")] == []


def test_the_recorded_names_of_vllm_are_those_of_the_engine(stack: Stack) -> None:
    text = get(f"http://127.0.0.1:{stack.workers[0].ops_port}/metrics")[1].decode()
    told = {line.split(" ")[2]: line.split(" ")[3] for line in text.splitlines() if line.startswith("# TYPE vllm:")}
    told = {name: kind for name, kind in told.items() if not name.endswith("_created")}
    assert told == {name: kind for name, (kind, _) in of_vllm(optional=False).items()}
    sources = Path(importlib.util.find_spec("vllm").origin).parent  # type: ignore[union-attr,arg-type]
    known = (sources / "v1" / "spec_decode" / "metrics.py").read_text(encoding="utf-8")
    for name in of_vllm().keys() - told.keys():
        assert f'"{name.removesuffix("_total")}"' in known
