"""A cheap load client for OpenAI-compatible chat endpoints, on a bare protocol: about 5 µs of CPU per token.

Closed loop: `--concurrency` connections, each sends its next request when the last answer is complete. Everything is
counted inside one window, and the CPU of the process trees that `--tree NAME=PID` names is read at both ends of it.
Prints one JSON object.

Two ways to count, neither parses JSON on the way:

- `--count clock`: every token's text is `~` and the microsecond (13 hexadecimal digits of CLOCK_MONOTONIC) in which
  the simulated engine made it, so tokens are counted as bytes and each one's way through the gateway is known;
- `--count usage`: real engines. Events are counted for the times; tokens are what the answer's usage says, credited
  to the window by the share of the answer's time that lies in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from typing import Any

import uvloop

from scripts.bench import procs
from scripts.bench.connection import PROMPT, Connection, build_request
from scripts.bench.window import Window

_RECONNECT_PAUSE_S = 0.05


class Load:
    """One run of the client."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        host, _, port = options.target.partition(":")
        self._address = host, int(port)
        self._request = build_request(options)
        self._window = Window()
        self._stopping = False
        self._quiet = asyncio.Event()
        self._reconnects = self._opened = 0
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, Any]:
        """Warms up, measures, drains; returns the figures."""
        options, window = self._options, self._window
        watchdog = asyncio.create_task(self._watchdog())
        window.from_s = time.monotonic() + options.warmup
        window.to_s = window.from_s + options.seconds
        for number in range(options.concurrency):
            self._reopen(options.ramp * number / options.concurrency)
        await asyncio.sleep(window.from_s - time.monotonic())
        before, mine_s, busy_s = self._trees(), time.process_time(), procs.machine_busy_s()
        window.from_s = time.monotonic()
        window.to_s = window.from_s + options.seconds
        await self._slices()
        window.to_s = min(window.to_s, time.monotonic())
        after = self._trees()
        mine_s, busy_s = time.process_time() - mine_s, procs.machine_busy_s() - busy_s
        cpu_s = self._cpu_s(before, after)
        open_streams = sum(connection.busy for connection in self._connections)
        unfinished = await self._drain()
        watchdog.cancel()
        return {
            **window.figures(),
            "from_s": round(window.from_s, 3),
            "slices": window.slices(),
            "open": open_streams,
            "unfinished": unfinished,
            "reconnects": self._reconnects,
            "cpu_s": {name: round(value, 4) for name, value in cpu_s.items()},
            "cpu_client_s": round(mine_s, 3),
            "cpu_other_s": round(busy_s - mine_s - sum(cpu_s.values()), 3),
        }

    async def _slices(self) -> None:
        """Lets the window pass, in slices where they are asked for."""
        window, length_s = self._window, self._options.slice
        window.mark(window.from_s)
        end_s = window.from_s
        while length_s and end_s + length_s <= window.to_s:
            end_s += length_s
            await asyncio.sleep(end_s - time.monotonic())
            window.mark(time.monotonic())
        await asyncio.sleep(window.to_s - time.monotonic())

    def _trees(self) -> dict[str, dict[int, float]]:
        return {name: procs.tree_cpu_s(pid) for name, pid in self._options.tree}

    def _cpu_s(self, before: dict[str, dict[int, float]], after: dict[str, dict[int, float]]) -> dict[str, float]:
        cpu_s: dict[str, float] = {}
        for name, reading in after.items():
            cpu_s[name], apart_s = procs.spent_s(before[name], reading, apart=self._options.apart)
            if apart_s:
                cpu_s[f"{name}:apart"] = apart_s
        return cpu_s

    def _new_connection(self) -> Connection:
        timed = self._opened % self._options.timed_each == 0
        self._opened += 1
        connection = Connection(self._options, self._window, self._request, self._free, self._lost, timed=timed)
        self._connections.add(connection)
        return connection

    def _free(self, connection: Connection) -> None:
        if self._stopping:
            connection.close()
            self._look_quiet()
        else:
            connection.send()

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._look_quiet()
        if not self._stopping:
            self._reconnects += 1
            self._reopen(_RECONNECT_PAUSE_S)

    def _reopen(self, pause_s: float) -> None:
        task = asyncio.get_running_loop().create_task(self._open(pause_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        while not self._stopping:
            try:
                _, connection = await asyncio.get_running_loop().create_connection(self._new_connection, *self._address)
            except OSError:
                self._window.error("connect", time.monotonic())
                await asyncio.sleep(_RECONNECT_PAUSE_S)
            else:
                connection.send()
                return

    def _look_quiet(self) -> None:
        if self._stopping and not any(connection.busy for connection in self._connections):
            self._quiet.set()

    async def _watchdog(self) -> None:
        while True:
            await asyncio.sleep(1)
            now_s = time.monotonic()
            for connection in [c for c in self._connections if c.busy and now_s - c.sent_s > self._options.timeout]:
                self._window.error("timeout", now_s)
                connection.abort()

    async def _drain(self) -> int:
        """Lets answers that are under way end; returns how many did not."""
        self._stopping = True
        self._look_quiet()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), self._options.drain)
        unfinished = sum(c.busy for c in self._connections)
        for connection in list(self._connections):
            connection.abort()
        return unfinished


def _tree(text: str) -> tuple[str, int]:
    name, _, pid = text.partition("=")
    return name, int(pid)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--model", default="sim")
    parser.add_argument("--key", default="sk-bench")
    parser.add_argument("--count", choices=["clock", "usage"], default="clock", help="how tokens are counted")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="per answer")
    parser.add_argument("--prompt-chars", type=int, default=len(PROMPT))
    parser.add_argument("--no-stream", dest="stream", action="store_false")
    parser.add_argument("--warmup", type=float, default=3, help="seconds")
    parser.add_argument("--seconds", type=float, default=8, help="the window")
    parser.add_argument("--slice", type=float, default=0, help="also give figures for each so many seconds")
    parser.add_argument("--timed-each", type=int, default=1, help="keep times of every so-manieth connection only")
    parser.add_argument("--ramp", type=float, default=0, help="spread the first requests over this many seconds")
    parser.add_argument("--drain", type=float, default=8, help="seconds for what is under way at the end")
    parser.add_argument("--timeout", type=float, default=30, help="seconds after which an answer is given up")
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=PID", type=_tree)
    parser.add_argument("--apart", default="", help="count processes whose command line matches this apart")
    return parser.parse_args(argv)


def main() -> None:
    """Runs the client."""
    print(json.dumps(uvloop.run(Load(parse()).run())))


if __name__ == "__main__":
    main()
