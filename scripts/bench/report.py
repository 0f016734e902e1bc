"""Figures as Markdown tables: for the terminal and for the marked section of docs/performance.md."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from scripts.bench import batch, lanes_report, long_report
from scripts.bench.figures import EngineCost, Summary, engine_cost, per_mtok, summarise
from scripts.bench.gateways import GATEWAYS
from scripts.bench.measured import Measured
from scripts.bench.options import FULL_PARTS
from scripts.bench.scenarios import COMPARED_STREAMS, SCENARIOS
from scripts.bench.tables import NONE, number, table
from scripts.bench.targets import targets

BEGIN = "<!-- bench:begin (written by `make bench`; do not edit) -->"
END = "<!-- bench:end -->"
ENDURANCE_BEGIN = "<!-- endurance:begin (written by `python -m scripts.bench --only endurance --page`; do not edit) -->"
ENDURANCE_END = "<!-- endurance:end -->"
_RATIOS = ("nginx", "vllm-router", "sglang-router", "seed-plain", "seed-typical", "litellm")


def sections(data: dict[str, Any], guarded: str = "") -> str:
    """Everything that was measured but the long run, as Markdown. `guarded`: the part about the recorded ratios."""
    parts = [_origin(data), _targets(data)]
    for name in SCENARIOS:
        summaries = {
            gateway: summarise(by[name])
            for gateway, by in sorted(data["runs"].items(), key=lambda item: list(GATEWAYS).index(item[0]))
            if by.get(name)
        }
        if summaries:
            cost = engine_cost(data["engine"][name]) if data["engine"].get(name) else None
            parts.append(_scenario(name, summaries, cost))
    parts += [_ratios(data), guarded, _ramps(data), long_report.open_streams(data.get("open_streams")), _serving(data)]
    parts += [lanes_report.section(data.get("lanes")), batch.section(data.get("batch")), _idle(data), _gaps(data)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _origin(data: dict[str, Any]) -> str:
    machine, options = data["machine"], data["options"]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items() if version)
    return (
        f"Measured on {machine['date']}: {machine['cores']} cores of {machine['cpu']}, {machine['memory']}, "
        f"{machine['system']}. Windows of {options['seconds']:g} s, {options['repeat']} repeats; every figure is the "
        f"median of its repeats, *spread* the dearest repeat over the cheapest.\n\nVersions: {versions}. "
        f"Redis {'with' if options['aof'] else 'without'} AOF (everysec), on a unix socket."
    )


def _targets(data: dict[str, Any]) -> str:
    every = [*targets(data), *lanes_report.targets(data.get("lanes")), *batch.targets(data.get("batch"))]
    if set(data["options"].get("parts", FULL_PARTS)) < set(FULL_PARTS):  # what nobody asked for is no gap
        every = [each for each in every if each.met is not None]
    words = {True: "met", False: "**missed**", None: "not measured"}
    rows = [
        [
            each.what,
            each.text,
            NONE if each.measured is None else number(each.measured, 0 if each.measured >= 1000 else 2),
            words[each.met],
        ]
        for each in every
    ]
    return "### Targets\n\n" + table(["what", "target", "measured", ""], rows) if rows else ""


def _scenario(name: str, summaries: dict[str, Summary], cost: EngineCost | None) -> str:
    scenario = SCENARIOS[name]
    columns = ["", "CPU-s/Mtok", "CPU-s/1k req", "tok/s", "req/s", "TTFT p50 / p99, ms", "token's way p50 / p99, ms"]
    columns += ["ITL p99, ms", "tokens a read", "RSS, MB", "errors", "spread", "others, cores"]
    direct = summaries.get("direct")
    rows = [_row(gateway, summary, direct) for gateway, summary in summaries.items()]
    text = f"### {name}: {scenario.title}\n\n{table(columns, rows)}"
    ours = summaries.get("penstock")
    return text if ours is None else f"{text}\n\n{_roles(ours, cost)}"


def _row(gateway: str, summary: Summary, direct: Summary | None) -> list[str]:
    """Latencies are given over those of `direct`, where it was measured."""
    counted = gateway != "direct"
    base = direct if counted else None

    def pair(*names: str) -> str:
        values = [getattr(summary, name) for name in names]
        if base is None:
            return " / ".join(number(value, 2) for value in values)
        over = [value - getattr(base, name) for name, value in zip(names, values, strict=True)]
        return " / ".join(NONE if math.isnan(value) else f"{value:+.2f}" for value in over)

    def cost(value: float, digits: int) -> str:
        return number(value, digits) if counted else NONE

    return [
        f"{gateway}, with its engine" if GATEWAYS[gateway].own_engine else gateway,
        cost(summary.cpu_s_per_mtok, 1),
        cost(summary.cpu_s_per_kreq, 3),
        number(summary.tok_s, 0),
        number(summary.req_s, 0),
        pair("ttft_p50_ms", "ttft_p99_ms"),
        pair("relay_p50_ms", "relay_p99_ms"),
        pair("itl_p99_ms"),
        number(summary.tokens_per_read, 2),
        cost(summary.rss_mb, 0),
        str(summary.errors),
        number(summary.spread_ratio, 2) if counted and summary.repeats > 1 else NONE,
        number(summary.other_cores, 2),
    ]


def _roles(ours: Summary, cost: EngineCost | None) -> str:
    roles = ", ".join(f"{role} {value:.1f}" for role, value in ours.roles_cpu_s_per_mtok.items())
    text = f"Penstock by process, CPU-s/Mtok: {roles}."
    if cost is None:
        return text
    return (
        f"{text} The simulated engine inside the worker costs {cost.cpu_s_per_mtok:.1f} "
        f"({cost.cpu_s_per_kreq:.3f} per 1000 requests); **without it: "
        f"{ours.cpu_s_per_mtok - cost.cpu_s_per_mtok:.1f} CPU-s/Mtok** "
        f"({ours.cpu_s_per_kreq - cost.cpu_s_per_kreq:.3f} per 1000 requests)."
    )


def _ratios(data: dict[str, Any]) -> str:
    """Penstock's CPU per token without the engine, over each peer's, scenario by scenario."""
    found = Measured(data)
    peers = [name for name in _RATIOS if data["runs"].get(name)]
    scenarios = [name for name in SCENARIOS if found.cost(name) is not None]
    if not scenarios or not peers:
        return ""
    over = {(name, peer): found.cost_over(peer, name) for name in scenarios for peer in peers}
    rows = [[name, *(_cell(over[name, peer]) for peer in peers)] for name in scenarios]
    title = "### Penstock's CPU per token over that of its peers\n\nWithout the engine; below 1 Penstock is cheaper."
    return f"{title}\n\n{table(['', *peers], rows)}"


def _cell(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else number(value, digits)


def _ramps(data: dict[str, Any]) -> str:
    found = Measured(data)
    rows = []
    for name, steps in data["ramps"].items():
        if not steps:
            continue
        best = found.ramp_best(name)
        there = [str(best["streams"]), number(best["tok_s"], 0)] if best else [f"< {steps[0]['streams']}", NONE]
        cost = per_mtok(sum(best["cpu_s"].values()), best["tokens"]) if best and name != "direct" else None
        late_ms = best["relay_ms"]["p99"] if best else None
        compared = found.ramp_cost(name) if name != "direct" else None
        rows.append([name, *there, _cell(cost, 1), _cell(late_ms, 1), _cell(compared, 1)])
    if not rows:
        return ""
    columns = ["", "streams", "tok/s", "CPU-s/Mtok there", "token's way p99, ms"]
    columns.append(f"CPU-s/Mtok at {COMPARED_STREAMS} streams, in time or not, Penstock without its engine")
    title = "### Ramp: most streams that are relayed in time (99 % of the tokens within 100 ms)"
    return f"{title}\n\n{table(columns, rows)}"


def _serving(data: dict[str, Any]) -> str:
    serving = data.get("serving") or {}
    rows = []
    for name, by in serving.get("runs", {}).items():
        for streams, runs in by.items():
            summary = summarise(runs)
            core = statistics.median(per_mtok(run["cpu_engine_core_s"], run["tokens"]) for run in runs)
            rows.append(
                [
                    {"vllm": "vLLM's own server", "penstock": "Penstock"}[name],
                    streams,
                    number(summary.tok_s, 0),
                    f"{number(summary.ttft_p50_ms)} / {number(summary.ttft_p99_ms)}",
                    number(summary.cpu_s_per_mtok),
                    number(core),
                    ", ".join(f"{role} {value:.0f}" for role, value in summary.roles_cpu_s_per_mtok.items()),
                    str(summary.errors),
                    number(summary.spread_ratio, 2),
                    number(summary.other_cores, 2),
                ]
            )
    if not rows:
        return ""
    columns = ["", "streams", "tok/s", "TTFT p50 / p99, ms", "CPU-s/Mtok around the engine core"]
    columns += ["engine core, CPU-s/Mtok", "by process", "errors", "spread", "others, cores"]
    idle = "; ".join(
        f"{name}: "
        + ", ".join(f"{role} {statistics.median(each[role] for each in readings):.1f} %" for role in readings[0])
        for name, readings in serving.get("idle", {}).items()
    )
    note = f"\n\nIdle, without the engine core: {idle}." if idle else ""
    return f"### A real engine: vLLM serving {serving['model']}\n\n{table(columns, rows)}{note}"


def _shares(readings: list[dict[str, float]]) -> str:
    medians = {role: statistics.median(each[role] for each in readings) for role in readings[0]}
    return ", ".join(f"{role} {share:.1f} %" for role, share in medians.items())


def _idle(data: dict[str, Any]) -> str:
    if not data["idle"]:
        return ""
    rows = [[role, f"{share:.2f} %"] for role, share in data["idle"].items()]
    title = f"### Idle\n\nCPU of each process over {data['options']['idle_s']:g} s in which nothing happens."
    return f"{title}\n\n{table(['process', 'of a core'], rows)}"


def _gaps(data: dict[str, Any]) -> str:
    """What was not measured, and why: nothing is dropped silently."""
    lines = [f"- {name}: {why}" for name, why in data["missing"].items()]
    lines += [f"- {name}: failed: {why.splitlines()[0]}" for name, why in data["failures"].items()]
    if data["skipped"]:
        lines.append(f"- no time was left for: {'; '.join(data['skipped'])}")
    return "### Not measured\n\n" + "\n".join(lines) if lines else ""


def write_page(page: Path, text: str, begins: str = BEGIN, ends: str = END) -> None:
    """Replaces a marked section of the page. Raises ValueError when the page has no such section."""
    whole = page.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(begins)
    _, end, after = rest.partition(ends)
    if not begin or not end:
        msg = f"{page.name} has no section between {begins} and {ends}"
        raise ValueError(msg)
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")
