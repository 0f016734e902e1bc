"""How a batch has ended: in words, and as an exit status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.batches.rates import count, span

_FAULTS_SHOWN = 20


def verdict(found: Mapping[str, Any]) -> int:
    """The exit status that a batch deserves which has ended: 0 when it is completed, and no row failed."""
    return 0 if found["status"] == "completed" and not found["request_counts"]["failed"] else 1


def summary(found: Mapping[str, Any]) -> list[str]:
    """How a batch has ended, and what was wrong with its input."""
    counts, usage = found["request_counts"], found.get("usage") or {}
    end = next(
        (found[f"{name}_at"] for name in ("completed", "failed", "expired", "cancelled") if found[f"{name}_at"]), 0
    )
    took = f" in {span(end - found['created_at'])}" if end else ""
    said = f"{found['id']} {found['status']}{took}"
    if counts["total"]:
        said += f": {count(counts['completed'])} of {count(counts['total'])} rows, {count(counts['failed'])} failed"
        said += f", {count(usage.get('input_tokens', 0))} tokens read, {count(usage.get('output_tokens', 0))} written"
    faults = (found.get("errors") or {}).get("data") or []
    lines = [_fault(fault) for fault in faults[:_FAULTS_SHOWN]]
    more = len(faults) - len(lines)
    return [said, *lines, *([f"… and {more} more: `penstock batch status {found['id']} --json`"] if more > 0 else [])]


def _fault(fault: Mapping[str, Any]) -> str:
    where = f"line {fault['line']}: " if fault.get("line") else ""
    param = f" ({fault['param']})" if fault.get("param") else ""
    return f"{where}{fault['code']}: {fault['message']}{param}"
