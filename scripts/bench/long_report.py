"""The parts of the page about thousands of open streams and about the long run."""

from __future__ import annotations

from typing import Any

from scripts.bench.endurance import LEVEL_S
from scripts.bench.tables import NONE, number, table


def open_streams(found: dict[str, Any] | None) -> str:
    """The part of the page; empty when it was not measured."""
    if not found:
        return ""
    memory, whole = found["kb_a_stream"], found["replica_mb"]
    relay = found["relay_ms"]
    rows = [
        ["streams open", f"{found['open']:,} of {found['streams']:,}"],
        ["tokens/s, of so many workers", f"{found['tok_s']:,}, {found['workers']}"],
        ["replica's memory per stream, KB", f"{memory['replica']:.1f}"],
        ["replica's memory without streams / with them, MB", f"{whole['before']:.0f} / {whole['open']:.0f}"],
        ["Redis's and the workers' memory per stream, KB", f"{memory['redis']:.1f}, {memory['workers']:.1f}"],
        ["token's way p50 / p99, ms", f"{relay['p50']} / {relay['p99']}"],
        ["errors, from the first request to the last answer", str(found["errors"])],
        ["cores used, client and engines included", f"{found['cores']}, the replica {found['replica_cores']}"],
        ["others, cores", str(found["other_cores"])],
    ]
    return f"### Streams open at once on one replica\n\n{table(['', 'measured'], rows)}"


def _short(found: dict[str, Any]) -> str:
    if found["judged_from_s"] >= LEVEL_S:
        return ""
    return f", which is too soon for Redis: what it keeps grows for {LEVEL_S / 60:.3g}"


def endurance(data: dict[str, Any]) -> str:
    """The part of the page; empty when it was not measured."""
    found = data.get("endurance")
    if not found:
        return ""
    rows = []
    for name, each in found["series"].items():
        slope = each["slope"]
        rows.append(
            [
                f"{name}, {each['unit']}",
                number(each["first_third"], 1) if slope else NONE,
                number(each["last_third"], 1) if slope else NONE,
                f"{slope[0]:+.1f} ({slope[1]:+.1f} to {slope[2]:+.1f})" if slope else NONE,
                f"≤ {each['most']:g}",
                each["verdict"],
            ]
        )
    columns = ["", "first third", "last third", "% per hour (19 times in 20)", "flat", "verdict"]
    machine, version = data["machine"], data["versions"].get("penstock", "")
    filled = f"{found['judged_from_s'] / 60:.3g} minutes{_short(found)}"
    share = f", 70 % of the {found['found']} that were relayed in time just before" if found["found"] else ""
    return (
        f"### A long run: {found['seconds'] / 60:.3g} minutes\n\n"
        f"Measured on {machine['date']}: {machine['cores']} cores of {machine['cpu']}, penstock {version}. "
        f"{found['streams']} streams of 128 tokens as in S2{share}; {found['tok_s']:,} tokens/s, "
        f"{found['requests']:,} requests, {found['errors']} errors; {found['cores']} cores used, "
        f"client and engine included, others {found['other_cores']}. Medians of slices "
        f"of 10 s; thirds and slope (Theil and Sen's) are those of what followed the first {filled}."
        f"\n\n{table(columns, rows)}"
    )
