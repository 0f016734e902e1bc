"""What Penstock promises about its cost, against what a run measured. A target that is missed is shown as missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scripts.bench.measured import Measured, over, stack_cost, tok_s
from scripts.bench.scenarios import COMPARED_STREAMS, STREAMS

_CPU = "CPU-s per million tokens"
_TIMES = "x"
VLLM_STREAMS = (64, 128)


@dataclass(frozen=True, slots=True)
class Target:
    """A promise and what was measured. `measured` is None when this run did not measure it."""

    what: str
    unit: str
    bound: float
    measured: float | None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """None when it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    @property
    def text(self) -> str:
        """`≤ 40 ms`."""
        return f"{'≥' if self.at_least else '≤'} {self.bound:,g} {self.unit}".rstrip()


def targets(data: dict[str, Any]) -> list[Target]:
    """The targets of docs/performance.md against the figures of one run (see `__main__.measure`); lanes apart."""
    found = Measured(data)
    idle = max(data["idle"].values()) if data["idle"] else None
    return [
        *_costs(found),
        *_rates(found),
        *_ramp(found),
        *_times(found),
        *_serving(found),
        *_open_streams(data.get("open_streams")),
        Target("the busiest process while nothing happens", "% of a core", 1, idle),
    ]


def _costs(found: Measured) -> list[Target]:
    peers = (("vllm-router", 2.0), ("seed-typical", 0.45), ("litellm", 0.1))
    ours = Target("worker + replica + Redis at 64 paced streams (S2), without the engine", _CPU, 40, found.cost("S2"))
    ratios = [
        Target(f"CPU per token over {peer}'s (S2), without the engine", _TIMES, most, found.cost_over(peer, "S2"))
        for peer, most in peers
    ]
    return [ours, *ratios]


def _rates(found: Measured) -> list[Target]:
    def rate(scenario: str, name: str) -> float | None:
        return found.figure("penstock", scenario, name)

    peers = (("vllm-router", 0.4), ("seed-typical", 15.0))
    ratios = [
        Target(
            f"requests of one token over {peer}'s (S3)",
            _TIMES,
            least,
            found.rate_over(peer, "S3", "req_s"),
            at_least=True,
        )
        for peer, least in peers
    ]
    return [
        Target("requests of one token (S3)", "a second", 8000, rate("S3", "req_s"), at_least=True),
        *ratios,
        Target("tokens as fast as it goes (S1)", "a second", 80_000, rate("S1", "tok_s"), at_least=True),
    ]


def _ramp(found: Measured) -> list[Target]:
    ratio = over(found.ramp_cost("penstock"), found.ramp_cost("vllm-router"))
    what = f"CPU per token at {COMPARED_STREAMS} paced streams over vllm-router's, without the engine"
    rate = found.ramp_over("vllm-router")
    return [
        Target("most paced tokens/s in time (ramp) over vllm-router's", _TIMES, 1, rate, at_least=True),
        Target(what, _TIMES, 1, ratio),
    ]


def _times(found: Measured) -> list[Target]:
    return [
        Target("TTFT over direct at the median (S2)", "ms", 1.5, found.added_ms("S2", "ttft_p50_ms")),
        Target("TTFT p99 over that of direct (S2)", "ms", 5, found.added_ms("S2", "ttft_p99_ms")),
        Target("ITL p99 over that of direct (S2)", "ms", 4, found.added_ms("S2", "itl_p99_ms")),
        Target("TTFT over direct at the median (S2s)", "ms", 3, found.added_ms("S2s", "ttft_p50_ms")),
    ]


def _serving(found: Measured) -> list[Target]:
    result = []
    for streams in VLLM_STREAMS:
        rate, cost = (found.serving_over(streams, pick) for pick in (tok_s, stack_cost))
        what = f"over vLLM's own server, {streams} streams"
        result.append(Target(f"tokens/s {what}", _TIMES, 1, rate, at_least=True))
        result.append(Target(f"CPU per token of the whole stack {what}", _TIMES, 1.15, cost))
    return result


def _open_streams(found: dict[str, Any] | None) -> list[Target]:
    """Of fewer streams than were promised, nothing is said."""
    enough = found if found and found["streams"] >= STREAMS else None

    def of(*path: str) -> float | None:
        value: Any = enough
        for name in path if enough else ():
            value = value[name]
        return value if value is None else float(value)

    streams = f"{STREAMS:,} streams"
    return [
        Target(f"memory of a replica per open stream, {streams}", "KB", 30, of("kb_a_stream", "replica")),
        Target(f"errors of {streams}", "", 0, of("errors")),
        Target(f"p99 of a token's way, {streams}", "ms", 50, of("relay_ms", "p99")),
    ]
