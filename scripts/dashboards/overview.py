"""Is all well, for users, now and over the month?"""

from __future__ import annotations

from scripts.dashboards.panels import Board, Panel, Query, Row, quantile, quantiles, rate

_BURN = "How many times faster than allowed the budget is used up; 1 is just as fast as [promised](docs/slo.md). "
_MONTH_BAD = "sum_over_time(penstock:requests_bad:ratio5m[30d])"


def _stat(title: str, says: str, runbook: str, expr: str, unit: str, *steps: tuple[float, str]) -> Panel:
    return Panel(title, says, runbook, [Query(expr)], unit, kind="stat", steps=steps, wide=4, high=5)


BOARD = Board(
    "penstock-overview",
    "overview and SLO",
    "What users feel, and whether the promises of docs/slo.md are kept.",
    [
        Row(
            "Now",
            [
                _stat(
                    "Requests",
                    "Requests that ended, per second, however.",
                    "PenstockNoReplica",
                    rate("penstock_requests_finished_total"),
                    "reqps",
                ),
                _stat(
                    "Failing",
                    "Share of the requests of the last five minutes that ended badly, by our fault.",
                    "PenstockErrorsBurnFast",
                    "penstock:requests_bad:ratio5m",
                    "percentunit",
                    (0.005, "orange"),
                    (0.05, "red"),
                ),
                _stat(
                    "First byte, interactive",
                    "What 95 % of interactive requests wait at most for their first byte.",
                    "PenstockLatencyBurnFast",
                    quantile(0.95, "penstock_time_to_first_token_seconds", 'lane="interactive"'),
                    "s",
                    (1, "orange"),
                    (2, "red"),
                ),
                _stat(
                    "Waiting",
                    "Requests in all lanes.",
                    "PenstockQueueDeep",
                    "sum(max by (lane, model) (penstock_queue_depth))",
                    "short",
                    (50, "orange"),
                ),
                _stat(
                    "Ready workers",
                    "Of all models.",
                    "PenstockNobodyWorks",
                    'sum(max by (model) (penstock_pool_workers{state="ready"}))',
                    "short",
                ),
                _stat(
                    "Alerts",
                    "Alerts that fire; the table below names them.",
                    "PenstockErrorsBurnFast",
                    'count(ALERTS{alertstate="firing"}) or vector(0)',
                    "short",
                    (1, "red"),
                ),
            ],
        ),
        Row(
            "Promises",
            [
                Panel(
                    "Error budget left, 30 days",
                    "What is left of the 0.5 % that may end badly, weighed by time. Below 0 the promise is broken.",
                    "PenstockErrorsBurnSlow",
                    [
                        Query(
                            f"1 - {_MONTH_BAD} / (count_over_time(penstock:requests_bad:ratio5m[30d]) * 0.005)",
                            "errors",
                        )
                    ],
                    "percentunit",
                    kind="stat",
                    steps=(),
                    wide=6,
                    least=None,
                ),
                Panel(
                    "How fast the error budget burns",
                    _BURN + "Pages above 14.4 (an hour) and 6 (six hours).",
                    "PenstockErrorsBurnFast",
                    [
                        Query("penstock:requests_bad:ratio1h / 0.005", "1 h"),
                        Query("penstock:requests_bad:ratio6h / 0.005", "6 h"),
                        Query("penstock:requests_bad:ratio3d / 0.005", "3 d"),
                    ],
                    steps=((6, "orange"), (14.4, "red")),
                    wide=9,
                ),
                Panel(
                    "How fast the latency budget burns",
                    _BURN + "By lane, over an hour and six.",
                    "PenstockLatencyBurnFast",
                    [
                        Query("penstock:first_byte_late:ratio1h / 0.01", "{{lane}} 1 h"),
                        Query("penstock:first_byte_late:ratio6h / 0.01", "{{lane}} 6 h"),
                    ],
                    steps=((6, "orange"), (14.4, "red")),
                    wide=9,
                ),
            ],
        ),
        Row(
            "What users feel",
            [
                Panel(
                    "How requests end",
                    "Per second, by outcome. Everything but `succeeded` deserves a look.",
                    "PenstockErrorsBurnFast",
                    [Query(rate("penstock_requests_finished_total", by="outcome"), "{{outcome}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "First byte",
                    "From acceptance at the replica to the first byte, the wait in the queue included.",
                    "PenstockLatencyBurnFast",
                    quantiles("penstock_time_to_first_token_seconds", by="lane", legend="{{lane}}"),
                    "s",
                ),
                Panel(
                    "Whole request",
                    "From acceptance to the end of the answer.",
                    "PenstockSlowRequests",
                    quantiles("penstock_request_duration_seconds", by="lane", legend="{{lane}}"),
                    "s",
                ),
                Panel(
                    "Oldest in its lane",
                    "How long the first of each lane has waited: the number to look at first.",
                    "PenstockInteractiveWaits",
                    [Query("max by (lane) (penstock_queue_oldest_age_seconds)", "{{lane}}")],
                    "s",
                ),
                Panel(
                    "Tokens",
                    "Tokens per second as the engines counted them.",
                    "PenstockEnginePreempts",
                    [Query(rate("penstock_tokens_total", by="kind"), "{{kind}}")],
                    "short",
                ),
                Panel(
                    "Alerts that fire",
                    'Their pages are on the board "Penstock: runbooks".',
                    "PenstockErrorsBurnFast",
                    [Query('ALERTS{alertstate="firing"}')],
                    kind="table",
                ),
            ],
        ),
    ],
    since="now-6h",
)
"""Which alerts fire is asked of Prometheus itself; an Alertmanager may hold some back."""
