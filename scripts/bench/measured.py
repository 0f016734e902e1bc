"""What one run measured, asked by name: costs, ratios over peers, what is added over direct. None: not measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from scripts.bench.client import Run
from scripts.bench.figures import Summary, engine_cost, per_mtok, summarise
from scripts.bench.scenarios import COMPARED_STREAMS, RAMP_STREAMS, ramp_step

_CLOCKS_MS = 1.0
"""By how much less than none a gateway may seem to take: timers tick in milliseconds."""


def over(value: float | None, base: float | None) -> float | None:
    """The ratio of two figures; None when one is missing, no number, or there is nothing to divide by."""
    if value is None or not base or math.isnan(value) or math.isnan(base):
        return None
    return value / base


class Measured:
    """The figures of one run (see `__main__.measure`)."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data
        self._summaries: dict[tuple[str, str], Summary] = {}

    def summary(self, gateway: str, scenario: str) -> Summary | None:
        """The medians of a gateway in a scenario."""
        runs = self._data["runs"].get(gateway, {}).get(scenario)
        if not runs:
            return None
        key = gateway, scenario
        if key not in self._summaries:
            self._summaries[key] = summarise(runs)
        return self._summaries[key]

    def figure(self, gateway: str, scenario: str, name: str) -> float | None:
        """One field of that."""
        summary = self.summary(gateway, scenario)
        return None if summary is None else float(getattr(summary, name))

    def cost(self, scenario: str) -> float | None:
        """Penstock's CPU seconds per million tokens without the engine."""
        whole = self.figure("penstock", scenario, "cpu_s_per_mtok")
        return self._without_engine(whole, scenario)

    def cost_over(self, peer: str, scenario: str) -> float | None:
        """That over a peer's."""
        return over(self.cost(scenario), self.figure(peer, scenario, "cpu_s_per_mtok"))

    def rate_over(self, peer: str, scenario: str, name: str) -> float | None:
        """Penstock's `req_s` or `tok_s` over a peer's."""
        return over(self.figure("penstock", scenario, name), self.figure(peer, scenario, name))

    def added_ms(self, scenario: str, name: str) -> float | None:
        """What Penstock adds to a time of `direct`.

        None where that is clearly less than nothing: then the machine was busy with others while `direct` was measured.
        """
        ours, base = self.figure("penstock", scenario, name), self.figure("direct", scenario, name)
        if ours is None or base is None or not ours - base > -_CLOCKS_MS:
            return None
        return ours - base

    def ramp_best(self, gateway: str) -> Run | None:
        """The last step of a gateway's ramp that was in time."""
        good = [step for step in self._data["ramps"].get(gateway, []) if step["in_time"]]
        return good[-1] if good else None

    def ramp_over(self, peer: str) -> float | None:
        """Penstock's most streams in time over a peer's: their pace is the same, so this is the ratio of tokens/s.

        None for a ramp that was cut off before it found an end.
        """
        ours, theirs = self._ramp_end("penstock"), self._ramp_end(peer)
        return over(ours, theirs)

    def _ramp_end(self, gateway: str) -> float | None:
        best, steps = self.ramp_best(gateway), self._data["ramps"].get(gateway, [])
        cut_off = all(step["in_time"] for step in steps) and (best or {"streams": 0})["streams"] < RAMP_STREAMS[-1]
        return None if best is None or cut_off else float(best["streams"])

    def ramp_cost(self, gateway: str) -> float | None:
        """CPU seconds per million tokens at the streams at which gateways are compared; ours without the engine."""
        for step in self._data["ramps"].get(gateway, []):
            if step["streams"] == COMPARED_STREAMS:
                whole = per_mtok(sum(step["cpu_s"].values()), step["tokens"])
                return self._without_engine(whole, ramp_step(COMPARED_STREAMS).name) if gateway == "penstock" else whole
        return None

    def serving_over(self, streams: int, pick: Callable[[Run], float]) -> float | None:
        """Medians of Penstock over those of vLLM's own server, both serving the same model."""
        runs = (self._data.get("serving") or {}).get("runs", {})
        ours, theirs = (runs.get(name, {}).get(str(streams)) for name in ("penstock", "vllm"))
        if not ours or not theirs:
            return None
        return over(statistics.median(map(pick, ours)), statistics.median(map(pick, theirs)))

    def _without_engine(self, whole: float | None, scenario: str) -> float | None:
        engine = self._data["engine"].get(scenario)
        return None if whole is None or not engine else whole - engine_cost(engine).cpu_s_per_mtok


def tok_s(run: Run) -> float:
    """Tokens per second of a run."""
    return float(run["tok_s"])


def stack_cost(run: Run) -> float:
    """CPU seconds per million tokens of everything that serves a real model, its engine core included."""
    return per_mtok(sum(run["cpu_s"].values()) + run["cpu_engine_core_s"], run["tokens"])
