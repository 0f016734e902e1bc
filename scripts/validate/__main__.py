"""Runs the checks of checks.py: all of them, or with `--quick` those whose tools are in the development environment."""

from __future__ import annotations

import argparse
import platform
import sys

from scripts.validate.checks import CHECKS, Check, FoundError
from scripts.validate.tools import MissingToolError


def main(argv: list[str]) -> int:
    """Returns 0 when every check ran and found nothing."""
    parser = argparse.ArgumentParser(prog="make validate ARGS=…", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="what `make lint` runs")
    parser.add_argument("names", nargs="*", help=f"only these: {', '.join(check.name for check in CHECKS)}")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - {check.name for check in CHECKS}:
        parser.error(f"there is no check {min(unknown)!r}")
    wanted = [check for check in CHECKS if check.name in options.names or not options.names]
    if options.quick:
        wanted = [check for check in wanted if check.by_pip]
    # A list, not a generator: all of them run, whatever the first finds.
    return int(not all([_passes(check, quick=options.quick) for check in wanted]))  # noqa: C419 - as above


def _passes(check: Check, *, quick: bool) -> bool:
    try:
        print(f"  ok      {check.name:<11} {check.run()}", flush=True)
    except FoundError as error:
        print(f"  FAILED  {check.name:<11}\n{error}", flush=True)
    except MissingToolError as error:
        if quick and (sys.platform != "linux" or platform.machine() != "x86_64"):
            print(f"  skipped {check.name:<11} {error}", flush=True)  # its wheel is for Linux on x86-64 only
            return True
        print(f"  MISSING {check.name:<11} {error}", flush=True)
    else:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
