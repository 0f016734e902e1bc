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
        (
            "vllm.entrypoints.serve.exception_handling.error_response",
            "create_error_response",
            ["message", "err_type", "status_code", "param"],
        ),
        (
            "vllm.entrypoints.anthropic.serving",
            "AnthropicServingMessages.message_stream_converter",
            ["self", "generator"],
        ),
        ("vllm.tool_parsers", "ToolParserManager.import_tool_parser", ["plugin_path"]),
        ("vllm.reasoning", "ReasoningParserManager.import_reasoning_parser", ["plugin_path"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM._run_output_handler", ["self"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.abort", ["self", "request_id", "internal"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.shutdown", ["self", "timeout"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.get_num_unfinished_requests", ["self"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.get_supported_tasks", ["self"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.reset_mm_cache", ["self"]),
        ("vllm.v1.engine.async_llm", "AsyncLLM.do_log_stats", ["self"]),
        ("vllm.v1.core.sched.utils", "check_stop", ["request", "max_model_len"]),
        ("vllm.v1.request", "RequestStatus.get_finished_reason", ["status"]),
        ("vllm.v1.engine.detokenizer", "IncrementalDetokenizer.from_new_request", ["tokenizer", "request"]),
        (
            "vllm.v1.engine.detokenizer",
            "IncrementalDetokenizer.update",
            ["self", "new_token_ids", "stop_terminated"],
        ),
        (
            "vllm.v1.engine.detokenizer",
            "IncrementalDetokenizer.get_next_output_text",
            ["self", "finished", "delta"],
        ),
        (
            "vllm.sampling_params",
            "SamplingParams.update_from_generation_config",
            ["self", "generation_config", "eos_token_id"],
        ),
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


def test_the_parameters_that_decide_about_continuation_are_there() -> None:
    resume = importlib.import_module("worker.engines.vllm_resume")
    fields = set(_symbol("vllm.sampling_params", "SamplingParams").__struct_fields__)
    assert {*resume._BEYOND_THE_TOKENS, *resume._GIVEN_AS_ZERO} <= fields
    assert {"stop", "detokenize", "max_tokens", "min_tokens", "output_text_buffer_length", "n", "output_kind"} <= fields
    assert {"renderer", "input_processor", "model_config", "vllm_config"} <= set(
        _symbol("vllm.engine.protocol", "EngineClient").__annotations__
    )


def test_prompts_say_where_their_media_stand_and_caches_can_forget_them() -> None:
    told = _symbol("vllm.inputs.engine", "MultiModalInput").__annotations__
    assert {"type", "prompt_token_ids", "mm_kwargs", "mm_hashes", "mm_placeholders"} <= set(told)
    assert {"offset", "length", "is_embed"} <= set(
        _symbol("vllm.multimodal.inputs", "PlaceholderRange").__annotations__
    )
    assert isinstance(
        inspect.getattr_static(_symbol("vllm.renderers.base", "BaseRenderer"), "mm_processor_cache"), property
    )
    assert callable(_symbol("vllm.multimodal.cache", "BaseMultiModalProcessorCache").invalidate)


def test_every_parameter_of_sampling_has_been_thought_about() -> None:
    """A new one may make the next token depend on more than the tokens before it: see vllm_resume."""
    resume = importlib.import_module("worker.engines.vllm_resume")
    harmless = {
        *("n", "repetition_penalty", "temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "ignore_eos"),
        *("max_tokens", "min_tokens", "detokenize", "skip_special_tokens", "spaces_between_special_tokens"),
        *("include_stop_str_in_output", "output_kind", "stream_interval", "skip_clone", "output_text_buffer_length"),
        *("_eos_token_id", "_all_stop_token_ids", "_bad_words_token_ids", "logit_bias", "allowed_token_ids"),
        *("skip_reading_prefix_cache", "flat_logprobs", "prompt_logprob_start", "routed_experts_prompt_start"),
        *("watermarking", "_watermarking_skipped", "prompt_logprob_token_ids"),
    }
    fields = set(_symbol("vllm.sampling_params", "SamplingParams").__struct_fields__)
    assert fields == harmless | {*resume._BEYOND_THE_TOKENS, *resume._GIVEN_AS_ZERO}


def test_a_dead_engine_can_be_told_by_its_attribute() -> None:
    assert isinstance(inspect.getattr_static(_symbol("vllm.v1.engine.async_llm", "AsyncLLM"), "errored"), property)
    assert issubclass(_symbol("vllm.v1.engine.exceptions", "EngineDeadError"), Exception)
    assert issubclass(_symbol("vllm.v1.engine.exceptions", "EngineGenerateError"), Exception)


def test_the_application_has_no_layers_that_belong_to_the_replicas() -> None:
    app = _symbol(f"{_LAUNCHERS}.app", "build_app")(
        _symbol("worker.engines.vllm_flags", "parse")([]), ("generate",), None
    )

    def layers() -> list[str]:
        found, layer = [], app.middleware_stack or app.build_middleware_stack()
        while layer is not None:
            found.append(type(layer).__name__)
            layer = getattr(layer, "app", None)
        return found

    assert {"CORSMiddleware", "PrometheusInstrumentatorMiddleware"} <= set(layers())
    _symbol("worker.engines.vllm_engine", "without_front_layers")(app)
    assert not {"CORSMiddleware", "PrometheusInstrumentatorMiddleware"} & set(layers())
    assert "ExceptionMiddleware" in layers()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], ["data-urls-only.invalid"]), (["--allowed-media-domains", "img.example.com"], ["img.example.com"])],
)
def test_vllm_fetches_no_media_unless_its_operator_says_from_where(flags: list[str], expected: list[str]) -> None:
    assert _symbol("worker.engines.vllm_flags", "parse")(flags).allowed_media_domains == expected
