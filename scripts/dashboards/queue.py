"""What waits, for how long, and how fairly."""

from __future__ import annotations

from scripts.dashboards.panels import LANE, MODEL, RATE, Board, Panel, Query, Row, quantiles, rate

_WHERE = 'lane=~"$lane",model=~"$model"'


def _read(name: str, title: str, says: str, runbook: str, unit: str = "short") -> Panel:
    """A number that all replicas read alike."""
    return Panel(
        title, says, runbook, [Query(f"max by (lane, model) ({name}{{{_WHERE}}})", "{{lane}} {{model}}")], unit
    )


BOARD = Board(
    "penstock-queue",
    "queue and lanes",
    "Lanes: depth, age, arrivals and starts, fairness; what was given up or given to another worker.",
    [
        Row(
            "Waiting",
            [
                _read(
                    "penstock_queue_oldest_age_seconds",
                    "Oldest",
                    "How long the first of each lane has waited.",
                    "PenstockInteractiveWaits",
                    "s",
                ),
                _read(
                    "penstock_queue_depth",
                    "Depth",
                    "Requests that wait. They differ a hundredfold: see the tokens.",
                    "PenstockQueueDeep",
                ),
                _read(
                    "penstock_queue_work_tokens", "Work", "Tokens that what waits will cost.", "PenstockStandardWaits"
                ),
                Panel(
                    "Wait before the start",
                    "From admission to the first claim.",
                    "PenstockLatencyBurnFast",
                    quantiles("penstock_queue_wait_seconds", _WHERE, "lane", "{{lane}}"),
                    "s",
                ),
                _read(
                    "penstock_queue_drain_per_second",
                    "Drain",
                    "Requests per second by which it drained when it last had a backlog; `Retry-After` comes from it.",
                    "PenstockCannotScaleFurther",
                    "reqps",
                ),
                _read(
                    "penstock_queue_body_bytes",
                    "Bodies",
                    "Bytes of the bodies that wait: Redis keeps them.",
                    "PenstockRedisMemory",
                    "bytes",
                ),
            ],
        ),
        Row(
            "In and out",
            [
                Panel(
                    "Arrivals",
                    "Requests put on the queue, per second.",
                    "PenstockTurnsAway",
                    [Query(rate("penstock_requests_admitted_total", _WHERE, "lane"), "{{lane}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Starts",
                    "First claims per second. Below the arrivals for long: the queue grows.",
                    "PenstockCannotScaleFurther",
                    [Query(rate("penstock_queue_wait_seconds_count", _WHERE, "lane"), "{{lane}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Ends",
                    "Attempts that ended on workers, by outcome.",
                    "PenstockErrorsBurnFast",
                    [Query(rate("penstock_attempts_total", 'lane=~"$lane"', "outcome"), "{{outcome}}")],
                    "reqps",
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Fairness",
            [
                _read(
                    "penstock_lane_fairness_ratio",
                    "Fairness",
                    "Jain's index over the tenants that wait; 1 is fair. Absent below two of them.",
                    "PenstockUnfair",
                    "percentunit",
                ),
                _read(
                    "penstock_queue_tenants",
                    "Tenants that wait",
                    "One tenant and a deep queue: a flood, which hurts nobody else.",
                    "PenstockUnfair",
                ),
                Panel(
                    "Out of turn",
                    "Requests per second that went first because of their age: a quarter of the starts at most. "
                    "For long: the lane's weight is too small.",
                    "PenstockBatchWaits",
                    [
                        Query(
                            f"max by (lane, model) (rate(penstock_lane_aged_picks_total{{{_WHERE}}}[{RATE}]))",
                            "{{lane}} {{model}}",
                        )
                    ],
                    "reqps",
                ),
                _read("penstock_lane_paused", "Paused", "1 while nothing new is started.", "PenstockLanePaused"),
                _read("penstock_lane_draining", "Draining", "1 while nothing new is let in.", "PenstockLanePaused"),
                Panel(
                    "Pre-emptions",
                    "Batch attempts that gave their slot to an interactive request.",
                    "PenstockBatchWaits",
                    [Query(rate("penstock_preemptions_total", by="outcome"), "{{outcome}}")],
                    "reqps",
                ),
            ],
        ),
        Row(
            "What went wrong",
            [
                _read(
                    "penstock_queue_retrying",
                    "Started before",
                    "Requests that wait for another worker.",
                    "PenstockRedelivers",
                ),
                Panel(
                    "Given to another worker",
                    "Requests taken from dead workers, per second.",
                    "PenstockRedelivers",
                    [Query(rate("penstock_requests_requeued_total", by="outcome"), "{{outcome}}")],
                    "reqps",
                ),
                Panel(
                    "Given up",
                    "Dead letters that are kept; quarantine beside them.",
                    "PenstockDeadLetters",
                    [
                        Query('max by (model) (penstock_pool_dead_letters{model=~"$model"})', "dead letters {{model}}"),
                        Query(
                            'max by (model) (penstock_queue_depth{lane="quarantine",model=~"$model"})',
                            "quarantine {{model}}",
                        ),
                        Query(rate("penstock_suspects_released_total"), "let out"),
                    ],
                ),
                Panel(
                    "Deadlines",
                    "Deadlines that were found passed.",
                    "PenstockErrorsBurnSlow",
                    [Query(rate("penstock_deadlines_swept_total", by="outcome"), "{{outcome}}")],
                    "reqps",
                ),
                Panel(
                    "Continued",
                    "Attempts at requests of which something was visible, by how they went on.",
                    "PenstockWorkersDie",
                    [Query(rate("penstock_resumes_total", by="policy"), "{{policy}}")],
                    "reqps",
                ),
                Panel(
                    "Brought back",
                    "What workers gave back after Redis had lost it, and what they found to be theirs.",
                    "PenstockQueuesUnread",
                    [
                        Query(rate("penstock_restores_total", by="outcome"), "restored: {{outcome}}"),
                        Query(rate("penstock_reconciled_total"), "reconciled"),
                    ],
                    "reqps",
                ),
            ],
        ),
    ],
    (LANE, MODEL),
)
