"""What replicas answer, and what they refuse."""

from __future__ import annotations

from scripts.dashboards.panels import MODEL, RATE, Board, Panel, Query, Row, quantile, rate

_API = 'job="penstock-api"'

BOARD = Board(
    "penstock-gateway",
    "API gateway",
    "HTTP as the replicas see it: traffic, errors, refusals, streams, and what they take of the machine.",
    [
        Row(
            "Traffic",
            [
                Panel(
                    "By route",
                    "HTTP requests per second, by route.",
                    "PenstockNoReplica",
                    [Query(rate("penstock_http_requests_total", by="route"), "{{route}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "By status",
                    "HTTP responses per second, by status. 4xx are the clients', 5xx ours.",
                    "PenstockErrorsBurnFast",
                    [Query(rate("penstock_http_requests_total", by="code"), "{{code}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Time by route",
                    "What 95 % of requests take at most, streams to their end.",
                    "PenstockSlowRequests",
                    [Query(quantile(0.95, "penstock_http_request_duration_seconds", by="route"), "{{route}}")],
                    "s",
                ),
            ],
        ),
        Row(
            "Refusals and errors",
            [
                Panel(
                    "Errors told to clients",
                    "Per second, by code: docs/protocol.md says what each means.",
                    "PenstockErrorsBurnFast",
                    [Query(rate("penstock_requests_rejected_total", by="code"), "{{code}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Turned away",
                    "Requests that got no place on the queue, by reason.",
                    "PenstockTurnsAway",
                    [Query(rate("penstock_requests_turned_away_total", 'model=~"$model"', "reason"), "{{reason}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Without a usable key",
                    "A burst of `invalid` may be somebody who guesses keys.",
                    "PenstockErrorsBurnSlow",
                    [Query(rate("penstock_auth_failures_total", by="kind"), "{{kind}}")],
                    "reqps",
                ),
            ],
        ),
        Row(
            "Streams",
            [
                Panel(
                    "Open",
                    "Requests that are relayed now, by replica. Load balancers that count connections keep them even.",
                    "PenstockNoReplica",
                    [Query("sum by (instance) (penstock_streams_open)", "{{instance}}")],
                    stacked=True,
                ),
                Panel(
                    "Gone on with",
                    "Streams that clients went on with where they had broken off, and clients that hung up.",
                    "PenstockTargetDown",
                    [
                        Query(rate("penstock_streams_resumed_total", by="via"), "resumed: {{via}}"),
                        Query(rate("penstock_client_disconnects_total", by="phase"), "hung up: {{phase}}"),
                    ],
                    "reqps",
                ),
                Panel(
                    "Keys and retries",
                    "Requests with an idempotency key, and SDKs' retries, by what became of them.",
                    "PenstockErrorsBurnSlow",
                    [
                        Query(rate("penstock_idempotency_total", by="outcome"), "{{outcome}}"),
                        Query(rate("penstock_requests_joined_total", by="status"), "joined: {{status}}"),
                    ],
                    "reqps",
                ),
                Panel(
                    "Repairs",
                    "Times that a reader had to go to the log, and that the subscriber connection was made anew.",
                    "PenstockQueuesUnread",
                    [
                        Query(rate("penstock_gap_repairs_total", by="cause"), "{{cause}}"),
                        Query(rate("penstock_resubscribes_total"), "subscribed again"),
                    ],
                    "reqps",
                ),
                Panel(
                    "Prompt tokens",
                    "Counted at admission: by the model's tokenizer, or estimated.",
                    "PenstockBatchWaits",
                    [Query(rate("penstock_prompt_tokens_counted_total", by="how"), "{{how}}")],
                    "short",
                ),
                Panel(
                    "Images",
                    "Images that requests named by URL, by what became of them.",
                    "PenstockErrorsBurnSlow",
                    [Query(rate("penstock_images_fetched_total", by="outcome"), "{{outcome}}")],
                    "reqps",
                ),
            ],
        ),
        Row(
            "The replicas themselves",
            [
                Panel(
                    "Processor",
                    "Cores that each replica uses. It runs on one: near 1, add replicas.",
                    "PenstockNoReplica",
                    [Query(f"rate(process_cpu_seconds_total{{{_API}}}[{RATE}])", "{{instance}}")],
                    "short",
                ),
                Panel(
                    "Memory",
                    "Resident memory.",
                    "PenstockTargetDown",
                    [Query(f"process_resident_memory_bytes{{{_API}}}", "{{instance}}")],
                    "bytes",
                ),
                Panel(
                    "Round trip to Redis",
                    "Of a PING, made with every scrape.",
                    "PenstockQueuesUnread",
                    [Query("max by (instance) (penstock_redis_ping_seconds)", "{{instance}}")],
                    "s",
                ),
            ],
        ),
    ],
    (MODEL,),
)
