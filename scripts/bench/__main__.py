"""`python -m scripts.bench`: measures, prints tables, writes JSON and the marked section of docs/performance.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from scripts.bench import (
    batch,
    endurance,
    files,
    guard,
    idle,
    installs,
    lanes_report,
    long_report,
    machine,
    open_streams,
    report,
    vllm_serving,
)
from scripts.bench.gateways import DEFAULT_PEERS, GATEWAYS, PEERS, QUICK_PEERS, REPOSITORY, redis_program
from scripts.bench.groups import BenchError
from scripts.bench.options import FULL_PARTS, GATEWAY_PARTS, PARTS, QUICK_PARTS, Budget, Options
from scripts.bench.ramp import Ramp
from scripts.bench.scenarios import QUICK, SCENARIOS
from scripts.bench.sessions import guarded
from scripts.bench.targets import VLLM_STREAMS
from scripts.bench.transport import Transport

_PAGE = REPOSITORY / "docs/performance.md"
_RECORDED = REPOSITORY / "docs/bench-ratios.json"
_CACHE = REPOSITORY / ".penstock/bench"
_QUIET_CORES = 0.3
_QUIET_WAIT_S = 60.0
_PATIENCE_S, _QUICK_PATIENCE_S = 150.0, 20.0
_BUDGET_MIN, _QUICK_BUDGET_MIN = 43.0, 4.5


def main(argv: list[str]) -> int:
    """Runs the benchmark. Returns the exit status: 1 when something could not be measured, or a ratio got worse."""
    args = _parse(argv)
    data = json.loads(args.report.read_text(encoding="utf-8")) if args.report else _run(args)
    verdicts = guard.judge(guard.recorded(args.recorded), data)
    text = report.sections(data, guard.section(verdicts))
    long_run = long_report.endurance(data)
    print("\n" + text + (f"\n{long_run}\n" if long_run else ""))
    if args.page:
        _write_page(args.page_file, text, long_run, whole=set(data["options"].get("parts", PARTS)) != {"endurance"})
    regressed = args.guard and not args.record and _regressed(verdicts, data)
    if args.record:
        print(f"recorded in {args.recorded.name}: {'; '.join(guard.record(args.recorded, data)) or 'nothing'}")
    return 1 if data["failures"] or regressed else 0


def _write_page(page: Path, text: str, long_run: str, *, whole: bool) -> None:
    """The long run has a section of its own, which a run without it leaves alone, and the other way round."""
    if whole:
        report.write_page(page, text)
    if long_run:
        report.write_page(page, long_run, report.ENDURANCE_BEGIN, report.ENDURANCE_END)
    print(f"written: {page.name}")


def _regressed(verdicts: list[guard.Verdict], data: dict[str, Any]) -> bool:
    """Whether a ratio got worse by more than is let through; says which."""
    if not verdicts and guard.ratios(data):
        print("no ratios are recorded, so none can be called worse; make bench ARGS=--record records this run's")
    worse = [each for each in verdicts if each.regressed]
    for each in worse:
        print(f"REGRESSION: {each.text}")
    if worse:
        print(guard.HOW_TO_RECORD)
    return bool(worse)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, and writes all figures to `--out`."""
    options = _options(args)
    signal.signal(signal.SIGTERM, _terminated)  # so that everything that was started is stopped
    budget_min = args.minutes or (_QUICK_BUDGET_MIN if args.quick else _BUDGET_MIN)
    budget = Budget(60 * budget_min, _QUICK_PATIENCE_S if args.quick else _PATIENCE_S, _QUIET_CORES)
    work = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    try:
        files.raise_limit()
        data = measure(options, budget, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(data, indent=1), encoding="utf-8")
    print(f"all figures: {args.out}")
    return data


def _terminated(*_: object) -> NoReturn:
    sys.exit("terminated")


def measure(options: Options, budget: Budget, work: Path) -> dict[str, Any]:
    """Everything that the options ask for, repeat by repeat, so that a lack of time costs repeats and not figures."""
    names, missing = _present(options, budget)
    transport = Transport(options, budget, names, work)
    data: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": machine.versions(names, options.cache),
        "options": {name: value for name, value in dataclasses.asdict(options).items() if not isinstance(value, Path)},
        "missing": missing,
        "runs": transport.runs,
        "engine": transport.engine,
        "ramps": {},
        "failures": transport.failures,
        "skipped": budget.skipped,
        "idle": {},
        "serving": None,
        "lanes": None,
        "batch": None,
        "open_streams": None,
        "endurance": None,
    }
    _once(options, budget, work, names, data)
    serving = _serving(options, budget, work, data) if "vllm" in options.parts else None
    for repeat in range(options.repeat if {"transport", "vllm"} & set(options.parts) else 0):
        print(f"repeat {repeat + 1} of {options.repeat}", flush=True)
        if "transport" in options.parts:
            transport.measure(repeat, leave_s=serving.needs_s if serving is not None and not repeat else 0)
        if serving is not None:
            serving.measure(repeat)
    if serving is not None:
        data["serving"] = {"model": serving.model, "runs": serving.runs, "idle": serving.idle}
        data["failures"] |= {f"{name} serving the model": why for name, why in serving.failures.items()}
    return data


