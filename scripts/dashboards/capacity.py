"""How full everything is, before users feel it."""

from __future__ import annotations

from scripts.dashboards.panels import MODEL, Board, Panel, Query, Row, rate, ratio

_MODEL = 'model=~"$model"'
_READY = f'max by (model) (penstock_pool_workers{{state="ready",{_MODEL}}})'
_ARRIVALS = (
    f"(({rate('penstock_requests_admitted_total', _MODEL)} or vector(0)) "
    f"+ {rate('penstock_requests_turned_away_total', _MODEL)})"
)
"""What got in and what did not. Where nothing ever got in, that is no series; and all of it was turned away."""
_PACE = f"max by (model) (penstock_pool_worker_tokens_per_second{{{_MODEL}}})"

BOARD = Board(
    "penstock-capacity",
    "capacity and saturation",
    "Slots, KV cache, backlog in seconds, workers that are wanted and workers that are there.",
    [
        Row(
            "Saturation",
            [
                Panel(
                    "Slots taken",
                    "Share of the sequences that the workers can run at once. At 1 the next request waits.",
                    "PenstockStandardWaits",
                    [Query(ratio("sum(penstock_attempts_running)", "sum(penstock_worker_slots)"), "taken")],
                    "percentunit",
                    steps=((0.8, "orange"), (1, "red")),
                ),
                Panel(
                    "KV cache",
                    "Of each engine. Full: running requests are computed again.",
                    "PenstockKvCacheHigh",
                    [Query("max by (instance) (vllm:kv_cache_usage_perc)", "{{instance}}")],
                    "percentunit",
                    steps=((0.85, "orange"), (0.95, "red")),
                    most=1,
                ),
                Panel(
                    "Backlog",
                    "Seconds that the ready workers need for what waits, at the pace that was measured.",
                    "PenstockCannotScaleFurther",
                    [
                        Query(
                            f"sum by (model) (max by (lane, model) (penstock_queue_work_tokens{{{_MODEL}}})) "
                            f"/ ({_READY} * {_PACE} > 0)",
                            "{{model}}",
                        )
                    ],
                    "s",
                ),
                Panel(
                    "Load",
                    "Tokens per second that arrive, and that the ready workers take.",
                    "PenstockCannotScaleFurther",
                    [
                        Query(
                            f"max by (model) (penstock_pool_arriving_tokens_per_second{{{_MODEL}}})",
                            "arriving {{model}}",
                        ),
                        Query(f"{_READY} * {_PACE}", "capacity {{model}}"),
                    ],
                ),
                Panel(
                    "Running work",
                    "Tokens of what runs, from the mean cost of late.",
                    "PenstockStandardWaits",
                    [Query(f"max by (model) (penstock_pool_running_work_tokens{{{_MODEL}}})", "{{model}}")],
                ),
                Panel(
                    "Turned away",
                    "Share of what came that got no place, by reason.",
                    "PenstockTurnsAway",
                    [
                        Query(
                            rate("penstock_requests_turned_away_total", _MODEL, "reason")
                            + " / on () group_left () ("
                            + _ARRIVALS
                            + " > 0)",
                            "{{reason}}",
                        )
                    ],
                    "percentunit",
                ),
            ],
        ),
        Row(
            "Workers",
            [
                Panel(
                    "Wanted and ready",
                    "What the work asks for, and what is there.",
                    "PenstockCannotScaleFurther",
                    [
                        Query(f"max by (model) (penstock_wanted_workers{{{_MODEL}}})", "wanted {{model}}"),
                        Query(_READY, "ready {{model}}"),
                    ],
                ),
                Panel(
                    "By state",
                    "`lost`: their lease has lapsed.",
                    "PenstockNobodyWorks",
                    [Query(f"max by (model, state) (penstock_pool_workers{{{_MODEL}}})", "{{state}} {{model}}")],
                    stacked=True,
                ),
                Panel(
                    "Running",
                    "Requests that workers own, and slots.",
                    "PenstockStandardWaits",
                    [
                        Query(f"max by (model) (penstock_pool_running{{{_MODEL}}})", "running {{model}}"),
                        Query("sum(penstock_worker_slots)", "slots"),
                    ],
                ),
                Panel(
                    "Deaths",
                    "Workers declared dead, that gave themselves up, or found themselves declared dead.",
                    "PenstockWorkersDie",
                    [
                        Query(rate("penstock_workers_condemned_total"), "condemned"),
                        Query(rate("penstock_worker_stalls_total"), "stalled"),
                        Query(rate("penstock_worker_renewals_total"), "renewed"),
                    ],
                    "reqps",
                ),
                Panel(
                    "Start",
                    "How long each engine took to start: how early more must be wanted.",
                    "PenstockCannotScaleFurther",
                    [Query("max by (instance) (penstock_model_load_seconds)", "{{instance}}")],
                    "s",
                ),
                Panel(
                    "Engines",
                    "1 while an engine serves.",
                    "PenstockNobodyWorks",
                    [Query("min by (instance) (penstock_engine_up)", "{{instance}}")],
                ),
            ],
        ),
        Row(
            "Redis",
            [
                Panel(
                    "Memory",
                    "Share of `maxmemory`. Above 80 % new requests are refused.",
                    "PenstockRedisMemory",
                    [
                        Query(
                            ratio("max(penstock_redis_memory_used_bytes)", "max(penstock_redis_memory_max_bytes)"),
                            "used",
                        )
                    ],
                    "percentunit",
                    steps=((0.7, "orange"), (0.8, "red")),
                    wide=12,
                ),
                Panel(
                    "Processor",
                    "Cores; it runs commands on one.",
                    "PenstockQueuesUnread",
                    [Query("max(rate(penstock_redis_cpu_seconds_total[$__rate_interval]))", "used")],
                    steps=((0.7, "orange"), (0.9, "red")),
                    wide=12,
                ),
            ],
        ),
    ],
    (MODEL,),
)
