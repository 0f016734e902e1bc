"""The transport scenarios: a simulated engine, and Penstock beside its peers in front of it."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from scripts.bench.client import Run, other_cores
from scripts.bench.gateways import GATEWAYS, REPOSITORY
from scripts.bench.groups import BenchError
from scripts.bench.options import Budget, Options
from scripts.bench.scenarios import SCENARIOS, SLOW_SCENARIOS, Pacing, Scenario
from scripts.bench.sessions import Groups, guarded, opened, quiet_load, report_run

Runs = dict[str, dict[str, list[Run]]]
"""By gateway, then by scenario; one per repeat."""
_SESSION_S = 15.0
_SETTLE_S = 4.0
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
        self.failures: dict[str, str] = {}

    def measure(self, repeat: int, *, leave_s: float = 0) -> None:
        """One repeat of everything, as far as `leave_s` seconds of the budget are left for others."""
        scenarios = [SCENARIOS[name] for name in self._options.scenarios]
        for pacing in dict.fromkeys(each.pacing for each in scenarios):
            paced = [each for each in scenarios if each.pacing == pacing]
            for name in self._names:
                if not (group := self._fit(name, paced)):
                    continue
                needs_s = _SESSION_S + sum(each.seconds(self._options.seconds) + each.warmup_s for each in group)
                what = f"{name} {'+'.join(each.name for each in group)}, repeat {repeat + 1}"
                if self._budget.allows(what, needs_s + leave_s):
                    guarded(self.failures, name, partial(self._session, name, pacing, group))
            for each in paced:
                guarded(self.failures, "engine cost", partial(self._engine_cost, each))

    def _fit(self, name: str, scenarios: list[Scenario]) -> list[Scenario]:
        """Without those that say nothing about a slow gateway, except where they are asked for by name."""
        if self._options.all_scenarios and GATEWAYS[name].slow:
            return [each for each in scenarios if each.name in SLOW_SCENARIOS]
        return scenarios

    def _session(self, name: str, pacing: Pacing, scenarios: list[Scenario]) -> None:
        with opened(name, pacing, self._options, self._work) as (port, groups):
            for scenario in scenarios:
                run = self._quietest(port, groups, scenario)
                self.runs.setdefault(name, {}).setdefault(scenario.name, []).append(run)
                report_run(scenario.name, name, run)

    def _quietest(self, port: int, groups: Groups, scenario: Scenario) -> Run:
        """The quietest of a few runs; one is enough when others left us the machine."""
        best: Run | None = None
        seconds = scenario.seconds(self._options.seconds)
        for attempt in range(self._options.tries):
            if attempt and not self._budget.patience(seconds + scenario.warmup_s + _SETTLE_S):
                break
            run = quiet_load(port, groups, scenario, seconds, self._budget)
            if best is None or other_cores(run) < other_cores(best):
                best = run
            if other_cores(best) <= self._options.max_other_cores:
                break
        if best is None:
            msg = "no run was made"
            raise BenchError(msg)
        return best

    def _engine_cost(self, scenario: Scenario) -> None:
        if "penstock" in self._names:
            self.engine.setdefault(scenario.name, []).append(engine_alone(scenario))


def engine_alone(scenario: Scenario) -> Run:
    """CPU of the simulated engine alone, which Penstock's worker has inside. Raises BenchError."""
    command = [sys.executable, "-m", "scripts.bench.engine_cost", *scenario.pacing.flags()]
    command += [*scenario.shape_flags(), "--warmup", "3", "--seconds", str(_ENGINE_SECONDS)]
    try:
        out = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=True)
    except subprocess.SubprocessError as error:
        msg = f"the engine's cost could not be measured: {error}"
        raise BenchError(msg) from error
    run: Run = json.loads(out.stdout)
    return run