def _once(options: Options, budget: Budget, work: Path, names: list[str], data: dict[str, Any]) -> None:
    """The parts that are not repeated as a whole, before those that are, so that a lack of time costs repeats."""

    def ramps() -> None:
        ramp = Ramp(options, budget, names, work)
        data["ramps"] = ramp.steps
        ramp.measure()
        data["engine"].update(ramp.engine)
        data["failures"].update(ramp.failures)

    steps: dict[str, Callable[[], None]] = {
        "idle": lambda: data.update(idle=idle.measure(options, work)),
        "streams": lambda: data.update(open_streams=open_streams.measure(options, work)),
        "ramp": ramps,
        "batch": lambda: data.update(batch=batch.measure(options, work)),
        "lanes": lambda: data.update(lanes=lanes_report.measure(options, work)),
        "endurance": lambda: data.update(endurance=endurance.measure(options, budget, work)),
    }
    for name, step in steps.items():
        if name in options.parts:
            print(name, flush=True)
            budget.wait_quiet(_QUIET_WAIT_S)
            guarded(data["failures"], name, step)


def _serving(options: Options, budget: Budget, work: Path, data: dict[str, Any]) -> vllm_serving.VllmServing | None:
    if why := vllm_serving.missing():
        data["missing"]["vllm scenario"] = why
        return None
    try:
        return vllm_serving.VllmServing(options, budget, work)
    except BenchError as error:
        data["failures"]["vllm scenario"] = str(error)
        return None


def _present(options: Options, budget: Budget) -> tuple[list[str], dict[str, str]]:
    """The gateways that can be measured, and why the others cannot."""
    if not GATEWAY_PARTS & set(options.parts):
        return [], {}
    names, missing = [], {}
    for name in ("direct", "penstock", *options.peers):
        began_s = time.monotonic()
        if why := _absent(name, options):
            missing[name] = why
            print(f"missing: {name}: {why}", flush=True)
        else:
            names.append(name)
        budget.extend(time.monotonic() - began_s)
    return names, missing


def _absent(name: str, options: Options) -> str | None:
    gateway = GATEWAYS[name]
    for program in gateway.programs:
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if gateway.own_engine and redis_program() is None:
        return "no Redis or Valkey server is installed"
    return installs.ensure(options.cache, gateway.install, may_install=options.may_install) if gateway.install else None


def _options(args: argparse.Namespace) -> Options:
    quick: bool = args.quick
    return Options(
        parts=args.only or (QUICK_PARTS if quick else FULL_PARTS),
        peers=args.peers if args.peers is not None else (QUICK_PEERS if quick else DEFAULT_PEERS),
        scenarios=args.scenarios or (QUICK if quick else tuple(SCENARIOS)),
        all_scenarios=not args.scenarios,
        streams=VLLM_STREAMS[:1] if quick else VLLM_STREAMS,
        seconds=args.seconds or (5.0 if quick else 6.0),
        repeat=args.repeat or (1 if quick else 3),
        idle_s=10.0 if quick else 20.0,
        lanes_s=4.0 if quick else 15.0,
        tries=1 if quick else 2,
        max_other_cores=args.max_other,
        aof=args.aof,
        load_streams=args.streams,
        minutes=args.minutes,
        may_install=args.install,
        model=args.model,
        cache=args.cache,
    )


def _choice(known: tuple[str, ...]) -> Any:
    def read(text: str) -> tuple[str, ...]:
        names = known if text == "all" else () if text == "none" else tuple(text.split(","))
        if unknown := [name for name in names if name not in known]:
            msg = f"unknown: {', '.join(unknown)}; known: {', '.join(known)}"
            raise argparse.ArgumentTypeError(msg)
        return names

    return read


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="within five minutes: fewer peers and scenarios, one repeat")
    add("--only", type=_choice(PARTS), help=f"parts: {','.join(PARTS)}; all but endurance by default")
    add("--peers", type=_choice(PEERS), help=f"beside Penstock: all, none or some of {','.join(PEERS)}")
    add("--scenarios", type=_choice(tuple(SCENARIOS)), help=f"some of {','.join(SCENARIOS)}")
    add("--seconds", type=float, help="length of a window")
    add("--repeat", type=int, help="repeats; figures are their medians")
    add("--minutes", type=float, help="give up repeats so as to end within this time; the length of `endurance` (20)")
    add("--streams", type=int, help="of `streams` (4000), `endurance` (70 %% of the most in time); last step of `ramp`")
    add("--model", type=lambda text: Path(text).resolve(), help="folder of the model for the vLLM scenario")
    add("--max-other", type=float, default=0.7, help="measure again when others used more cores than this")
    add("--aof", action=argparse.BooleanOptionalAction, default=True, help="Redis writes its append-only file")
    add("--install", action=argparse.BooleanOptionalAction, default=True, help="install peers that are missing")
    add("--cache", type=lambda text: Path(text).resolve(), default=_CACHE, help="where peers are installed")
    add("--out", type=lambda text: Path(text).resolve(), default=_CACHE / "bench.json", help="all figures, JSON")
    add("--report", type=Path, metavar="JSON", help="measure nothing; show the figures of an earlier run's --out")
    add("--record", action="store_true", help="record this run's ratios as those that must not get worse")
    add("--guard", action=argparse.BooleanOptionalAction, help="fail when a ratio got worse (default: but for --quick)")
    add("--recorded", type=Path, default=_RECORDED, help="the file of the recorded ratios")
    add("--page-file", type=Path, default=_PAGE, help="the page that is written")
    add("--page", action=argparse.BooleanOptionalAction, help="write docs/performance.md (default: full runs do)")
    args = parser.parse_args(argv)
    if args.page is None:
        args.page = not (args.report or args.quick or args.only or args.scenarios or args.peers is not None)
    if args.guard is None:
        args.guard = not args.quick
    if args.record and args.quick:
        parser.error("a quick run has one repeat and short windows: nothing to record")
    return args


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
