"""The ramp: more and more paced streams, until a gateway does not relay them in time any more."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from scripts.bench.client import Run
from scripts.bench.options import Budget, Options
from scripts.bench.scenarios import COMPARED_STREAMS, PACED, RAMP_STREAMS, ramp_step
from scripts.bench.sessions import Groups, guarded, opened, quiet_load, report_run
from scripts.bench.transport import engine_alone

_LATE_MS = 100
_PACE = 0.95
_STEP_S = 5.0
_STEP_COSTS_S = 12.0
_NEEDS_S = 120.0
_NEAR = 4
"""A gateway that was in time at this part of the streams at which gateways are compared, is measured there anyway."""


class Ramp:
    """Measures how far gateways go."""

    def __init__(self, options: Options, budget: Budget, names: list[str], work: Path) -> None:
        """`names`: the gateways, all of them installed."""
        self._options = options
        self._budget = budget
        self._names = names
        self._work = work
        self.steps: dict[str, list[Run]] = {}
        self.engine: dict[str, list[Run]] = {}
        self.failures: dict[str, str] = {}

    def measure(self) -> None:
        """All gateways."""
        for name in self._names:
            if self._budget.allows(f"{name} ramp", _NEEDS_S):
                guarded(self.failures, f"{name} ramp", partial(self.climb, name))
        if "penstock" in self.steps:
            guarded(self.failures, "engine cost in the ramp", self._engine_cost)

    def climb(self, name: str) -> None:
        """One gateway, step by step; a step that is missed is tried twice. Raises BenchError."""
        steps = self.steps.setdefault(name, [])
        with opened(name, PACED, self._options, self._work) as (port, groups):
            for streams in self._streams():
                step = self._step(name, port, groups, streams)
                if not step["in_time"] and self._budget.patience(_STEP_COSTS_S):
                    again = self._step(name, port, groups, streams)
                    step = again if again["in_time"] else step
                steps.append(step)
                if not step["in_time"]:
                    break
            if steps[-1]["streams"] < COMPARED_STREAMS <= _NEAR * self.most(name):
                steps.append({**self._step(name, port, groups, COMPARED_STREAMS), "in_time": False})

    def _streams(self) -> list[int]:
        most = self._options.load_streams or max(RAMP_STREAMS)
        return [streams for streams in RAMP_STREAMS if streams <= most] or [most]

    def most(self, name: str) -> int:
        """The most streams that a gateway relayed in time; 0 when it never did."""
        return max((step["streams"] for step in self.steps.get(name, []) if step["in_time"]), default=0)

    def _step(self, name: str, port: int, groups: Groups, streams: int) -> Run:
        run = quiet_load(port, groups, ramp_step(streams), _STEP_S, self._budget)
        report_run(f"ramp {streams}", name, run)
        return {**run, "streams": streams, "in_time": in_time(run, streams)}

    def _engine_cost(self) -> None:
        scenario = ramp_step(COMPARED_STREAMS)
        self.engine[scenario.name] = [engine_alone(scenario)]


def in_time(run: Run, streams: int) -> bool:
    """Whether tokens came at the engine's pace, without errors, and 99 % of them within 100 ms."""
    ideal_tok_s = streams * 128 / ((PACED.ttft_ms + 127 * PACED.itl_ms) / 1e3)
    late_ms = run["relay_ms"]["p99"] or 0.0
    return bool(run["tok_s"] >= _PACE * ideal_tok_s and late_ms <= _LATE_MS and not run["errors"])
