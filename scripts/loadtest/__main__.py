"""`make loadtest` and `make loadgen`: streams of several kinds of prompts against a Penstock that runs.

Closed (`--concurrency N`: N clients, each sends when its last is answered) or open (`--rate R`: R requests/s come
whatever the server does, which is how overload looks). Stops after `--duration-s`, or at Ctrl-C with what it has; a run
without an end has the last thousand requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

from scripts.loadtest.asking import Asking
from scripts.loadtest.figures import Figures
from scripts.loadtest.live import shown
from scripts.loadtest.prompts import kinds_of, pick
from scripts.loadtest.report import write
from scripts.loadtest.target import Target, target_of
from scripts.loadtest.wire import BrokenOffError, exchange

_SHOW_EVERY_S = 0.25


class Run:
    """One load test."""

    def __init__(self, target: Target, options: argparse.Namespace, model: str) -> None:
        self._target = target
        self._options = options
        self._model = model
        self._kinds = kinds_of(options.prompts)
        self._chance = random.Random(options.seed)
        self._numbers = itertools.count(random.SystemRandom().randrange(1_000_000))
        self._stop = asyncio.Event()
        self._asked: set[asyncio.Task[None]] = set()
        self.figures = Figures() if options.duration_s else Figures.endless()

    async def go(self) -> float:
        """Runs it. Returns of how many seconds its figures are; a signal ends it early."""
        loop = asyncio.get_running_loop()
        for wanted in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(wanted, self._stop.set)
        if self._options.duration_s:
            loop.call_later(self._options.duration_s, self._stop.set)
        self.figures.began_s = time.monotonic()
        load = asyncio.create_task(self._open() if self._options.rate else self._closed())
        with shown(self.figures, self._target.name) as show:
            while not load.done():
                await asyncio.wait({load}, timeout=_SHOW_EVERY_S)
                show()
        await load
        return self.figures.span_s()

    async def _closed(self) -> None:
        async def client() -> None:
            while not self._stop.is_set():
                await self._one()

        await asyncio.gather(*(client() for _ in range(self._options.concurrency)))

    async def _open(self) -> None:
        while not self._stop.is_set():
            task = asyncio.create_task(self._one())
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._chance.expovariate(self._options.rate))
        await asyncio.gather(*self._asked)

    async def _one(self) -> None:
        kind = pick(self._kinds, self._chance)
        body = kind.body(next(self._numbers), self._model, self._options.tokens)
        self.figures.running += 1
        outcome = await Asking(self._target, kind.name, body).run(self._options.patience_s)
        self.figures.running -= 1
        self.figures.add(outcome)


def main(argv: list[str]) -> int:
    """Returns 0, 1 when more failed than `--most-errors`, 2 when there is nothing to test."""
    options = _parse(argv)
    try:
        target = target_of(options.url, insecure=options.insecure)
        model = options.model or asyncio.run(first_model(target))
        kinds_of(options.prompts)
    except (ValueError, BrokenOffError) as error:
        sys.stderr.write(f"loadtest: {error}\n")
        return 2
    run = Run(target, options, model)
    span_s = asyncio.run(run.go())
    load = {"concurrency": options.concurrency} if not options.rate else {"requests_per_s": options.rate}
    about: dict[str, object] = {
        "url": target.name,
        "model": model,
        **load,
        "prompts": options.prompts,
        "max_tokens": options.tokens,
    }
    if run.figures.ended > len(run.figures.outcomes):
        about["requests_in_all"] = run.figures.ended
    if not run.figures.outcomes:
        sys.stderr.write("loadtest: nothing was answered\n")
        return 1
    paths = write(Path(options.out), run.figures, span_s, about)
    print(paths[1].read_text(encoding="utf-8"))
    print(f"Written: {paths[0]}, {paths[1]}")
    return int(run.figures.failed > options.most_errors * run.figures.ended)


async def first_model(target: Target) -> str:
    """The first model that the server says it serves. Raises ValueError, BrokenOffError."""
    async with exchange(target, "GET", "/v1/models") as answer:
        said = await answer.json()
    if not answer.ok:
        msg = f"{target.name}/v1/models answers {answer.status}: {said}"
        raise ValueError(msg)
    served = [model["id"] for model in said["data"] if model.get("penstock", {}).get("state") != "cold"]
    if not served:
        msg = f"{target.name} serves no model. Is a worker ready?"
        raise ValueError(msg)
    return str(served[0])


def _parse(argv: list[str]) -> argparse.Namespace:
    env = os.environ.get
    parser = argparse.ArgumentParser(prog="make loadtest ARGS=…", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--url", default="", help="server (PENSTOCK_URL; default http://127.0.0.1:8000)")
    parser.add_argument("--insecure", action="store_true", help="accept any certificate")
    parser.add_argument("--model", default="", help="default: the first that is served")
    parser.add_argument("--concurrency", type=int, default=int(env("CONCURRENCY") or 8), help="clients (CONCURRENCY)")
    parser.add_argument("--rate", type=float, default=0, help="requests/s instead of clients")
    parser.add_argument(
        "--duration-s", type=float, default=float(env("DURATION") or 30), help="0: until Ctrl-C (DURATION)"
    )
    parser.add_argument("--prompts", default="", help="kinds: short,chat,summary,long; default all")
    parser.add_argument("--tokens", type=int, default=0, help="most tokens of each answer; 0: by kind")
    parser.add_argument("--patience-s", type=float, default=600, help="how long a client waits")
    parser.add_argument("--most-errors", type=float, default=0.01, help="share of errors that is still a success")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the kinds")
    parser.add_argument("--out", default=".", help="folder for the report")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
