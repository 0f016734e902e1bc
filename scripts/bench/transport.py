"""The transport scenarios: a simulated engine, and Penstock beside its peers in front of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from scripts.bench.client import Run, load, other_cores
from scripts.bench.gateways import GATEWAYS, REPOSITORY, Place, run_up, start_backend
from scripts.bench.groups import BenchError, Group, free_ports
from scripts.bench.options import Budget, Options
from scripts.bench.scenarios import PACED, RAMP_STREAMS, SCENARIOS, Pacing, Scenario, ramp_step

Runs = dict[str, dict[str, list[Run]]]
"""By gateway, then by scenario; one per repeat."""
_QUIET_MOST_S = 8.0
_SESSION_S = 15.0
_SETTLE_S = 4.0
_RAMP_LATE_MS = 100
_RAMP_PACE = 0.95
_ENGINE_SECONDS = 4.0


class Transport:
    """Measures gateways in scenarios."""

    def __init__(self, options: Options, budget: Budget, names: list[str], work: Path) -> None:
        """`names`: the gateways, all of them installed."""
        self._options = options
        self._budget = budget
        self._names = names
        self._work = work
        self.runs: Runs = {}
        self.engine: dict[str, list[Run]] = {}
        self.ramps: dict[str, list[Run]] = {}
        self.failures: dict[str, str] = {}

    def measure(self, repeat: int, *, leave_s: float = 0) -> None:
        """One repeat of everything, as far as `leave_s` seconds of the budget are left for others."""
        scenarios = [SCENARIOS[name] for name in self._options.scenarios]
        for pacing in dict.fromkeys(each.pacing for each in scenarios):
            group = [each for each in scenarios if each.pacing == pacing]
            needs_s = _SESSION_S + sum(each.seconds(self._options.seconds) + each.warmup_s for each in group)
            for name in self._names:
                what = f"{name} {'+'.join(each.name for each in group)}, repeat {repeat + 1}"
                if self._budget.allows(what, needs_s + leave_s):
                    self._guard(name, partial(self._session, name, pacing, group))
            for each in group:
                self._guard("engine cost", partial(self._engine_cost, each))

    def ramp(self) -> None:
        """The most streams that each gateway relays in time."""
        for name in self._names:
            if self._budget.allows(f"{name} ramp", 60):
                self._guard(name, partial(self._ramp, name))

    def _guard(self, name: str, measure: Callable[[], None]) -> None:
        try:
            measure()
        except BenchError as error:
            print(f"  {name}: {error}", flush=True)
            self.failures[name] = str(error)

    def _open(self, stack: ExitStack, name: str, pacing: Pacing) -> tuple[int, dict[str, Group]]:
        """Starts engine and gateway; they are stopped with the stack. Returns the port and the groups by prefix."""
        gateway = GATEWAYS[name]
        port, backend, spare = free_ports(3)
        place = Place(self._work, self._options.cache, port, backend, spare, pacing, aof=self._options.aof)
        groups: dict[str, Group] = {}
        if not gateway.own_engine:
            groups["_"] = start_backend(place)
            stack.callback(groups["_"].stop)
        groups[""] = run_up(gateway, place)
        stack.callback(groups[""].stop)
        time.sleep(gateway.settle_s)
        return port if groups[""].processes else backend, groups

    def _session(self, name: str, pacing: Pacing, scenarios: list[Scenario]) -> None:
        with ExitStack() as stack:
            port, groups = self._open(stack, name, pacing)
            for scenario in scenarios:
                run = self._quietest(port, groups, scenario)
                self.runs.setdefault(name, {}).setdefault(scenario.name, []).append(run)
                report_run(scenario.name, name, run)

    def _quietest(self, port: int, groups: dict[str, Group], scenario: Scenario) -> Run:
        """The quietest of a few runs; one is enough when others left us the machine."""
        best: Run | None = None
        seconds = scenario.seconds(self._options.seconds)
        for attempt in range(self._options.tries):
            if attempt and not self._budget.patience(seconds + scenario.warmup_s + _SETTLE_S):
                break
            run = self._load(port, groups, scenario, seconds)
            if best is None or other_cores(run) < other_cores(best):
                best = run
            if other_cores(best) <= self._options.max_other_cores:
                break
        if best is None:
            msg = "no run was made"
            raise BenchError(msg)
        return best

    def _load(self, port: int, groups: dict[str, Group], scenario: Scenario, seconds: float) -> Run:
        self._budget.wait_quiet(_QUIET_MOST_S)
        return load(port, scenario.shape_flags(), warmup_s=scenario.warmup_s, seconds=seconds, groups=groups)

    def _ramp(self, name: str) -> None:
        with ExitStack() as stack:
            port, groups = self._open(stack, name, PACED)
            for streams in RAMP_STREAMS:
                run = self._load(port, groups, ramp_step(streams), 5)
                ideal = streams * 128 / ((PACED.ttft_ms + 127 * PACED.itl_ms) / 1e3)
                late_ms = run["relay_ms"]["p99"] or 0.0
                in_time = run["tok_s"] >= _RAMP_PACE * ideal and late_ms <= _RAMP_LATE_MS and not run["errors"]
                report_run(f"ramp {streams}", name, run)
                self.ramps.setdefault(name, []).append({**run, "streams": streams, "in_time": in_time})
                if not in_time:
                    return

    def _engine_cost(self, scenario: Scenario) -> None:
        """CPU of the simulated engine alone, which Penstock's worker has inside."""
        if "penstock" not in self._names:
            return
        command = [sys.executable, "-m", "scripts.bench.engine_cost", *scenario.pacing.flags()]
        command += [*scenario.shape_flags(), "--warmup", "3", "--seconds", str(_ENGINE_SECONDS)]
        try:
            out = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=True)
        except subprocess.SubprocessError as error:
            msg = f"the engine's cost could not be measured: {error}"
            raise BenchError(msg) from error
        self.engine.setdefault(scenario.name, []).append(json.loads(out.stdout))


def report_run(scenario: str, name: str, run: Run) -> None:
    """One line on the terminal, while the benchmark runs."""
    cpu_s = sum(run["cpu_s"].values())
    print(
        f"  {scenario} {name}: {run['tok_s']} tok/s, {run['req_s']} req/s, TTFT p50 {run['ttft_ms']['p50']} ms, "
        f"{1e6 * cpu_s / max(1, run['tokens']):.1f} CPU-s/Mtok, errors {run['errors']} {run['error_kinds'] or ''}, "
        f"others used {other_cores(run):.2f} cores",
        flush=True,
    )
