"""The loads that every gateway gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pacing:
    """How fast the simulated engine is."""

    ttft_ms: int
    itl_ms: int

    def flags(self) -> list[str]:
        """For the engines' command lines."""
        return ["--ttft-ms", str(self.ttft_ms), "--itl-ms", str(self.itl_ms)]


PACED = Pacing(30, 20)
FREE = Pacing(0, 0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load: `streams` connections that ask for `tokens` again and again."""

    name: str
    pacing: Pacing
    streams: int
    tokens: int
    stream: bool
    title: str

    def shape_flags(self) -> list[str]:
        """What the load client and the engine-cost program take alike."""
        flags = ["--concurrency", str(self.streams), "--tokens", str(self.tokens)]
        if not self.stream:
            flags.append("--no-stream")
        if self.pacing.itl_ms:
            flags += ["--ramp", "2.6"]  # an answer's length, so that requests come evenly
        return flags

    @property
    def warmup_s(self) -> float:
        """Until the load is even."""
        return 4.0 if self.pacing.itl_ms else 2.0

    def seconds(self, wanted_s: float) -> float:
        """The window; counts settle sooner where the engine does not wait."""
        return wanted_s if self.pacing.itl_ms else max(3.0, 0.6 * wanted_s)


SCENARIOS = {
    each.name: each
    for each in (
        Scenario("S2", PACED, 64, 128, stream=True, title="64 streams of 128 tokens, TTFT 30 ms, a token each 20 ms"),
        Scenario("S2s", PACED, 8, 128, stream=True, title="as S2 with 8 streams"),
        Scenario("S4", PACED, 256, 128, stream=True, title="as S2 with 256 streams"),
        Scenario("S1", FREE, 64, 128, stream=True, title="64 streams of 128 tokens, the engine as fast as it can"),
        Scenario("S3", FREE, 64, 1, stream=False, title="64 connections, one-token answers, not streamed"),
    )
}
QUICK = ("S2", "S3")
SLOW_SCENARIOS = ("S2", "S1", "S3")
"""What a slow gateway is measured in: with 256 streams it is overloaded, with 8 it has nothing to say."""
RAMP_STREAMS = (64, 128, 256, 512, 640, 768, 896, 1024, 1280, 1536, 2048)
STREAMS = 4000
"""Of the part that holds streams open."""
COMPARED_STREAMS = 768
"""The step of the ramp at which gateways' CPU is compared."""


def ramp_step(streams: int) -> Scenario:
    """A step of the ramp: as S2 with so many streams."""
    return Scenario(f"ramp-{streams}", PACED, streams, 128, stream=True, title=f"as S2 with {streams} streams")
