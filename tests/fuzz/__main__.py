"""`python -m tests.fuzz`: schemathesis against the OpenAPI document of replicas that run. `make fuzz` is this."""

from __future__ import annotations

import argparse
import secrets
import sys

from tests.fuzz.fuzzing import LONG, findings


def main(argv: list[str]) -> int:
    """Runs it and prints what was found. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="a run's own, to have it again; a new one without")
    options = parser.parse_args(argv)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    found, summary = findings((*LONG, "--max-time", str(int(options.minutes * 60)), "--seed", str(seed)))
    verdict = f"\nseed {seed}: {len(found)} findings\n"
    sys.stdout.write("\n".join((summary, verdict, *found, "")))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
