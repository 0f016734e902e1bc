"""What the engines do: first tokens, the time between tokens, throughput, caches."""

from __future__ import annotations

from scripts.dashboards.panels import Board, Panel, Query, Row, Variable, quantile, quantiles, rate, ratio

_E = 'model_name=~"$engine_model"'
_SPEC = "vllm:spec_decode_num"


def _histogram(name: str, title: str, says: str, runbook: str, unit: str = "s") -> Panel:
    return Panel(title, says, runbook, quantiles(name, _E), unit)


BOARD = Board(
    "penstock-llm",
    "LLM performance",
    "vLLM's own metrics beside ours: where the time of a request goes, and what the GPU makes of it.",
    [
        Row(
            "First token",
            [
                Panel(
                    "Where the time goes",
                    "What 95 % of requests spend at most: in our queue, in the engine's, in reading the "
                    "prompt; and all of it with the way to the client.",
                    "PenstockLatencyBurnFast",
                    [
                        Query(quantile(0.95, "penstock_queue_wait_seconds"), "queue"),
                        Query(quantile(0.95, "vllm:request_queue_time_seconds", _E), "engine's queue"),
                        Query(quantile(0.95, "vllm:request_prefill_time_seconds", _E), "prefill"),
                        Query(quantile(0.95, "penstock_time_to_first_token_seconds"), "first byte, in all"),
                    ],
                    "s",
                ),
                _histogram(
                    "vllm:time_to_first_token_seconds",
                    "First token in the engine",
                    "Without our queue.",
                    "PenstockLatencyBurnFast",
                ),
                Panel(
                    "Prompts",
                    "Length of prompts, and what of them had to be computed.",
                    "PenstockLatencyBurnFast",
                    [
                        *quantiles("vllm:request_prompt_tokens", _E, legend="prompt"),
                        Query(quantile(0.95, "vllm:request_prefill_kv_computed_tokens", _E), "computed 95 %"),
                    ],
                ),
            ],
        ),
        Row(
            "Tokens",
            [
                _histogram(
                    "vllm:inter_token_latency_seconds",
                    "Between tokens",
                    "As the engine makes them.",
                    "PenstockSlowRequests",
                ),
                _histogram(
                    "vllm:request_time_per_output_token_seconds",
                    "Per token, mean of each request",
                    "Slow requests stand out.",
                    "PenstockSlowRequests",
                ),
                Panel(
                    "Throughput",
                    "Tokens per second: read, made, and taken from the prefix cache.",
                    "PenstockEnginePreempts",
                    [
                        Query(rate("vllm:prompt_tokens_total", _E), "prompt"),
                        Query(rate("vllm:generation_tokens_total", _E), "generation"),
                        Query(rate("vllm:prompt_tokens_cached_total", _E), "cached"),
                    ],
                ),
                _histogram(
                    "vllm:request_generation_tokens", "Answers", "Length in tokens.", "PenstockSlowRequests", "short"
                ),
                _histogram(
                    "vllm:e2e_request_latency_seconds",
                    "Whole request in the engine",
                    "Without our queue.",
                    "PenstockSlowRequests",
                ),
                Panel(
                    "How generations end",
                    "By vLLM's finish reason; `abort` are ours: cancelled, handed back, pre-empted.",
                    "PenstockErrorsBurnSlow",
                    [Query(rate("vllm:request_success_total", _E, "finished_reason"), "{{finished_reason}}")],
                    "reqps",
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Scheduler and caches",
            [
                Panel(
                    "In the engine",
                    "Sequences that run, and that wait inside the engine: few, since workers claim only what "
                    "can start.",
                    "PenstockKvCacheHigh",
                    [
                        Query(f"sum by (instance) (vllm:num_requests_running{{{_E}}})", "running {{instance}}"),
                        Query(f"sum by (instance) (vllm:num_requests_waiting{{{_E}}})", "waiting {{instance}}"),
                    ],
                ),
                Panel(
                    "Tokens in a step",
                    "How well steps are filled.",
                    "PenstockSlowRequests",
                    quantiles("vllm:iteration_tokens_total", _E),
                ),
                Panel(
                    "KV cache",
                    "Share in use.",
                    "PenstockKvCacheFull",
                    [Query(f"max by (instance) (vllm:kv_cache_usage_perc{{{_E}}})", "{{instance}}")],
                    "percentunit",
                    steps=((0.85, "orange"), (0.95, "red")),
                    most=1,
                ),
                Panel(
                    "Thrown out",
                    "Sequences per second that were thrown out and computed again.",
                    "PenstockEnginePreempts",
                    [Query(rate("vllm:num_preemptions_total", _E, "instance"), "{{instance}}")],
                    "reqps",
                ),
                Panel(
                    "Prefix cache",
                    "Share of prompt tokens that were in the cache.",
                    "PenstockLatencyBurnSlow",
                    [
                        Query(
                            ratio(
                                rate("vllm:prefix_cache_hits_total", _E), rate("vllm:prefix_cache_queries_total", _E)
                            ),
                            "hits",
                        )
                    ],
                    "percentunit",
                    most=1,
                ),
                Panel(
                    "Speculative decoding",
                    "Share of the drafted tokens that were accepted. Only with `--speculative-config`.",
                    "PenstockSlowRequests",
                    [
                        Query(
                            ratio(rate(f"{_SPEC}_accepted_tokens_total", _E), rate(f"{_SPEC}_draft_tokens_total", _E)),
                            "accepted",
                        )
                    ],
                    "percentunit",
                    most=1,
                ),
            ],
        ),
        Row(
            "On the way to the client",
            [
                Panel(
                    "Flush",
                    "Round trip of a worker's flush to Redis: one for all its sequences.",
                    "PenstockQueuesUnread",
                    quantiles("penstock_flush_duration_seconds"),
                    "s",
                ),
                Panel(
                    "Frames in a flush",
                    "Frames of all sequences that one flush carries.",
                    "PenstockQueuesUnread",
                    [Query(ratio(rate("penstock_flushed_frames_total"), rate("penstock_flushes_total")), "frames")],
                ),
                Panel(
                    "Refused",
                    "Frames that were refused because another attempt owns the request, and requests that nobody "
                    "followed any more.",
                    "PenstockRedelivers",
                    [
                        Query(rate("penstock_fenced_appends_total"), "fenced"),
                        Query(rate("penstock_orphans_stopped_total"), "orphans"),
                        Query(rate("penstock_claims_total", by="outcome"), "claims: {{outcome}}"),
                    ],
                    "reqps",
                ),
            ],
        ),
    ],
    (Variable("engine_model", "Model", "label_values(vllm:num_requests_running, model_name)"),),
)
