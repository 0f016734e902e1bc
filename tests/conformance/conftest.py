"""Engines that several files cut streams of, and an environment that ends with the test that changed it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.tiny_models import model_folder
from worker.__main__ import load_engine
from worker.engines.base import Engine
from worker.settings import WorkerSettings

RESUMED = "resumed"
"""Of every model here: Anthropic's requests must name one."""
_FLAGS = ("--enforce-eager", "--max-num-seqs", "4", "--served-model-name", RESUMED)
_PARSERS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")
# warnings of vLLM and torch are theirs; loading takes a minute or two on a small machine
_VLLM: Any = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]
SIM, DEMO, SCRIPTED = "sim", pytest.param("demo", marks=_VLLM), pytest.param("scripted", marks=_VLLM)


def _restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """An engine that is created and never started leaves its defaults behind; later tests start processes."""
    yield from _restored()


@pytest.fixture(autouse=True, scope="module")
def environment_of_the_module() -> Iterator[None]:
    """The same for engines that a module's tests share: other modules run in this process, too."""
    yield from _restored()


@pytest.fixture(autouse=True, scope="package")
def environment_of_the_package() -> Iterator[None]:
    """The same for the engines that the modules share."""
    yield from _restored()


def _model(request: pytest.FixtureRequest) -> str:
    if request.param == "sim":
        return "sim"
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    if request.param == "demo":
        return str(model_folder(request.getfixturevalue("tmp_path_factory").mktemp("model")))
    return str(request.getfixturevalue("scripted_model"))


@pytest_asyncio.fixture(loop_scope="package", scope="package", params=[SIM, DEMO, SCRIPTED])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """An engine that runs in this process. Tests of it run in a loop of the same scope."""
    kind = request.param
    flags = [] if kind == "sim" else [*_FLAGS, *(_PARSERS if kind == "scripted" else ())]
    settings = WorkerSettings(engine="sim" if kind == "sim" else "vllm", model=_model(request))
    engine = load_engine(settings, flags)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Of the engine: sim, demo, or scripted."""
    return str(request.node.callspec.params["engine"])


@pytest.fixture
def vllm(engine: Engine) -> Engine:
    if engine.name != "vllm":
        pytest.skip("only vLLM knows this parameter")
    return engine
