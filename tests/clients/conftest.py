"""Two vLLM engines for all files here, the programs of `programs`, and the environment in which they run.

That environment, `.venv-clients`, is made by `make test` (libraries) and `make clients` (load tools as well): the
libraries do not resolve beside vLLM.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import tiny_models
from tests.support.model_parts import ROOT
from tests.support.stack import Stack, poll_until_ready, running_stack

ALL = os.environ.get("PENSTOCK_CLIENTS") == "all"
"""Also what takes minutes: `make clients`."""
START_S = 400.0
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}
CHAT_FLAGS = (
    *("--served-model-name", "scripted", "--enforce-eager", "--max-num-seqs", "8"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"),
)
POOLING_FLAGS = ("--served-model-name", "vectors", "--enforce-eager", "--max-num-seqs", "8", *tiny_models.POOLING_FLAGS)
BIN = ROOT / ".venv-clients" / "bin"
PROGRAMS = ("with_langchain", "with_llamaindex", "with_agents", "with_pydantic_ai", "with_open_webui")
_MOST_S = 200
Seen = Callable[[str], Any]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes runs in `make clients` only."""
    late = [] if ALL else [item for item in items if item.get_closest_marker("load")]
    items[:] = [item for item in items if item not in late]
    config.hook.pytest_deselected(items=late)


@pytest.fixture(scope="package")
def stack(scripted_model: Path, tiny_model: Path) -> Iterator[Stack]:
    """A worker with a model that says a script, one with a model for vectors; a replica, and one with keys."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    with running_stack() as started:
        for model, flags in ((scripted_model, CHAT_FLAGS), (tiny_model, POOLING_FLAGS)):
            started.worker("--model", str(model), "--", *flags, engine="vllm", ready_s=0, env=ENV)
        for worker in started.workers:
            poll_until_ready(worker, f"http://127.0.0.1:{worker.ops_port}/readyz", START_S)
        started.api()
        started.api(ready=False, env={"PENSTOCK_API_KEYS": "alpha,beta"})
        yield started


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.apis[0].url, timeout=60) as client:
        yield client


@pytest.fixture(scope="package")
def clients() -> Path:
    """Where the programs of the clients' environment lie. That there is none is a failure, never a silent skip."""
    if not (BIN / "python").exists():
        pytest.fail("there is no .venv-clients: run `make test` or `make clients` once")
    return BIN


def client_env() -> dict[str, str]:
    """The environment of a client: nothing of ours, nothing that reaches out."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON", "PENSTOCK_"))
    }
    return {**kept, "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@pytest.fixture(scope="package")
def seen(stack: Stack, clients: Path) -> Iterator[Seen]:
    """What a program of `programs` has seen, by its name. All of them are started at once."""
    base = f"{stack.apis[0].url}/v1"
    with tempfile.TemporaryDirectory() as folder:
        running = {name: _started(clients, name, base, Path(folder)) for name in PROGRAMS}
        known: dict[str, Any] = {}

        def told(name: str) -> Any:
            if name not in known:
                status = running[name].wait(_MOST_S)
                output = (Path(folder) / name).read_text()
                assert status == 0, f"{name}: {(Path(folder) / f'{name}.err').read_text()[-6000:]}"
                known[name] = json.loads(output.splitlines()[-1])
            return known[name]

        yield told
        for process in running.values():
            process.kill()
            process.wait()


def _started(clients: Path, name: str, base: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [str(clients / "python"), str(Path(__file__).parent / "programs" / f"{name}.py"), base]
    with (folder / name).open("wb") as output, (folder / f"{name}.err").open("wb") as errors:
        return subprocess.Popen(command, stdout=output, stderr=errors, env=client_env(), cwd=folder)
