"""The ratios that must not get worse: Penstock over its peers, both of one run, against those that were recorded.

Ratios only: absolute figures move with the machine and its state, ratios of one run hardly do.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.measured import Measured, over, stack_cost, tok_s
from scripts.bench.scenarios import COMPARED_STREAMS
from scripts.bench.tables import NONE, number, table
from scripts.bench.targets import VLLM_STREAMS

TOLERANCE = 0.15
_LESS, _MORE = "less", "more"
_COSTS = (("S2", "nginx"), ("S2", "vllm-router"), ("S2", "seed-typical"), ("S4", "nginx"), ("S4", "vllm-router"))
HOW_TO_RECORD = "if that is meant, record the new ratios, and commit them with the reason: make bench ARGS=--record"


@dataclass(frozen=True, slots=True)
class Ratio:
    """One ratio of a run. `better`: `less` or `more`."""

    value: float
    better: str

    def worse_by(self, recorded: float) -> float:
        """By which share this is worse than what was recorded; below 0 it is better."""
        change = self.value / recorded - 1
        return change if self.better == _LESS else -change


@dataclass(frozen=True, slots=True)
class Verdict:
    """A recorded ratio and what became of it. `now` is None when this run did not measure it."""

    name: str
    better: str
    recorded: float
    origin: str
    now: float | None
    worse_by: float

    @property
    def regressed(self) -> bool:
        """Whether it is worse by more than is let through."""
        return self.now is not None and self.worse_by > TOLERANCE

    @property
    def text(self) -> str:
        """One line for the terminal."""
        return (
            f"{self.name}: {self.now:.3f}, recorded {self.recorded:.3f} ({self.origin}), {self.better} is better: "
            f"{self.worse_by:.0%} worse, {TOLERANCE:.0%} is let through"
        )


def ratios(data: dict[str, Any]) -> dict[str, Ratio]:
    """The ratios that a run has measured, by what they are."""
    return {name: Ratio(value, better) for name, (better, value) in _every(data).items() if value and value > 0}


def known() -> set[str]:
    """The names of all ratios that a run may measure."""
    return set(_every({"runs": {}, "engine": {}, "ramps": {}}))


def _every(data: dict[str, Any]) -> dict[str, tuple[str, float | None]]:
    """Which is better and the value, None where it was not measured."""
    found = Measured(data)
    every: dict[str, tuple[str, float | None]] = {}
    for scenario, peer in _COSTS:
        what = f"{scenario}: CPU per token without the engine, over {peer}"
        every[what] = _LESS, found.cost_over(peer, scenario)
    what = f"ramp: CPU per token at {COMPARED_STREAMS} streams without the engine, over vllm-router"
    every[what] = _LESS, over(found.ramp_cost("penstock"), found.ramp_cost("vllm-router"))
    every["S3: requests/s over vllm-router"] = _MORE, found.rate_over("vllm-router", "S3", "req_s")
    every["S1: tokens/s over vllm-router"] = _MORE, found.rate_over("vllm-router", "S1", "tok_s")
    for streams in VLLM_STREAMS:
        whose = f"over vLLM's own server, {streams} streams"
        every[f"vLLM: CPU per token of the whole stack {whose}"] = _LESS, found.serving_over(streams, stack_cost)
        every[f"vLLM: tokens/s {whose}"] = _MORE, found.serving_over(streams, tok_s)
    return every | _lanes(data.get("lanes"))


def _lanes(found: dict[str, Any] | None) -> dict[str, tuple[str, float | None]]:
    flood: float | None = None
    jain: float | None = None
    told: float | None = None
    if found:
        runs = found["flood"]
        p95_ms, base_ms = (statistics.median(run[of]["ttft_ms"]["p95"] for run in runs) for of in ("flood", "no flood"))
        flood, jain = over(p95_ms, base_ms), statistics.median(run["flood"]["jain"] for run in runs)
        told = found["burst"][0]["told"]["inside"]
    return {
        "lanes: small tenants' TTFT p95 beside a flood over that without": (_LESS, flood),
        "lanes: Jain's index of 50 small tenants and a flood": (_MORE, jain),
        "lanes: turns told within 30 % in a burst": (_MORE, told),
    }


def recorded(path: Path) -> dict[str, dict[str, Any]]:
    """What was recorded, by name; nothing when there is no such file. Raises ValueError for one that is no JSON."""
    if not path.exists():
        return {}
    entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def record(path: Path, data: dict[str, Any]) -> list[str]:
    """Records the ratios of a run; those that it did not measure stay. Returns the names of those it did."""
    machine = data["machine"]
    origin = {
        "date": machine["date"],
        "commit": data["versions"].get("penstock", ""),
        "machine": f"{machine['cores']} cores of {machine['cpu']}",
        "repeats": data["options"]["repeat"],
    }
    entries = recorded(path)
    measured = ratios(data)
    for name, ratio in measured.items():
        entries[name] = {"value": round(ratio.value, 4), "better": ratio.better, **origin}
    path.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n", encoding="utf-8")
    return list(measured)


def judge(entries: dict[str, dict[str, Any]], data: dict[str, Any]) -> list[Verdict]:
    """Each recorded ratio against this run's."""
    measured = ratios(data)
    verdicts = []
    for name, entry in entries.items():
        ratio = measured.get(name)
        worse_by = ratio.worse_by(entry["value"]) if ratio else 0.0
        origin = f"{entry['date']}, {entry['commit']}, {entry['machine']}"
        verdicts.append(
            Verdict(name, entry["better"], entry["value"], origin, ratio.value if ratio else None, worse_by)
        )
    return verdicts


def section(verdicts: list[Verdict]) -> str:
    """The part of the page; empty when nothing of what is recorded was measured."""
    rows = [
        [
            each.name,
            each.better,
            number(each.recorded, 3),
            number(each.now, 3),
            f"{-each.worse_by:+.0%}" + (" **worse**" if each.regressed else ""),
        ]
        if each.now is not None
        else [each.name, each.better, number(each.recorded, 3), NONE, "not measured"]
        for each in verdicts
    ]
    if all(each.now is None for each in verdicts):
        return ""
    text = (
        f"Against `docs/bench-ratios.json`; more than {TOLERANCE:.0%} worse fails the run. In the last column more is "
        "better."
    )
    columns = ["ratio", "better", "recorded", "now", "better by"]
    return f"### Ratios against the recorded ones\n\n{text}\n\n{table(columns, rows)}"
