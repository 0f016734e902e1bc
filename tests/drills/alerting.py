"""What the drills of alerts share: a Prometheus whose rules run sixty times faster, and waiting for what it fires.

A minute of a rule is a second here: of `for`, of windows, of offsets. Numbers that are times themselves are lowered
where a drill would have to wait for them; `NUMBERS` has all of them. Everything else is the rule as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from tests.support.prometheus import Prometheus, faster, rule_files, running_prometheus
from tests.support.stack import Stack

FASTER = 60
NUMBERS = {
    'lane="standard"}) > 60': 'lane="standard"}) > 2',
    'lane="batch"}) > 3600': 'lane="batch"}) > 3',
    'lane!="batch"}[10m]))) > 60': 'lane!="batch"}[10m]))) > 2',
}


@contextlib.contextmanager
def watched(stack: Stack, *, times: int = FASTER) -> Iterator[Prometheus]:
    """A Prometheus that scrapes what runs of the stack."""
    with running_prometheus(stack.folder / "prometheus", faster(rule_files(), times, NUMBERS)) as prometheus:
        for api in stack.apis:
            prometheus.watch("penstock-api", f"127.0.0.1:{api.port}")
        for worker in stack.workers:
            prometheus.watch("penstock-worker", f"127.0.0.1:{worker.ops_port}")
        yield prometheus


@contextlib.contextmanager
def watched_target(folder: Path, registry: CollectorRegistry, *, times: int = FASTER) -> Iterator[Prometheus]:
    """A Prometheus that scrapes this registry, in the format that workers speak."""

    class Exposition(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.end_headers()
            self.wfile.write(generate_latest(registry))  # start_http_server would make `vllm_` of `vllm:`

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Exposition)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with running_prometheus(folder, faster(rule_files(), times, NUMBERS)) as prometheus:
            prometheus.watch("imagined", f"127.0.0.1:{server.server_port}")
            yield prometheus
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def scraped(prometheus: Prometheus, expr: str, *, within_s: float = 20) -> None:
    """Waits until a query has an answer."""
    give_up_at_s = time.monotonic() + within_s
    while not await asyncio.to_thread(prometheus.query, expr):
        assert time.monotonic() < give_up_at_s, f"{expr} has no answer after {within_s} s"
        await asyncio.sleep(0.2)


async def quiet(prometheus: Prometheus, *names: str) -> None:
    """None of these fires, once all targets have been scraped. Called before the fault is made."""
    await ends(prometheus, *names, within_s=20)


async def fires(prometheus: Prometheus, *names: str, within_s: float = 40) -> dict[str, float]:
    """Waits until each of these has fired, and says after how many seconds it did."""
    began_s, after_s = time.monotonic(), dict[str, float]()
    while after_s.keys() != set(names):
        for name, alerts in (await asyncio.to_thread(prometheus.firing)).items():
            if name in names and name not in after_s:
                after_s[name] = time.monotonic() - began_s
                for alert in alerts:
                    said = alert["annotations"]["summary"]
                    assert not re.search(r"no value|%!|\{\{", said), said
        missing = set(names) - after_s.keys()
        assert not missing or time.monotonic() - began_s < within_s, f"not within {within_s} s: {missing}"
        await asyncio.sleep(0.2)
    return after_s


async def ends(prometheus: Prometheus, *names: str, within_s: float = 40) -> None:
    """Waits until none of these fires any more."""
    give_up_at_s = time.monotonic() + within_s
    while left := set(await asyncio.to_thread(prometheus.firing)) & set(names):
        assert time.monotonic() < give_up_at_s, f"still firing after {within_s} s: {left}"
        await asyncio.sleep(0.2)
