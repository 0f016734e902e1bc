"""One gateway with its engine, running for as long as something is measured through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scripts.bench.client import Run, load, other_cores
from scripts.bench.figures import per_mtok
from scripts.bench.gateways import GATEWAYS, Place, run_up, start_backend
from scripts.bench.groups import BenchError, Group, free_ports
from scripts.bench.options import Budget, Options
from scripts.bench.scenarios import Pacing, Scenario

Groups = dict[str, Group]
"""By the prefix of their roles: `_` for what is not counted."""
_QUIET_MOST_S = 8.0


@contextmanager
def opened(
    name: str, pacing: Pacing, options: Options, work: Path, env: dict[str, str] | None = None
) -> Iterator[tuple[int, Groups]]:
    """Engine and gateway while the block runs: the port and the groups. `env`: Penstock's. Raises BenchError."""
    gateway = GATEWAYS[name]
    port, backend, spare = free_ports(3)
    place = Place(work, options.cache, port, backend, spare, pacing, aof=options.aof, env=env or {})
    groups: Groups = {}
    with ExitStack() as stack:
        if not gateway.own_engine:
            groups["_"] = start_backend(place)
            stack.callback(groups["_"].stop)
        groups[""] = run_up(gateway, place)
        stack.callback(groups[""].stop)
        time.sleep(gateway.settle_s)
        yield port if groups[""].processes else backend, groups


def quiet_load(port: int, groups: Groups, scenario: Scenario, seconds: float, budget: Budget) -> Run:
    """One run of a scenario, once others leave the machine alone or patience ends. Raises BenchError."""
    budget.wait_quiet(_QUIET_MOST_S)
    return load(port, scenario.shape_flags(), warmup_s=scenario.warmup_s, seconds=seconds, groups=groups)


def guarded(failures: dict[str, str], name: str, measure: Callable[[], None]) -> None:
    """Measures; what could not be measured is noted, and the others go on."""
    try:
        measure()
    except BenchError as error:
        print(f"  {name}: {error}", flush=True)
        failures[name] = str(error)


def report_run(scenario: str, name: str, run: Run) -> None:
    """One line on the terminal, while the benchmark runs."""
    print(
        f"  {scenario} {name}: {run['tok_s']} tok/s, {run['req_s']} req/s, TTFT p50 {run['ttft_ms']['p50']} ms, "
        f"{per_mtok(sum(run['cpu_s'].values()), run['tokens']):.1f} CPU-s/Mtok, errors {run['errors']} "
        f"{run['error_kinds'] or ''}, others used {other_cores(run):.2f} cores",
        flush=True,
    )
