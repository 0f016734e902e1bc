"""What Penstock uses of the inside of vLLM, none of which is promised to stay.

When one of these fails, read `worker/engines/vllm_*.py` against the new version before the pin moves.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from typing import Any

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

_LAUNCHERS = "vllm.entrypoints.launchers"


def _symbol(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def test_the_version_is_the_one_that_this_was_written_for() -> None:
    assert _symbol("vllm", "__version__").startswith("0.32.")


@pytest.mark.parametrize(
    ("module", "name", "parameters"),
    [
        (f"{_LAUNCHERS}.cli_args", "make_arg_parser", ["parser"]),
        (f"{_LAUNCHERS}.cli_args", "validate_parsed_serve_args", ["args"]),
        (f"{_LAUNCHERS}.cli_args", "propagate_flash_late_interaction", ["args", "engine_args"]),
        ("vllm.logger", "configure_logging_from_args", ["args"]),
        (f"{_LAUNCHERS}.app", "build_app", ["args", "supported_tasks", "model_config"]),
        (
            f"{_LAUNCHERS}.api_server.app_state",
            "init_app_state",
            ["engine_client", "state", "args", "supported_tasks"],
        ),
        ("vllm.tool_parsers", "ToolParserManager.import_tool_parser", ["plugin_path"]),
        ("vllm.reasoning", "ReasoningParserManager.import_reasoning_parser", ["plugin_path"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.abort", ["self", "request_id", "internal"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.shutdown", ["self", "timeout"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.get_num_unfinished_requests", ["self"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.get_supported_tasks", ["self"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.reset_mm_cache", ["self"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.do_log_stats", ["self"]),
    ],
)
def test_a_symbol_has_the_parameters_that_are_used(module: str, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(_symbol(module, name)).parameters) == parameters


@pytest.mark.parametrize(
    ("module", "name", "used"),
    [
        ("vllm.engine.arg_utils", "AsyncEngineArgs.from_cli_args", {"args"}),
        ("vllm.engine.arg_utils", "AsyncEngineArgs.create_engine_config", {"usage_context"}),
        (
            "vllm.v1.engine.async_llm",
            "AsyncLLM.from_vllm_config",
            {
                *("vllm_config", "usage_context", "enable_log_requests"),
                *("aggregate_engine_logging", "disable_log_stats"),
            },
        ),
        ("vllm.engine.protocol", "EngineClient.generate", {"prompt", "sampling_params", "request_id", "priority"}),
        ("vllm.engine.protocol", "EngineClient.encode", {"prompt", "pooling_params", "request_id", "priority"}),
    ],
)
def test_a_symbol_still_takes_what_it_is_given(module: str, name: str, used: set[str]) -> None:
    assert used <= set(inspect.signature(_symbol(module, name)).parameters)


def test_outputs_carry_what_the_journal_needs() -> None:
    outputs = importlib.import_module("vllm.outputs")
    request = set(inspect.signature(outputs.RequestOutput).parameters)
    choice = set(inspect.signature(outputs.CompletionOutput).parameters)
    assert {"prompt_token_ids", "outputs"} <= request
    assert {"index", "text", "token_ids", "finish_reason"} <= choice
    assert {kind.name for kind in _symbol("vllm.sampling_params", "RequestOutputKind")} == {
        *("CUMULATIVE", "DELTA", "FINAL_ONLY")
    }


def test_a_dead_engine_can_be_told_by_its_attribute() -> None:
    assert isinstance(inspect.getattr_static(_symbol("vllm.v1.engine.async_llm", "AsyncLLM"), "errored"), property)
    assert issubclass(_symbol("vllm.v1.engine.exceptions", "EngineDeadError"), Exception)
    assert issubclass(_symbol("vllm.v1.engine.exceptions", "EngineGenerateError"), Exception)
