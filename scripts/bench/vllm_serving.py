"""The vLLM scenario: one model served by vLLM's own server and by Penstock, with the same flags on the same cores.

The engine core is the same program in both, in a process of its own, so its CPU is counted apart. What is compared is
everything around it: HTTP, tokenizing, detokenizing, rendering, and with Penstock the queue.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scripts.bench.client import Run, load, other_cores
from scripts.bench.figures import per_mtok
from scripts.bench.gateways import REPOSITORY, Place, start_redis, start_replica
from scripts.bench.groups import BenchError, Group, free_ports
from scripts.bench.idle import shares_percent
from scripts.bench.options import Budget, Options
from scripts.bench.scenarios import PACED

ENGINE_CORE = r"VLLM::(EngineCore|Worker)"  # on CPUs the core has a worker process below it
_MODEL = "bench"
_TOKENS = 128
_PROMPT_CHARS = 120
_READY_LIMIT_S = 120.0
_IDLE_S = 6.0
_WARMUP_S = 3.0
_SESSION_S = 45.0
_FLAGS = ("--max-model-len", "1024", "--max-num-seqs", "128", "--enforce-eager", "--disable-log-stats")
_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
_CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def model_folder(options: Options) -> tuple[Path, str]:
    """The model to serve and what to call it in the report. Raises BenchError."""
    if options.model is not None:
        return options.model, options.model.name
    demo = REPOSITORY / "models/demo"
    if (demo / "config.json").exists():
        return demo, "the demo model"
    folder = options.cache / "tiny-llama"
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "scripts.bench.tiny_model", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=REPOSITORY)
        except subprocess.SubprocessError as error:
            msg = f"the tiny model could not be made: {error}"
            raise BenchError(msg) from error
    return folder, "a tiny random Llama"


def missing() -> str | None:
    """Why the scenario cannot run here; None when it can."""
    return None if importlib.util.find_spec("vllm") else "vLLM is not installed"


class VllmServing:
    """Measures both ways to serve."""

    def __init__(self, options: Options, budget: Budget, work: Path) -> None:
        self._options = options
        self._budget = budget
        self._work = work
        self._folder, self.model = model_folder(options)
        self.runs: dict[str, dict[str, list[Run]]] = {}
        self.idle: dict[str, list[dict[str, float]]] = {}
        self.failures: dict[str, str] = {}

    @property
    def needs_s(self) -> float:
        """About how long one repeat takes."""
        return 2 * (_SESSION_S + len(self._options.streams) * (self._options.seconds + _WARMUP_S + 5))

    def measure(self, repeat: int) -> None:
        """One repeat of both."""
        ways: dict[str, Callable[[Group, Place], None]] = {"vllm": self._start_vllm, "penstock": self._start_penstock}
        for name, start in ways.items():
            if not self._budget.allows(f"{name} serving the model, repeat {repeat + 1}", self.needs_s / 2):
                continue
            try:
                self._session(name, start)
            except BenchError as error:
                print(f"  {name} serving the model: {error}", flush=True)
                self.failures[name] = str(error)

    def _session(self, name: str, start: Callable[[Group, Place], None]) -> None:
        port, backend, spare = free_ports(3)
        place = Place(self._work, self._options.cache, port, backend, spare, PACED, aof=self._options.aof)
        group = Group(self._work, f"model-{name}")
        try:
            start(group, place)
            ready = "/health" if name == "vllm" else "/readyz"
            group.wait_ready(f"http://127.0.0.1:{port}{ready}", _READY_LIMIT_S)
            time.sleep(2)
            self.idle.setdefault(name, []).append(shares_percent(group, _IDLE_S, apart=ENGINE_CORE))
            for streams in self._options.streams:
                self._budget.wait_quiet(5)
                run = self._load(port, group, streams)
                self.runs.setdefault(name, {}).setdefault(str(streams), []).append(run)
                report_run(name, streams, run)
        finally:
            group.stop()

    def _load(self, port: int, group: Group, streams: int) -> Run:
        flags = ["--model", _MODEL, "--count", "usage", "--concurrency", str(streams), "--tokens", str(_TOKENS)]
        flags += ["--prompt-chars", str(_PROMPT_CHARS), "--apart", ENGINE_CORE, "--ramp", "1"]
        run = load(port, flags, warmup_s=_WARMUP_S, seconds=self._options.seconds, groups={"": group})
        cores = [role for role in run["cpu_s"] if role.endswith(":apart")]
        if not cores:
            msg = "no process of the engine core was found, so its CPU cannot be told apart"
            raise BenchError(msg)
        run["cpu_engine_core_s"] = sum(run["cpu_s"].pop(role) for role in cores)
        return run

    def _engine_flags(self) -> list[str]:
        return ["--model", str(self._folder), "--served-model-name", _MODEL, *_FLAGS]

    def _env(self) -> dict[str, str]:
        return _ENV if shutil.which("nvidia-smi") else _ENV | _CPU_ENV

    def _start_vllm(self, group: Group, place: Place) -> None:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *self._engine_flags()]
        command += ["--host", "127.0.0.1", "--port", str(place.port), "--disable-uvicorn-access-log"]
        group.start("server", command, self._env())

    def _start_penstock(self, group: Group, place: Place) -> None:
        env = {**self._env(), **start_redis(group, place)}
        command = [sys.executable, "-m", "worker", "--engine", "vllm", "--", *self._engine_flags()]
        group.start("worker", command, env)
        start_replica(group, place, env)


def report_run(name: str, streams: int, run: Run) -> None:
    """One line on the terminal, while the benchmark runs."""
    cost = per_mtok(sum(run["cpu_s"].values()), run["tokens"])
    print(
        f"  {name}, {streams} streams: {run['tok_s']} tok/s, TTFT p50 {run['ttft_ms']['p50']} ms, "
        f"around the engine core {cost:.0f} CPU-s/Mtok {run['cpu_s']}, "
        f"errors {run['errors']} {run['error_kinds'] or ''}, others used {other_cores(run):.2f} cores",
        flush=True,
    )
