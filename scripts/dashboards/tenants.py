"""Who uses it, and what it costs."""

from __future__ import annotations

from scripts.dashboards.panels import RATE, Board, Panel, Query, Row, Variable, rate, ratio

_TOKENS = "max by (tenant, kind) (penstock_tenant_recent_tokens)"
_MILLION = "1000000"
_PRICES = {"prompt": "$prompt_price", "completion": "$completion_price"}
_HOURLY_TOKENS = "sum(rate(penstock_tokens_total[30m])) * 3600"


def _worth(window: str) -> str:
    """Tokens of that time at the prices that were typed in, for a million each."""
    tokens = 'sum(increase(penstock_tokens_total{kind="%s"}[%s]))'
    return " + ".join(f"{tokens % (kind, window)} * {price} / {_MILLION}" for kind, price in _PRICES.items())


BOARD = Board(
    "penstock-tenants",
    "tenants and cost",
    "The tenants with the most tokens of the last five minutes, what tokens are worth at your prices, what they cost. "
    "For looking, not for billing.",
    [
        Row(
            "Tenants",
            [
                Panel(
                    "Tokens of the last five minutes",
                    "Of requests that ended then; `other` is everybody without a line of his own "
                    "(`--metrics-tenants`).",
                    "PenstockUnfair",
                    [Query(f"sum by (tenant) ({_TOKENS})", "{{tenant}}")],
                    stacked=True,
                    wide=12,
                ),
                Panel(
                    "Requests of the last five minutes",
                    "Of the same tenants.",
                    "PenstockUnfair",
                    [Query("max by (tenant) (penstock_tenant_recent_requests)", "{{tenant}}")],
                    stacked=True,
                    wide=12,
                ),
                Panel(
                    "Most tokens",
                    "Prompt and completion.",
                    "PenstockTurnsAway",
                    [Query(f"topk(20, {_TOKENS})", "{{tenant}} {{kind}}")],
                    kind="bargauge",
                    wide=12,
                    high=10,
                ),
                Panel(
                    "Share of the greatest",
                    "Of all tokens of the last five minutes.",
                    "PenstockTurnsAway",
                    [Query(ratio(f"max(sum by (tenant) ({_TOKENS}))", f"sum({_TOKENS})"), "greatest")],
                    "percentunit",
                    wide=6,
                    high=10,
                    most=1,
                ),
                Panel(
                    "Tenants that wait",
                    "By lane.",
                    "PenstockUnfair",
                    [Query("max by (lane, model) (penstock_queue_tenants)", "{{lane}} {{model}}")],
                    wide=6,
                    high=10,
                ),
            ],
        ),
        Row(
            "Worth and cost",
            [
                Panel(
                    "Worth per hour",
                    "Tokens of the last hour at the prices above.",
                    "PenstockTurnsAway",
                    [Query(_worth("1h"), "last hour")],
                    "currencyUSD",
                    kind="stat",
                    wide=6,
                    high=6,
                ),
                Panel(
                    "Worth per day",
                    "Tokens of the last day at the prices above.",
                    "PenstockTurnsAway",
                    [Query(_worth("1d"), "last day")],
                    "currencyUSD",
                    kind="stat",
                    wide=6,
                    high=6,
                ),
                Panel(
                    "Cost per million tokens",
                    "What the ready workers cost, one GPU each, for the tokens that they made and read.",
                    "PenstockCannotScaleFurther",
                    [
                        Query(
                            f'sum(max by (model) (penstock_pool_workers{{state="ready"}})) * $gpu_price * {_MILLION} '
                            f"/ ({_HOURLY_TOKENS} > 0)",
                            "cost",
                        )
                    ],
                    "currencyUSD",
                    kind="stat",
                    wide=6,
                    high=6,
                ),
                Panel(
                    "Energy per thousand tokens",
                    "Joules, from the GPUs' own meters.",
                    "PenstockGpuHot",
                    [
                        Query(
                            f"sum(rate(penstock_gpu_energy_joules_total[{RATE}])) * 1000 / ("
                            + rate("penstock_tokens_total")
                            + " > 0)",
                            "energy",
                        )
                    ],
                    "joule",
                    kind="stat",
                    wide=6,
                    high=6,
                ),
                Panel(
                    "Tokens",
                    "Per second, as the engines counted them.",
                    "PenstockEnginePreempts",
                    [Query(rate("penstock_tokens_total", by="kind"), "{{kind}}")],
                ),
                Panel(
                    "Saved by the prefix cache",
                    "Prompt tokens per second that had not to be computed.",
                    "PenstockLatencyBurnSlow",
                    [Query(rate("vllm:prompt_tokens_cached_total"), "cached")],
                ),
                Panel(
                    "Not counted",
                    "Ended requests that are in no tenant's number: too many ended between two scrapes.",
                    "PenstockUnfair",
                    [Query(rate("penstock_tenant_usage_unread_total"), "unread")],
                    "reqps",
                ),
            ],
        ),
    ],
    (
        Variable("prompt_price", "Price of a million prompt tokens", text="0.15"),
        Variable("completion_price", "… of completion tokens", text="0.60"),
        Variable("gpu_price", "GPU, per hour", text="2.50"),
    ),
    since="now-24h",
)
